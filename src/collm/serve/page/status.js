// What the server says of itself, asked each second while somebody looks.

import { ApiError, getJson } from "./api.js";
import { setExits } from "./sources.js";

const EVERY_MS = 1000;
const MOST_MS = 8000; // between two questions to a server that does not answer

/** Asks for /collm/status and tells its watchers: `changed(status, error)`. */
export class StatusPoll {
  constructor() {
    this.status = null;
    this.error = null;
    this.watchers = new Set();
    this.wait = EVERY_MS;
    this.timer = 0;
    this.exits = "";
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.now();
    });
  }

  watch(changed) {
    this.watchers.add(changed);
  }

  /** Ask at once, and then each second. */
  async now() {
    clearTimeout(this.timer);
    const asked = (this.asked = {});
    try {
      this.status = await getJson("collm/status");
      this.error = null;
      this.wait = EVERY_MS;
      const exits = this.status.exits ?? [];
      if (this.exits !== exits.join()) {
        this.exits = exits.join();
        setExits(exits);
      }
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.error = error;
      this.wait = Math.min(MOST_MS, this.wait * 1.5);
    }
    if (asked !== this.asked) return; // asked again meanwhile
    for (const changed of this.watchers) changed(this.status, this.error);
    if (!document.hidden) this.timer = setTimeout(() => this.now(), this.wait);
  }
}
