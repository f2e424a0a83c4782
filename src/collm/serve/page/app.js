// The page put together: which conversation is open, and what every button does.

import { Answer } from "./answer.js";
import { apiKey, ApiError } from "./api.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import { notice } from "./dialogs.js";
import { announce, byId } from "./dom.js";
import { Drawers } from "./drawers.js";
import { download, fileName, fromFile, toJson } from "./export.js";
import { HistoryList } from "./history.js";
import { release } from "./inspector.js";
import { listen } from "./keyboard.js";
import { Panel } from "./panel.js";
import { Runner } from "./runner.js";
import { Scroller } from "./scroll.js";
import { changedCount, lastSettings, SettingsDialog } from "./settings.js";
import { StatusPoll } from "./status.js";
import { Store } from "./store.js";
import { TurnView } from "./turn-view.js";

class Page {
  constructor(store) {
    this.store = store;
    this.records = []; // what the list shows; what a conversation is now, the store says
    this.open = new Map(); // conversations of which an answer may still come, by id
    this.turnViews = [];
    this.refused = null; // what is asked again once there is a key
    this.scroller = new Scroller();
    this.drawers = new Drawers();
    this.panel = new Panel();
    this.poll = new StatusPoll();
    this.composer = new Composer({
      send: (text, modes, compare) => this.send(text, modes, compare),
      stop: () => this.runner.stop(this.conversation),
    });
    this.runner = new Runner(store, {
      changed: (conversation) => this.#ran(conversation),
      failed: (error) => this.#failed(error),
      serverMode: () => this.poll.status?.mode ?? "",
    });
    this.history = new HistoryList({
      open: (id) => this.go(id),
      rename: (id, title) => this.rename(id, title),
      remove: (id) => this.remove(id),
    });
    this.settings = new SettingsDialog((settings) => this.#setSettings(settings));
    this.acts = {
      retry: (answer) => this.again(answer, { replace: true }),
      regenerate: (answer) => this.again(answer, { replace: false }),
      choose: (answer) => this.choose(answer),
      details: (answer) => {
        this.panel.follow(answer, this.conversation);
        this.drawers.panel.toggle(true);
      },
    };
    this.#buttons();
    this.poll.watch((status, error) => this.#status(status, error));
    this.started = this.#start();
  }

  async #start() {
    if (!this.store.lasting) notice("This browser does not keep conversations for this page: export what you want to keep.");
    await this.#refreshList();
    window.addEventListener("hashchange", () => this.#openHash());
    await this.#openHash();
    this.poll.now();
    this.composer.focus();
  }

  // ----------------------------------------------------------------- conversations

  /** Open a conversation by id; null for a new one. */
  go(id) {
    const hash = id ? `#c=${id}` : "";
    if (location.hash === hash) this.#openHash();
    else if (hash) location.hash = hash;
    else {
      history.pushState(null, "", location.pathname + location.search);
      this.#openHash();
    }
    this.drawers.close();
  }

  fresh() {
    this.go(null);
    this.composer.focus();
    announce("New conversation");
  }

  async #openHash() {
    const { hash } = location;
    const id = /^#c=([\w-]{1,64})$/.exec(hash)?.[1];
    if (id && id === this.conversation?.id) return;
    const found = id ? await this.#stored(id) : null;
    // Another may have been chosen meanwhile.
    if (location.hash === hash) this.show(found ?? new Conversation({ settings: lastSettings() }));
  }

  /** A conversation as it is now; null where there is none. */
  async #stored(id) {
    if (this.open.has(id)) return this.open.get(id);
    if (this.conversation?.id === id) return this.conversation;
    const record = await this.store.conversation(id);
    return record ? Conversation.fromRecord(record, await this.store.answers(id)) : null;
  }

  show(conversation) {
    release();
    for (const view of this.turnViews) view.close();
    this.conversation = conversation;
    this.turnViews = [];
    byId("turns").replaceChildren();
    for (const turn of conversation.turns) this.#addTurn(turn);
    this.#setLast();
    this.#heading();
    this.panel.follow(conversation.current, conversation);
    this.composer.setLive(this.runner.isLive(conversation));
    this.history.draw(this.records, conversation.id);
    this.#badge();
    this.scroller.toEnd();
  }

