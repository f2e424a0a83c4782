// The two sides of the page: columns where there is room, drawers over it where there is not.

/* global kept */
import { byId } from "./dom.js";

const KEY = "collm.panel";

class Side {
  constructor(id, buttonId, narrow, remembers) {
    this.element = byId(id);
    this.button = byId(buttonId);
    this.narrow = matchMedia(narrow);
    this.remembers = remembers;
    this.button.addEventListener("click", () => this.toggle());
    this.narrow.addEventListener("change", () => this.reset());
    this.reset();
  }

  get open() {
    return this.element.classList.contains("open");
  }

  get drawer() {
    return this.narrow.matches;
  }

  /** As it is when the page comes, or turns from wide to narrow. */
  reset() {
    this.#set(!this.drawer && (!this.remembers || kept.local.get(KEY) !== "closed"));
  }

  toggle(open = !this.open) {
    this.#set(open);
    if (this.remembers && !this.drawer) kept.local.set(KEY, open ? "open" : "closed");
    if (this.drawer && open) this.element.querySelector("button, a, input")?.focus();
    else if (this.drawer) this.button.focus();
  }

  #set(open) {
    this.element.classList.toggle("open", open);
    this.element.inert = !open; // nothing to tab to in what cannot be seen
    this.button.setAttribute("aria-expanded", String(open));
    this.onchange?.();
  }
}

/** Both sides; what a drawer lies over cannot be reached while it is open. */
export class Drawers {
  constructor() {
    this.history = new Side("history", "history-button", "(max-width: 760px)", false);
    this.panel = new Side("panel", "panel-button", "(max-width: 1080px)", true);
    this.sides = [this.history, this.panel];
    for (const side of this.sides) side.onchange = () => this.#cover();
    byId("cover").addEventListener("click", () => this.close());
    for (const button of document.querySelectorAll("[data-drawer-close]")) {
      button.addEventListener("click", () => this.close() || this.panel.toggle(false));
    }
    this.#cover();
  }

  /** Close an open drawer. Returns whether there was one. */
  close() {
    const open = this.sides.find((side) => side.drawer && side.open);
    open?.toggle(false);
    return open !== undefined;
  }

  #cover() {
    const covering = this.sides?.some((side) => side.drawer && side.open) ?? false;
    byId("cover").hidden = !covering;
    byId("main").inert = covering;
  }
}
