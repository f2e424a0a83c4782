// A conversation: turns of one question and its answers, and how the next answer is asked for.

import { Answer } from "./answer.js";
import { requestFields } from "./settings.js";

const TITLE_CHARACTERS = 60;

/** An id that is unique enough in one browser. */
export function newId() {
  return `${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 10)}`;
}

/** Turn: {ask, answers, chosen, compare}. `compare`: all answers stand side by side. */
export class Conversation {
  constructor(record = {}) {
    this.id = record.id ?? newId();
    this.title = record.title ?? "";
    this.created = record.created ?? Date.now();
    this.updated = record.updated ?? Date.now();
    this.settings = record.settings ?? {};
    this.turns = record.turns ?? [];
  }

  /** From what the store keeps: answers by id. */
  static fromRecord(record, answers) {
    const turns = (record.turns ?? []).map((turn) => ({
      ask: String(turn.ask ?? ""),
      compare: turn.compare === true,
      chosen: Number(turn.chosen) || 0,
      answers: (turn.answers ?? [])
        .map((id) => answers.get(id))
        .filter(Boolean)
        .map((data) => new Answer(data)),
    }));
    return new Conversation({ ...record, turns });
  }

  toRecord() {
    const { id, title, created, updated, settings } = this;
    const turns = this.turns.map(({ ask, answers, chosen, compare }) => ({
      ask,
      chosen,
      compare,
      answers: answers.map((answer) => answer.id),
    }));
    return { id, title, created, updated, settings, turns };
  }

  get empty() {
    return this.turns.length === 0;
  }

  get live() {
    return this.turns.some(({ answers }) => answers.some((answer) => answer.live));
  }

  /** The answer that is under way, or the last one. */
  get current() {
    const turn = this.turns.at(-1);
    if (!turn) return null;
    return turn.answers.find((answer) => answer.live) ?? turn.answers[turn.chosen] ?? null;
  }

  ask(text, modes, compare) {
    // What is sampled with two seeds differs in any two modes.
    const seed = compare ? Math.floor(Math.random() * 2 ** 31) : null;
    const answers = modes.map((mode) => new Answer({ mode, seed }));
    const turn = { ask: text, answers, chosen: 0, compare };
    this.turns.push(turn);
    if (!this.title) this.title = text.trim().replace(/\s+/g, " ").slice(0, TITLE_CHARACTERS);
    this.updated = Date.now();
    return turn;
  }

  /** The request for an answer of `turn`, with all that was said before. `serverMode`: its default. */
  request(turn, answer, model, serverMode = "") {
    const messages = [];
    if (this.settings.system) messages.push({ role: "system", content: this.settings.system });
    for (const earlier of this.turns) {
      if (earlier === turn) break;
      const text = earlier.answers[earlier.chosen]?.text;
      // A question that was never answered is left out: models expect turns to alternate.
      if (text) messages.push({ role: "user", content: earlier.ask }, { role: "assistant", content: text });
    }
    messages.push({ role: "user", content: turn.ask });
    const seed = turn.compare && answer.seed !== null ? { seed: answer.seed } : {};
    return { model, messages, ...seed, ...requestFields(this.settings, answer.mode, serverMode) };
  }
}
