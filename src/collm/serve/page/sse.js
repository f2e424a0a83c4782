// Server-sent events from a fetched body: the part of the format that OpenAI's API uses.
//
// Not covered: `event:`, `id:` and `retry:` lines, which that API does not send.

const MOST_CHARACTERS = 4 << 20; // of one event; a longer one is no token

/** The body was cut off, or is none of ours. */
export class StreamError extends Error {}

/** Takes text as it comes and gives the `data` of every event that is complete. */
export class EventParser {
  #rest = "";
  #data = [];

  push(text) {
    const complete = [];
    const lines = (this.#rest + text).split("\n");
    this.#rest = lines.pop();
    for (const raw of lines) {
      const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
      if (line === "") {
        if (this.#data.length) complete.push(this.#data.join("\n"));
        this.#data = [];
      } else if (line.startsWith("data:")) {
        this.#data.push(line.slice(line[5] === " " ? 6 : 5));
      }
    }
    if (this.#rest.length > MOST_CHARACTERS) throw new StreamError("an event of the stream is too long");
    return complete;
  }
}

/**
 * Events of a body, in the batches they arrive in: tokens that came together are handled together.
 * Throws StreamError after `idleMs` without a byte.
 */
export async function* batches(body, idleMs) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  const parser = new EventParser();
  let heard = performance.now();
  let late = false;
  // One timer for all reads: one for each would cost more than the token that comes with it.
  const watch = setInterval(() => {
    late = performance.now() - heard > idleMs;
    if (late) reader.cancel().catch(() => {});
  }, 1000);
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (late) throw new StreamError(`nothing came for ${idleMs / 1000} seconds`);
      if (done) return;
      heard = performance.now();
      const events = parser.push(decoder.decode(value, { stream: true }));
      if (events.length) yield events;
    }
  } finally {
    clearInterval(watch);
    reader.cancel().catch(() => {}); // it has ended already where it failed
  }
}
