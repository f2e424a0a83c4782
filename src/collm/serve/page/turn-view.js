// One turn on the page: the question, and its answer, or two side by side with what differs.

import { AnswerView } from "./answer-view.js";
import { difference, verdict } from "./compare.js";
import { el } from "./dom.js";

const COMPARE_MS = 400;

/** `acts` as in AnswerView; `moved()` is called when the page may have grown. */
export class TurnView {
  constructor(turn, acts, { last, moved }) {
    this.turn = turn;
    this.acts = acts;
    this.last = last;
    this.moved = moved;
    this.views = [];
    this.unwatch = [];
    this.verdict = el("p.verdict", { "aria-live": "off" });
    this.answers = el(`div.answers${turn.compare ? ".pair" : ""}`);
    this.element = el(
      "article.turn",
      { "aria-label": "Question and answer" },
      el("div.ask", {}, el("p.bubble", {}, el("span.visually-hidden", {}, "You: "), turn.ask)),
      turn.compare ? this.verdict : null,
      this.answers,
    );
    this.show();
  }

  /** Draw the answers anew: others are chosen, or there are more of them. */
  show() {
    this.close();
    const { turn } = this;
    const shown = turn.compare ? turn.answers : [turn.answers[turn.chosen]].filter(Boolean);
    this.views = shown.map((answer) => this.#view(answer));
    this.answers.replaceChildren(...this.views.map((view) => view.element));
    if (turn.compare) {
      this.unwatch = turn.answers.map((answer) => answer.watch(() => this.#compareSoon()));
      this.#compare();
    }
    this.moved();
  }

  close() {
    for (const view of this.views) view.close();
    for (const stop of this.unwatch) stop();
    clearTimeout(this.timer);
    this.timer = 0;
    this.views = [];
    this.unwatch = [];
  }

  setLast(last) {
    if (this.last === last) return;
    this.last = last;
    for (const view of this.views) {
      view.place.last = last;
      view.refresh();
    }
  }

  #view(answer) {
    const { turn } = this;
    const view = new AnswerView(answer, this.acts, {
      side: turn.compare,
      last: this.last,
      at: turn.answers.indexOf(answer),
      of: turn.answers.length,
      chosen: () => turn.answers[turn.chosen] === answer,
      step: (by) => {
        turn.chosen = Math.max(0, Math.min(turn.answers.length - 1, turn.chosen + by));
        this.show();
        this.acts.choose(turn.answers[turn.chosen]);
      },
    });
    view.ondraw = this.moved;
    return view;
  }

  /** While both are written, look a few times a second. */
  #compareSoon() {
    if (!this.timer) this.timer = setTimeout(() => this.#compare(), COMPARE_MS);
  }

  #compare() {
    this.timer = 0;
    const [left, right] = this.turn.answers;
    if (!left || !right) return;
    const done = !left.live && !right.live;
    // While one is still behind, what the other has more is no difference yet.
    const texts = [left, right].map((answer) => answer.tokens.map((token) => token.text));
    const most = Math.min(texts[0].length, texts[1].length);
    const compared = done ? texts : texts.map((tokens) => tokens.slice(0, most));
    const found = difference(...compared);
    this.verdict.textContent = verdict(found, compared.map((tokens) => tokens.length), done);
    this.views[0]?.writer.mark(found.left);
    this.views[1]?.writer.mark(found.right);
    this.moved(); // marked tokens are bold, and lines break elsewhere
  }
}