  async rename(id, title) {
    const conversation = await this.#stored(id);
    if (!conversation) return;
    conversation.title = title;
    await this.store.saveConversation(conversation.toRecord());
    await this.#refreshList();
    this.#heading();
  }

  async remove(id) {
    this.runner.stop({ id });
    this.open.delete(id);
    await this.store.removeConversation(id); // at once for good, as the answer under way still ends
    await this.#refreshList();
    if (id === this.conversation.id) this.fresh();
    announce("Deleted");
  }

  // ------------------------------------------------------------------------ answers

  async send(text, modes, compare) {
    await this.started; // whoever is quick asks before the first conversation is open
    const turn = this.conversation.ask(text, modes, compare);
    this.#addTurn(turn);
    this.#setLast();
    this.#heading();
    this.#run(turn, turn.answers);
  }

  /** Ask again: beside the answer that is there, or in its place. */
  again(answer, { replace }) {
    const turn = this.conversation.turns.find(({ answers }) => answers.includes(answer));
    if (!turn || this.runner.isLive(this.conversation)) return;
    const mode = turn.compare || replace ? answer.mode : this.composer.mode.value;
    const fresh = new Answer({ mode, seed: turn.compare ? answer.seed : null });
    const at = turn.answers.indexOf(answer);
    if (replace || turn.compare) {
      turn.answers[at] = fresh;
      this.store.removeAnswer(answer.id).catch((error) => this.#failed(error));
    } else {
      turn.answers.push(fresh);
      turn.chosen = turn.answers.length - 1;
    }
    this.turnViews.find((view) => view.turn === turn).show();
    this.#run(turn, [fresh]);
  }

  choose(answer) {
    const turn = this.conversation.turns.find(({ answers }) => answers.includes(answer));
    turn.chosen = turn.answers.indexOf(answer);
    this.turnViews.find((view) => view.turn === turn).views.forEach((view) => view.refresh());
    this.panel.follow(answer, this.conversation);
    this.store.saveConversation(this.conversation.toRecord()).catch((error) => this.#failed(error));
  }

  #run(turn, answers) {
    const { conversation } = this;
    this.open.set(conversation.id, conversation);
    this.panel.follow(answers[0], conversation);
    this.scroller.toEnd();
    for (const answer of answers) {
      const stop = answer.watch(() => {
        // The panel follows the one that is being written.
        if (answer.state === "waiting" && conversation === this.conversation) this.panel.follow(answer, conversation);
        if (!answer.live) stop();
      });
    }
    this.runner.run(conversation, turn, answers);
  }

  async #ran(conversation) {
    const live = this.runner.isLive(conversation);
    if (conversation === this.conversation) this.composer.setLive(live);
    if (!live) this.open.delete(conversation.id);
    const hash = `#c=${conversation.id}`;
    await this.#refreshList();
    if (live && conversation === this.conversation && location.hash !== hash) {
      history.replaceState(null, "", hash);
      this.history.draw(this.records, conversation.id);
    }
    if (!live) this.poll.now();
  }

