// Conversations kept in this browser, in IndexedDB: nothing of them goes anywhere else.
//
// An answer's tokens are a record of their own, so that an answer under way is written without the
// rest of its conversation. Where there is no IndexedDB (some private windows) they last as long
// as the page.

const MOST_CONVERSATIONS = 500;
const MOST_WITH_TOKENS = 100; // older ones keep their text, without where each token was made

/** The bound, for people. */
export const BOUND = { conversations: MOST_CONVERSATIONS, withTokens: MOST_WITH_TOKENS };

/** Opened once a page. `lasting` says whether it outlives the page. */
export class Store {
  static async open() {
    try {
      return new Store(await openDatabase());
    } catch {
      return new Store(null);
    }
  }

  constructor(database) {
    this.database = database;
    this.lasting = database !== null;
    this.memory = { conversations: new Map(), answers: new Map() };
    this.removed = new Set(); // an answer that was under way is not to bring them back
  }

  /** Conversations without their tokens, newest first. */
  async list() {
    const all = await this.#all("conversations");
    return all.sort((a, b) => b.updated - a.updated);
  }

  /** One conversation as it was saved last, without its tokens; undefined where there is none. */
  async conversation(id) {
    if (!this.database) return this.memory.conversations.get(id);
    const asked = this.database.transaction("conversations").objectStore("conversations").get(id);
    return outcome(asked);
  }

  /** Answers of a conversation by id. */
  async answers(conversation) {
    const found = await this.#all("answers", conversation);
    return new Map(found.map((record) => [record.id, record.data]));
  }

  async saveConversation(record) {
    if (this.removed.has(record.id)) return;
    await this.#write("conversations", (table) => table.put(record), (map) => map.set(record.id, record));
  }

  async saveAnswer(conversation, data) {
    if (this.removed.has(conversation)) return;
    const record = { id: data.id, conversation, data };
    await this.#write("answers", (table) => table.put(record), (map) => map.set(record.id, record));
  }

  /** For good: what is saved of it later is not kept. */
  async removeConversation(id) {
    this.removed.add(id);
    await this.#drop(id);
  }

  async #drop(id) {
    await this.#write("conversations", (table) => table.delete(id), (map) => map.delete(id));
    await this.#removeAnswers(await this.#all("answers", id));
  }

  async removeAnswer(id) {
    await this.#removeAnswers([{ id }]);
  }

  /** Keep to the bound. Returns the ids of the conversations that had to go. */
  async tidy() {
    const all = await this.list();
    const gone = all.slice(MOST_CONVERSATIONS);
    for (const { id } of gone) await this.#drop(id);
    for (const { id, stripped } of all.slice(MOST_WITH_TOKENS, MOST_CONVERSATIONS)) {
      if (!stripped) await this.#strip(id);
    }
    return gone.map(({ id }) => id);
  }

  async #strip(id) {
    for (const record of await this.#all("answers", id)) {
      await this.saveAnswer(id, { ...record.data, tokens: [] });
    }
    const record = await this.conversation(id);
    if (record) await this.saveConversation({ ...record, stripped: true });
  }

  async #removeAnswers(records) {
    const ids = records.map(({ id }) => id);
    await this.#write(
      "answers",
      (table) => ids.forEach((id) => table.delete(id)),
      (map) => ids.forEach((id) => map.delete(id)),
    );
  }

  #all(name, conversation = null) {
    if (!this.database) {
      const all = [...this.memory[name].values()];
      return Promise.resolve(conversation === null ? all : all.filter((one) => one.conversation === conversation));
    }
    const table = this.database.transaction(name).objectStore(name);
    const asked = conversation === null ? table.getAll() : table.index("conversation").getAll(conversation);
    return outcome(asked);
  }

  #write(name, work, inMemory) {
    if (!this.database) {
      inMemory(this.memory[name]);
      return Promise.resolve();
    }
    return new Promise((resolve, reject) => {
      const transaction = this.database.transaction(name, "readwrite");
      transaction.oncomplete = () => resolve();
      transaction.onabort = () => reject(transaction.error);
      work(transaction.objectStore(name));
    });
  }
}

function outcome(asked) {
  return new Promise((resolve, reject) => {
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
}

function openDatabase() {
  return new Promise((resolve, reject) => {
    const asked = indexedDB.open("collm", 1);
    asked.onupgradeneeded = () => {
      asked.result.createObjectStore("conversations", { keyPath: "id" });
      asked.result.createObjectStore("answers", { keyPath: "id" }).createIndex("conversation", "conversation");
    };
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
    asked.onblocked = () => reject(new Error("another page holds the store"));
  });
}
