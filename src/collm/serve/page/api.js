// The server of this page: where it is, what it is asked, what went wrong.

/* global kept */
import { batches, StreamError } from "./sse.js";

const KEY = "collm.key";
const IDLE_MS = 120_000;
const PLAIN_MS = 5_000;

/**
 * What went wrong, as a kind that the page can act on:
 * auth (401), busy (429), refused (other 4xx), server (5xx), away (no connection),
 * broken (the stream ended too early or said so itself).
 */
export class ApiError extends Error {
  constructor(kind, message, { status = 0, retrySeconds = 0 } = {}) {
    super(message);
    this.kind = kind;
    this.status = status;
    this.retrySeconds = retrySeconds;
  }
}

/** The API key lives as long as the tab. */
export const apiKey = {
  get: () => kept.session.get(KEY) ?? "",
  set: (value) => kept.session.set(KEY, value || null),
};

// Relative to the page, so that it also works below a path of a proxy.
const address = (path) => new URL(path, document.baseURI);

async function ask(path, init) {
  const headers = { ...init.headers };
  if (apiKey.get()) headers.Authorization = `Bearer ${apiKey.get()}`;
  let response;
  try {
    response = await fetch(address(path), { ...init, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("away", `The server at ${location.host} does not answer.`);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const text = await response.text().catch(() => "");
  let message = "";
  try {
    message = String(JSON.parse(text).error?.message ?? "");
  } catch {
    message = ""; // a proxy's page, most likely
  }
  const { status } = response;
  const retrySeconds = Math.min(3600, Number(response.headers.get("Retry-After")) || 0);
  if (status === 401) {
    return new ApiError("auth", message || "This server wants an API key.", { status });
  }
  if (status === 429) {
    return new ApiError("busy", message || "The server is busy.", { status, retrySeconds });
  }
  const kind = status >= 500 ? "server" : "refused";
  return new ApiError(kind, message || `The server answered with status ${status}.`, {
    status,
    retrySeconds,
  });
}

/** JSON of a GET. */
export async function getJson(path) {
  const gone = new AbortController();
  const timer = setTimeout(() => gone.abort(), PLAIN_MS);
  try {
    return await (await ask(path, { signal: gone.signal })).json();
  } catch (error) {
    if (error instanceof ApiError) throw error;
    throw new ApiError("away", `The server at ${location.host} does not answer.`);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Chunks of a streamed chat completion, in batches. Ends where the server says it is done; throws
 * ApiError, and AbortError when `signal` says so.
 */
export async function* chat(body, signal) {
  const response = await ask("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  try {
    for await (const events of batches(response.body, IDLE_MS)) {
      const chunks = [];
      let done = false;
      for (const data of events) {
        if (data === "[DONE]") done = true;
        else if (!done) chunks.push(read(data));
      }
      const wrong = chunks.findIndex((chunk) => chunk.error);
      if (wrong >= 0) {
        if (wrong > 0) yield chunks.slice(0, wrong);
        throw new ApiError("broken", String(chunks[wrong].error.message ?? "The server failed."));
      }
      if (chunks.length) yield chunks;
      if (done) return;
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiError) throw error;
    const why = error instanceof StreamError ? ` (${error.message})` : "";
    throw new ApiError("broken", `The connection broke in the middle of the answer${why}.`);
  }
  throw new ApiError("broken", "The connection ended in the middle of the answer.");
}

function read(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ApiError("broken", "The server sent something that is no answer.");
  }
}