  #failed(error) {
    if (error instanceof ApiError) {
      if (error.kind === "auth") this.#wantKey(error.message);
      else if (error.kind === "away") this.poll.now();
    } else notice(`Not kept in this browser: ${error.message ?? error}. Export what you want to keep.`);
  }

  // ---------------------------------------------------------------------- the page

  #addTurn(turn) {
    const view = new TurnView(turn, this.acts, { last: false, moved: () => this.scroller.follow() });
    this.turnViews.push(view);
    byId("turns").append(view.element);
  }

  #setLast() {
    this.turnViews.forEach((view, at) => view.setLast(at === this.turnViews.length - 1));
    byId("welcome").hidden = !this.conversation.empty;
    byId("export").disabled = this.conversation.empty;
  }

  #heading() {
    const { title } = this.conversation;
    byId("title").textContent = title || "New conversation";
    document.title = title ? `${title} – CoLLM` : "CoLLM";
  }

  async #refreshList() {
    await this.store.tidy();
    this.records = await this.store.list();
    this.history.draw(this.records, this.conversation?.id);
  }

  #badge() {
    const count = changedCount(this.conversation.settings);
    byId("settings-count").textContent = count || "";
    byId("settings-button").title = count ? `Settings (${count} set)` : "Settings";
  }

  #setSettings(settings) {
    this.conversation.settings = settings;
    this.#badge();
    if (!this.conversation.empty) {
      this.store.saveConversation(this.conversation.toRecord()).catch((error) => this.#failed(error));
    }
  }

  #status(status, error) {
    this.panel.update(status, error);
    const cloud = status?.tiers?.filter((tier) => tier.role !== "device") ?? [];
    const gone = cloud.find((tier) => !tier.ok);
    const state = error ? (error.kind === "auth" ? "locked" : "away") : gone ? "partly" : "well";
    const words = { away: "not connected", locked: "wants a key", partly: `the ${gone?.role} is away`, well: "" }[state];
    byId("server").dataset.state = state;
    byId("server-name").textContent = status?.model ?? "No server";
    byId("server-state").textContent = words;
    const where = cloud.length ? "runs in part here and in part in the cloud." : "runs on this machine.";
    byId("welcome-model").textContent = status ? `${status.model} ${where}` : "";
    if (status) this.composer.setModes(status);
    if (error?.kind === "auth") this.#wantKey(error.message);
    else if (!error && byId("key-form").hidden === false && !this.keyBusy) byId("key-form").hidden = true;
  }

  #wantKey(message) {
    byId("key-message").textContent = apiKey.get() ? `${message} The key given here was not accepted.` : message;
    byId("key-form").hidden = false;
  }

  #buttons() {
    byId("new-chat").addEventListener("click", () => this.fresh());
    byId("settings-button").addEventListener("click", () => this.settings.open(this.conversation.settings, this.poll.status, this.composer.asked));
    byId("shortcuts-button").addEventListener("click", () => byId("shortcuts").showModal());
    byId("export").addEventListener("click", () =>
      download(fileName(this.conversation.title), toJson([this.conversation], this.poll.status)),
    );
    byId("export-all").addEventListener("click", () => this.#exportAll());
    byId("import").addEventListener("click", () => byId("import-file").click());
    byId("import-file").addEventListener("change", (event) => this.#import(event.target));
    byId("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      apiKey.set(byId("key").value.trim());
      byId("key-form").hidden = true;
      const last = this.conversation.current;
      if (last?.state === "failed" && last.error?.kind === "auth") this.again(last, { replace: true });
      this.poll.now();
    });
    for (const button of document.querySelectorAll("[data-example]")) {
      button.addEventListener("click", () => {
        this.composer.input.value = button.dataset.example;
        this.composer.submit();
      });
    }
    listen({
      stop: () => release() || this.drawers.close() || this.#stop(),
      fresh: () => this.fresh(),
      shortcuts: () => byId("shortcuts").showModal(),
      ask: () => this.composer.focus(),
      panel: () => this.drawers.panel.toggle(),
    });
    document.addEventListener("click", (event) => {
      if (!event.target.closest(".t, #token-card")) release();
    });
  }

  #stop() {
    if (!this.runner.isLive(this.conversation)) return false;
    this.runner.stop(this.conversation);
    return true;
  }

  async #exportAll() {
    const all = [];
    for (const { id } of await this.store.list()) {
      const found = await this.#stored(id);
      if (found) all.push(found);
    }
    download("collm-conversations.json", toJson(all, this.poll.status));
  }

  async #import(input) {
    const [file] = input.files;
    input.value = ""; // the same file may be chosen again
    if (!file) return;
    try {
      const all = await fromFile(file);
      for (const conversation of all) {
        for (const { answers } of conversation.turns) {
          for (const answer of answers) await this.store.saveAnswer(conversation.id, answer.toData());
        }
        await this.store.saveConversation(conversation.toRecord());
      }
      await this.#refreshList();
      notice(all.length === 1 ? "One conversation imported." : `${all.length} conversations imported.`);
      if (all.length) this.go(all[0].id);
    } catch (error) {
      notice(error.message);
    }
  }
}

const page = new Page(await Store.open());
await page.started;
