// Conversations as a JSON file, and back.

import { Answer } from "./answer.js";
import { Conversation, newId } from "./conversation.js";

const FORMAT = "collm-conversations";
const MOST_BYTES = 64 << 20;
const MOST_CONVERSATIONS = 500;

/** What the file says. Every token is in it, with where it was made. */
export function toJson(conversations, status) {
  const file = {
    format: FORMAT,
    version: 1,
    exported: new Date().toISOString(),
    model: status?.model ?? "",
    fingerprint: status?.fingerprint ?? "",
    conversations: conversations.map((one) => ({
      title: one.title,
      created: new Date(one.created).toISOString(),
      updated: new Date(one.updated).toISOString(),
      settings: one.settings,
      turns: one.turns.map((turn) => ({
        ask: turn.ask,
        compare: turn.compare,
        chosen: turn.chosen,
        answers: turn.answers.map((answer) => answer.toData()),
      })),
    })),
  };
  return JSON.stringify(file, null, 1);
}

/** Offer a text as a file. */
export function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** A file name of a title. */
export function fileName(title) {
  const words = title.toLowerCase().replace(/[^\p{Letter}\p{Number}]+/gu, "-").replace(/^-|-$/g, "");
  return `collm-${words.slice(0, 40) || "conversation"}.json`;
}

/** Conversations of a file that `toJson` wrote. Throws an Error with one line for people. */
export async function fromFile(file) {
  if (file.size > MOST_BYTES) throw new Error(`${file.name} is larger than ${MOST_BYTES >> 20} MB.`);
  let read;
  try {
    read = JSON.parse(await file.text());
  } catch {
    throw new Error(`${file.name} is no JSON file.`);
  }
  if (read?.format !== FORMAT || !Array.isArray(read.conversations)) {
    throw new Error(`${file.name} is no export of this page: its format is not ${FORMAT}.`);
  }
  return read.conversations.slice(0, MOST_CONVERSATIONS).map(conversation);
}

function conversation(one) {
  const turns = list(one.turns).map((turn) => ({
    ask: String(turn.ask ?? ""),
    compare: turn.compare === true,
    chosen: Math.max(0, Number(turn.chosen) || 0),
    answers: list(turn.answers).map(answer),
  }));
  return new Conversation({
    id: newId(), // an import never takes the place of what is there
    title: String(one.title ?? "Imported").slice(0, 200),
    created: Date.parse(one.created) || Date.now(),
    updated: Date.parse(one.updated) || Date.now(),
    settings: typeof one.settings === "object" && one.settings ? one.settings : {},
    turns: turns.filter((turn) => turn.answers.length),
  });
}

function answer(data) {
  const tokens = list(data.tokens).filter((token) => typeof token?.text === "string").map(token);
  const state = ["done", "stopped", "failed"].includes(data.state) ? data.state : "done";
  return new Answer({
    mode: String(data.mode ?? ""),
    state,
    tokens,
    text: String(data.text ?? ""),
    finish: String(data.finish ?? ""),
    summary: typeof data.summary === "object" ? data.summary : null,
    usage: typeof data.usage === "object" ? data.usage : null,
    ways: list(data.ways),
    model: String(data.model ?? ""),
    seed: Number.isFinite(data.seed) ? data.seed : null,
    started: Number(data.started) || 0,
  });
}

function token(one) {
  const made = { text: one.text, source: String(one.source ?? "") };
  for (const key of ["confidence", "ms", "exit"]) if (Number.isFinite(one[key])) made[key] = one[key];
  for (const key of ["provisional", "stood", "fixed"]) if (one[key] === true) made[key] = true;
  for (const key of ["by", "was"]) if (typeof one[key] === "string") made[key] = one[key];
  return made;
}

function list(value) {
  return Array.isArray(value) ? value.filter((one) => typeof one === "object" && one) : [];
}
