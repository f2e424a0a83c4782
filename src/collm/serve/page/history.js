// The list of conversations: open, rename, delete.

import { askFor, confirm } from "./dialogs.js";
import { byId, el, iconButton } from "./dom.js";
import { period } from "./words.js";

/** Calls `open(id)`, `rename(id, title)`, `remove(id)`. */
export class HistoryList {
  constructor(acts) {
    this.acts = acts;
    this.place = byId("conversations");
  }

  draw(records, openId) {
    const parts = [];
    let last = "";
    let list = null;
    for (const record of records) {
      const when = period(record.updated);
      if (when !== last) {
        last = when;
        list = el("ul.conversation-list");
        parts.push(el("h3", {}, when), list);
      }
      list.append(this.#item(record, record.id === openId));
    }
    if (!parts.length) parts.push(el("p.quiet", {}, "Conversations stay in this browser."));
    this.place.replaceChildren(...parts);
  }

  #item({ id, title }, open) {
    const name = title || "New conversation";
    return el(
      `li${open ? ".open" : ""}`,
      {},
      el(
        "button.conversation",
        { type: "button", onclick: () => this.acts.open(id), "aria-current": open ? "page" : null, title: name },
        name,
      ),
      iconButton("rename", `Rename “${name}”`, () => this.#rename(id, name)),
      iconButton("delete", `Delete “${name}”`, () => this.#remove(id, name)),
    );
  }

  async #rename(id, name) {
    const title = await askFor("Name of the conversation", name);
    if (title) this.acts.rename(id, title.slice(0, 200));
  }

  async #remove(id, name) {
    if (await confirm(`Delete “${name}”? It is kept nowhere else.`, "Delete")) this.acts.remove(id);
  }
}
