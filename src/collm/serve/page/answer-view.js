// One answer on the page: its text, what went wrong with it, its summary and its buttons.

import { ShareBar } from "./charts.js";
import { announce, el, iconButton, inFrames } from "./dom.js";
import { inspectable } from "./inspector.js";
import { listed } from "./sources.js";
import { milliseconds, percent } from "./words.js";
import { AnswerWriter } from "./writer.js";

/**
 * `acts`: {retry, regenerate, details, choose}, each called with the answer. `place`:
 * {side, last, at, of, step(by)} says where among its question's answers it stands.
 */
export class AnswerView {
  constructor(answer, acts, place) {
    this.answer = answer;
    this.acts = acts;
    this.place = place;
    this.text = el("div.text", {
      tabindex: "0",
      role: "group",
      "aria-label": "Answer; the arrow keys look at single tokens",
    });
    this.note = el("div.answer-note");
    this.bar = new ShareBar("div.share-bar.small");
    this.foot = el("footer.answer-foot");
    this.writer = new AnswerWriter(this.text, answer);
    this.element = el("section.answer", { "aria-label": label(answer) }, this.#head(), this.text, this.note, this.foot);
    inspectable(this.text, (span) => this.#token(span));
    this.drawSoon = inFrames(() => this.#draw());
    this.unwatch = answer.watch(this.drawSoon);
    this.wasLive = answer.live;
    this.countdown = 0;
    this.#draw();
  }

  /** Not on the page any more. */
  close() {
    this.unwatch();
    clearInterval(this.countdown);
    this.closed = true;
  }

  #head() {
    if (!this.place.side) return null;
    return el("header.answer-head", {}, el("span.mode-chip", {}, this.answer.mode || "server’s mode"));
  }

  #token(span) {
    const { tokens, previews } = this.answer;
    if (span.dataset.i !== undefined) {
      const index = Number(span.dataset.i);
      return { token: tokens[index], index, total: tokens.length };
    }
    const token = previews[Number(span.dataset.preview)];
    return token && { token };
  }

  #draw() {
    if (this.closed) return;
    const { answer } = this;
    this.writer.draw();
    const key = `${answer.state} ${answer.offline} ${this.place.at} ${this.place.of} ${this.place.last}`;
    if (key !== this.stateKey) {
      this.stateKey = key;
      this.element.classList.toggle("live", answer.live);
      this.element.dataset.state = answer.state;
      this.text.setAttribute("aria-busy", String(answer.live));
      this.#notes();
      this.#footer();
      if (this.wasLive && !answer.live) this.#say();
      this.wasLive = answer.live;
    }
    this.ondraw?.();
  }

  #notes() {
    clearInterval(this.countdown);
    const { answer } = this;
    const parts = [];
    if (answer.state === "queued" && this.place.side) {
      parts.push(el("p.quiet", {}, "Waits for the other answer, so that neither slows the other."));
    }
    if (answer.offline) {
      parts.push(
        el("p.quiet.away", {}, "The cloud is away. This device writes on; what is striped will be checked when the cloud is back."),
      );
    }
    if (answer.state === "failed") parts.push(this.#failure(answer.error));
    if (answer.state === "stopped") parts.push(el("p.quiet", {}, "Stopped."));
    if (answer.state === "done" && answer.finish === "length") {
      parts.push(el("p.quiet", {}, `Ended at its limit of ${answer.tokens.length} tokens.`));
    }
    if (answer.state === "done" && answer.summary?.provisional) {
      const count = answer.summary.provisional;
      parts.push(el("p.quiet.away", {}, `The cloud stayed away: ${count} tokens were never checked.`));
    }
    this.note.replaceChildren(...parts);
  }

