// The end of the conversation stays in sight while it grows, unless the reader has scrolled up.

import { byId } from "./dom.js";

const NEAR_PX = 60;

export class Scroller {
  constructor() {
    this.box = byId("scroll");
    this.button = byId("to-end");
    this.stuck = true;
    this.box.addEventListener("scroll", () => this.#look(), { passive: true });
    this.button.addEventListener("click", () => this.toEnd());
  }

  /** The page may have grown. To be called where a frame is drawn: it needs the layout. */
  follow() {
    if (this.stuck) this.box.scrollTop = this.box.scrollHeight;
    else this.#look();
  }

  toEnd() {
    this.stuck = true;
    this.button.hidden = true;
    this.follow();
  }

  #look() {
    const left = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight;
    this.stuck = left < NEAR_PX;
    this.button.hidden = this.stuck;
  }
}
