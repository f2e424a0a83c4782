// One answer as it comes: certain tokens, previews after them, and what the server says of it all.
//
// Previews are written while the cloud is away. The protocol takes all of them back with the next
// certain token; here those that the certain text still agrees with stay in sight until their turn
// comes, so that the text is corrected in place and does not shrink and grow again.

const WAS_CHARACTERS = 60;

/** Token: {text, source, exit, confidence, by, ms, provisional, stood, fixed, was}. */
export class Answer {
  constructor(data = {}) {
    this.id = data.id ?? crypto.randomUUID?.() ?? `a${Date.now()}${Math.random()}`;
    this.mode = data.mode ?? "";
    this.state = data.state ?? "queued"; // waiting, streaming, done, stopped, failed
    this.tokens = data.tokens ?? [];
    this.kept = data.text ?? ""; // where its tokens are not kept any more
    this.finish = data.finish ?? "";
    this.summary = data.summary ?? null;
    this.usage = data.usage ?? null;
    this.ways = data.ways ?? [];
    this.error = data.error ?? null;
    this.model = data.model ?? "";
    this.seed = data.seed ?? null; // of a sampled answer: with it the same text comes again
    this.traffic = null; // bytes up and down so far
    this.started = data.started ?? 0;
    this.firstAt = 0;
    this.lastAt = 0;
    this.previews = [];
    this.counts = {};
    this.watchers = new Set();
    this.pending = "";
    this.fixing = 0;
    this.fresh = false; // whether the previews came after the last certain token
    for (const token of this.tokens) this.#count(token);
  }

  get text() {
    if (this.kept) return this.kept;
    return this.tokens.map((token) => token.text).join("");
  }

  get live() {
    return this.state === "queued" || this.state === "waiting" || this.state === "streaming";
  }

  /** Tokens a second: the server's figure at the end, until then by the clock here. */
  get rate() {
    if (this.summary?.tokens_per_second) return this.summary.tokens_per_second;
    const seconds = (this.lastAt - this.firstAt) / 1000;
    return seconds > 0 ? (this.tokens.length - 1) / seconds : 0;
  }

  /** Whether the cloud is away at the moment: what is shown last is not certain. */
  get offline() {
    return this.live && this.fresh && this.previews.length > 0;
  }

  watch(changed) {
    this.watchers.add(changed);
    return () => this.watchers.delete(changed);
  }

  changed() {
    for (const watcher of this.watchers) watcher(this);
  }

  begin(now = performance.now()) {
    this.state = "waiting";
    this.startedAt = now;
    this.started = Date.now();
    this.changed();
  }

  /** Take in what came together. */
  take(chunks, now = performance.now()) {
    for (const chunk of chunks) this.#chunk(chunk, now);
    this.changed();
  }

  #chunk(chunk, now) {
    if (chunk.model) this.model = chunk.model;
    if (chunk.usage) this.usage = chunk.usage;
    const choice = chunk.choices?.[0];
    const extra = chunk.collm ?? {};
    if (extra.way) this.ways.push({ index: this.tokens.length, ...extra.way });
    if (extra.bytes_up !== undefined) this.traffic = extra;
    if (extra.summary) this.summary = extra.summary;
    if (extra.seed !== undefined) this.seed = extra.seed;
    if (typeof extra.preview === "string") {
      this.#preview(extra, now);
    } else if (choice) {
      const text = choice.delta?.content ?? "";
      if (extra.source) this.#token(text, extra, now);
      else if (text) this.#rest(text, now);
      if (choice.finish_reason) this.#finished(choice.finish_reason);
    }
  }

  #clock(now) {
    if (!this.firstAt) this.firstAt = now;
    this.lastAt = now;
    this.state = "streaming";
  }

  #preview(extra, now) {
    if (!this.fresh) this.previews = []; // written before the last certain token: superseded
    this.fresh = true;
    this.#clock(now);
    this.previews.push({ ...figures(extra), text: extra.preview, provisional: true });
  }

  #token(text, extra, now) {
    this.#clock(now);
    this.fresh = false;
    const token = { text, ...figures(extra) };
    this.#compare(token);
    this.tokens.push(token);
    this.#count(token);
  }

  /** Text without a token of its own: what was held back for a stop string. */
  #rest(text, now) {
    const last = this.tokens.at(-1);
    this.#token(text, { source: last?.source ?? "", by: last?.by }, now);
  }

  /** Set a certain token against the previews in whose place it comes. */
  #compare(token) {
    if (this.previews.length) {
      const shown = this.previews.map((preview) => preview.text).join("");
      if (shown.startsWith(token.text)) {
        this.#consume(token.text.length);
        token.stood = true;
        return;
      }
      this.fixing = this.tokens.length + this.previews.length;
      token.was = shown.slice(0, WAS_CHARACTERS);
      this.previews = [];
    }
    if (this.tokens.length < this.fixing) token.fixed = true;
  }

  #consume(characters) {
    let left = characters;
    while (left > 0) {
      const first = this.previews[0];
      if (first.text.length > left) {
        this.previews[0] = { ...first, text: first.text.slice(left) };
        return;
      }
      left -= first.text.length;
      this.previews.shift();
    }
  }

  #count(token) {
    this.counts[token.source] = (this.counts[token.source] ?? 0) + 1;
  }

  #finished(reason) {
    this.finish = reason;
    this.previews = [];
    this.fresh = false;
  }

  /** The stream ended as it should. */
  done() {
    this.state = "done";
    this.previews = [];
    this.changed();
  }

  /** Ended before its end, by the reader or by an error: what was shown stays, marked as it was. */
  end(state, error = null) {
    for (const preview of this.previews) {
      this.tokens.push(preview);
      this.#count(preview);
    }
    this.previews = [];
    this.state = state;
    this.error = error && {
      kind: error.kind ?? "broken",
      message: error.message,
      retrySeconds: error.retrySeconds ?? 0,
    };
    this.changed();
  }

  /** What is kept of it. */
  toData() {
    const { id, mode, tokens, text, finish, summary, usage, ways, error, model, seed, started } = this;
    // One that is under way when the page goes has been stopped when the page comes back.
    const state = this.live ? "stopped" : this.state;
    const all = this.live ? [...tokens, ...this.previews] : tokens;
    const whole = this.live ? all.map((token) => token.text).join("") : text;
    const said = { id, mode, state, tokens: all, text: whole, finish, summary, usage };
    return { ...said, ways, error, model, seed, started };
  }
}

function figures(extra) {
  const token = { source: extra.source ?? "" };
  for (const key of ["exit", "confidence", "by", "ms"]) {
    if (extra[key] !== undefined && extra[key] !== null) token[key] = extra[key];
  }
  if (extra.provisional) token.provisional = true;
  return token;
}