  #failure(error) {
    const message = el("p", {}, error?.message ?? "Something went wrong.");
    const box = el("div.failure", { role: "alert" }, message);
    if (!this.place.last) return box;
    const again = el("button.button", { type: "button", onclick: () => this.acts.retry(this.answer) }, "Try again");
    box.append(again);
    if (error?.retrySeconds) {
      const ready = Date.now() + 1000 * error.retrySeconds;
      const tell = () => {
        const left = Math.ceil((ready - Date.now()) / 1000);
        again.textContent = left > 0 ? `Try again (free in about ${left} s)` : "Try again";
        if (left <= 0) clearInterval(this.countdown);
      };
      tell();
      this.countdown = setInterval(tell, 1000);
    }
    return box;
  }

  #footer() {
    const { answer, place, acts } = this;
    if (answer.live) {
      this.foot.replaceChildren();
      this.foot.hidden = false; // its height is kept for what will be there
      return;
    }
    const rows = listed(answer.counts);
    this.bar.draw(rows);
    const words = summary(answer, place.side);
    const details = words && el(
      "button.summary",
      { type: "button", title: "Show in the side panel", onclick: () => acts.details(answer) },
      rows.length ? this.bar.element : null,
      el("span", {}, words),
    );
    const buttons = el("div.answer-buttons");
    if (place.of > 1 && !place.side) {
      buttons.append(
        iconButton("left", "Previous answer", () => place.step(-1), { disabled: place.at === 0 }),
        el("span.quiet", {}, `${place.at + 1} of ${place.of}`),
        iconButton("right", "Next answer", () => place.step(1), { disabled: place.at === place.of - 1 }),
      );
    }
    if (place.side && place.last) {
      const chosen = place.chosen();
      buttons.append(
        el(
          "button.button.small",
          { type: "button", "aria-pressed": String(chosen), onclick: () => acts.choose(answer) },
          chosen ? "Goes on from here" : "Go on from this one",
        ),
      );
    }
    if (navigator.clipboard && answer.text) {
      buttons.append(iconButton("copy", "Copy answer", (event) => this.#copy(event.currentTarget)));
    }
    if (place.last && answer.state !== "failed") {
      buttons.append(iconButton("again", "Regenerate", () => acts.regenerate(answer), { "data-act": "regenerate" }));
    }
    this.foot.replaceChildren(...[details, buttons].filter(Boolean));
    this.foot.hidden = !details && !buttons.childElementCount;
  }

  /** Draw state and buttons anew, though the answer has not changed. */
  refresh() {
    this.stateKey = "";
    this.drawSoon();
  }

  async #copy(button) {
    try {
      await navigator.clipboard.writeText(this.answer.text);
      announce("Copied");
      button.classList.add("did");
      setTimeout(() => button.classList.remove("did"), 1200);
    } catch {
      announce("The browser does not let this page copy");
    }
  }

  /** Screen readers hear the whole answer once, not each token. */
  #say() {
    const { state, text, error } = this.answer;
    if (state === "done") announce(`Answer: ${text}`);
    else if (state === "stopped") announce(`Stopped. Answer so far: ${text}`);
    else if (error) announce(error.message);
  }
}

function label(answer) {
  return answer.mode ? `Answer in mode ${answer.mode}` : "Answer";
}

function summary(answer, long) {
  const { counts, tokens, summary: all } = answer;
  const total = tokens.length;
  const parts = [];
  if (all?.mode && !long) parts.push(all.mode);
  if (total) parts.push(`${total} ${total === 1 ? "token" : "tokens"}`);
  if (answer.rate) parts.push(`${answer.rate.toFixed(1)} a second`);
  if (all?.ttft_ms !== undefined && long) parts.push(`first after ${milliseconds(all.ttft_ms)}`);
  const here = listed(counts).filter(({ group }) => group === "device");
  const made = here.reduce((sum, row) => sum + row.count, 0);
  if (total) parts.push(`${percent(made / total)} on this device`);
  if (all && long) parts.push(`${all.rounds} ${all.rounds === 1 ? "round trip" : "round trips"}`);
  return parts.join(" · ");
}
