// Where the question is written: the text, the mode (or two, to compare), send and stop.

import { byId, el } from "./dom.js";
import { MODES } from "./sources.js";

const MOST_LINES_PX = 220;

/** Calls `send(text, modes, compare)` and `stop()`. */
export class Composer {
  constructor({ send, stop }) {
    this.form = byId("composer");
    this.input = byId("ask");
    this.mode = byId("mode");
    this.other = byId("mode-other");
    this.compare = byId("compare");
    this.button = byId("send");
    this.stop = stop;
    this.send = send;
    this.live = false;
    this.modes = "";
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    this.button.addEventListener("click", (event) => {
      if (!this.live) return;
      event.preventDefault();
      stop();
    });
    this.input.addEventListener("input", () => this.#grow());
    this.input.addEventListener("keydown", (event) => {
      // While a word is being composed (Japanese, Chinese …) Enter ends the word.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.submit();
    });
    this.compare.addEventListener("click", () => this.setCompare(!this.comparing));
    this.#grow();
  }

  get comparing() {
    return this.compare.getAttribute("aria-pressed") === "true";
  }

  /** The modes that are asked for ("": the server's own). */
  get asked() {
    return this.comparing ? [this.mode.value, this.other.value] : [this.mode.value];
  }

  submit() {
    const text = this.input.value.trim();
    if (!text || this.live) return;
    const modes = this.asked;
    this.input.value = "";
    this.#grow();
    this.send(text, modes, this.comparing);
  }

  setCompare(on) {
    this.compare.setAttribute("aria-pressed", String(on));
    byId("other-field").hidden = !on;
    if (on && this.other.value === this.mode.value) {
      const another = [...this.other.options].find((option) => option.value && option.value !== this.mode.value);
      if (another) this.other.value = another.value;
    }
  }

  /** Sending turns into stopping while an answer is under way. */
  setLive(live) {
    this.live = live;
    this.form.classList.toggle("live", live);
    const label = live ? "Stop (Escape)" : "Send (Enter)";
    this.button.setAttribute("aria-label", live ? "Stop" : "Send");
    this.button.title = label;
    this.button.querySelector("use").setAttribute("href", `page/icons.svg#${live ? "stop" : "send"}`);
    this.#grow();
  }

  /** The modes that this server offers. */
  setModes(status) {
    const offered = status.modes ?? [];
    const key = `${status.mode} ${offered}`;
    if (key === this.modes) return;
    this.modes = key;
    for (const select of [this.mode, this.other]) {
      const was = select.value;
      select.replaceChildren(
        el("option", { value: "" }, `${status.mode} (default)`),
        ...offered.map((mode) => el("option", { value: mode, title: MODES[mode] ?? "" }, mode)),
      );
      select.value = offered.includes(was) ? was : "";
    }
    if (!this.other.value) this.other.value = offered.find((mode) => mode !== status.mode) ?? "";
    this.compare.disabled = offered.length < 2;
  }

  focus() {
    this.input.focus();
  }

  #grow() {
    this.button.disabled = !this.live && this.input.value.trim() === "";
    this.input.style.height = "auto";
    this.input.style.height = `${Math.min(MOST_LINES_PX, this.input.scrollHeight)}px`;
  }
}
