// An answer's tokens on the page: each a tinted piece of text, appended once.

import { el } from "./dom.js";
import { MarkdownWriter } from "./markdown.js";
import { sourceOf } from "./sources.js";

/** Draws an Answer into an element, and keeps it drawn. */
export class AnswerWriter {
  constructor(root, answer) {
    this.root = root;
    this.answer = answer;
    this.drawn = 0;
    this.finished = false;
    this.shown = []; // previews on the page: {preview, span}
    this.tail = el("span.tail");
    this.markdown = new MarkdownWriter(root, (index) => this.#span(index));
  }

  /** Bring the page up to date: a few appended elements a frame. */
  draw() {
    const { answer, markdown } = this;
    const { tokens } = answer;
    if (!tokens.length && answer.kept && !this.drawn) {
      markdown.write(answer.kept, -1); // its tokens are not kept any more
      this.drawn = 1;
    }
    while (this.drawn < tokens.length) {
      markdown.write(tokens[this.drawn].text, this.drawn);
      this.drawn += 1;
    }
    if (!answer.live && !this.finished) {
      markdown.finish();
      this.finished = true;
    }
    this.#previews();
    this.#place();
  }

  #span(index) {
    const made = document.createElement("span");
    const token = this.answer.tokens[index];
    if (!token) return made;
    made.className = classes(token);
    made.dataset.i = index;
    return made;
  }

  /** Previews stand after everything certain; only those that changed are touched. */
  #previews() {
    const { previews } = this.answer;
    const same = (at) => at < previews.length && this.shown[at].preview === previews[at];
    let keep = 0;
    // Those at the front go first, as certain text takes their place.
    while (this.shown.length && this.shown[0].preview !== previews[0]) this.shown.shift().span.remove();
    while (keep < this.shown.length && same(keep)) keep += 1;
    for (const { span } of this.shown.splice(keep)) span.remove();
    for (let at = this.shown.length; at < previews.length; at += 1) {
      const preview = previews[at];
      const span = el("span", { "data-preview": at }, preview.text);
      span.className = classes(preview);
      this.tail.append(span);
      this.shown.push({ preview, span });
    }
    if (previews.length) this.shown.forEach(({ span }, at) => (span.dataset.preview = at));
  }

  #place() {
    const { end } = this.markdown;
    if (!this.answer.live) this.tail.remove();
    else if (this.tail.parentNode !== end || this.tail.nextSibling) end.append(this.tail);
  }

  /** Mark tokens that another answer has not, or take the marks away. */
  mark(differs) {
    for (const span of this.root.querySelectorAll("[data-i]")) {
      span.classList.toggle("differs", differs?.[Number(span.dataset.i)] === true);
    }
  }
}

function classes(token) {
  let all = `t ${sourceOf(token.source).style}`;
  if (token.provisional) all += " provisional";
  if (token.fixed) all += " fixed";
  else if (token.stood) all += " stood";
  return all;
}
