// Asks the server for answers and keeps them as they come. An answer goes on while another
// conversation is looked at.

import { ApiError, chat, getJson } from "./api.js";

const SAVE_MS = 2000;

/**
 * `changed(conversation)` is called when an answer begins or ends; `serverMode()` says in which mode
 * the server answers where none is asked for.
 */
export class Runner {
  constructor(store, { changed, failed, serverMode }) {
    this.store = store;
    this.changed = changed;
    this.failed = failed;
    this.serverMode = serverMode;
    this.running = new Map(); // conversation id: AbortController
  }

  isLive(conversation) {
    return this.running.has(conversation?.id);
  }

  stop(conversation) {
    this.running.get(conversation?.id)?.abort();
  }

  /**
   * Get these answers, one after the other: side by side on one machine they would slow each
   * other, and their figures would say nothing.
   */
  async run(conversation, turn, answers) {
    const stopped = new AbortController();
    this.running.set(conversation.id, stopped);
    this.changed(conversation);
    await this.#save(conversation, answers);
    for (const answer of answers) {
      if (stopped.signal.aborted) answer.end("stopped");
      else await this.#one(conversation, turn, answer, stopped.signal);
      await this.#save(conversation, [answer]);
    }
    this.running.delete(conversation.id);
    this.changed(conversation);
  }

  async #one(conversation, turn, answer, signal) {
    let savedAt = performance.now();
    answer.begin();
    try {
      // Asked each time: another model may be served by now.
      const model = (await getJson("v1/models")).data[0].id;
      const request = conversation.request(turn, answer, model, this.serverMode());
      for await (const chunks of chat(request, signal)) {
        answer.take(chunks);
        if (performance.now() - savedAt > SAVE_MS) {
          savedAt = performance.now();
          this.store.saveAnswer(conversation.id, answer.toData()).catch(this.failed);
        }
      }
      answer.done();
    } catch (error) {
      if (error.name === "AbortError") {
        answer.end("stopped");
      } else {
        answer.end("failed", error);
        if (!(error instanceof ApiError)) throw error;
        this.failed(error);
      }
    }
  }

  async #save(conversation, answers) {
    try {
      await this.store.saveConversation(conversation.toRecord());
      for (const answer of answers) await this.store.saveAnswer(conversation.id, answer.toData());
    } catch (error) {
      this.failed(error);
    }
  }
}
