// Markdown, lightly, from text that comes in pieces: paragraphs, headings, lists, fenced code,
// bold and inline code. Each piece knows its token, and nothing that is drawn is drawn again.
//
// Not covered: tables, links, images, quotes, emphasis by one star. Their marks show as they are.

import { el } from "./dom.js";

const MAY_BE_MARK = /^ {0,12}(#{0,6}|[-*+•]|\d{0,3}[.)]?|`{0,2})$/;
const HEADING = /^ {0,3}(#{1,6}) $/;
const ITEM = /^( {0,12})([-*+•]|\d{1,3}[.)]) $/;
const FENCE = /^ {0,3}```[^`\n]{0,40}\n?$/;

/**
 * Writes text into `root`. `span(token)` makes the element for one token's text; a token whose text
 * falls into several places gets several.
 */
export class MarkdownWriter {
  constructor(root, span) {
    this.root = root;
    this.span = span;
    this.block = null; // what is written into: p, heading, the body of an item, code
    this.inner = null; // the innermost open element of the block
    this.kind = "";
    this.lists = []; // open ones, outermost first: {element, indent}
    this.open = { strong: null, code: null };
    this.last = null;
    this.lastToken = -1;
    this.held = []; // [character run, token] at the beginning of a line: a mark, perhaps
    this.heldText = "";
    this.atStart = true;
    this.blank = false;
    this.star = null; // the token of a star that may be the first of two
  }

  /** Where the next text will stand. */
  get end() {
    return this.inner ?? this.root;
  }

  write(text, token) {
    if (!this.atStart && !this.star && this.kind !== "pre" && !/[\n*`]/.test(text)) {
      this.#put(text, token); // nearly every token
      return;
    }
    let plain = "";
    for (const character of text) {
      const special = this.atStart || this.star !== null || "\n*`".includes(character);
      if (!special) {
        plain += character;
        continue;
      }
      if (plain) this.#put(plain, token);
      plain = "";
      this.#character(character, token);
    }
    if (plain) this.#put(plain, token);
  }

  /** Show what was held back for a mark that did not come. */
  finish() {
    if (this.held.length) this.#release();
    this.#settleStar();
    this.#unwrap();
  }

  #character(character, token) {
    if (this.atStart) this.#lineStart(character, token);
    else if (this.kind === "pre") this.#inCode(character, token);
    else if (character === "\n") this.#newLine(token);
    else this.#inline(character, token);
  }

  // ------------------------------------------------------------------ beginnings of lines

  #lineStart(character, token) {
    this.held.push([character, token]);
    this.heldText += character;
    const text = this.heldText;
    if (this.kind === "pre") {
      if (character === "\n") {
        if (FENCE.test(text)) this.#endCode();
        else this.#release();
      } else if (!/^ {0,3}(`{0,2}$|```)/.test(text)) this.#release();
    } else if (character === "\n") {
      if (FENCE.test(text)) this.#beginCode();
      else if (text.trim() === "") this.#blankLine();
      else this.#release();
    } else if (FENCE.test(text)) {
      return; // its language follows
    } else if (HEADING.test(text)) {
      this.lists = [];
      this.#begin(`h${Math.min(6, text.trim().length + 2)}`, "heading");
      this.#marks("mark.done");
    } else if (ITEM.test(text)) this.#item(ITEM.exec(text));
    else if (!MAY_BE_MARK.test(text)) this.#release();
  }

  #take() {
    const held = this.held;
    this.held = [];
    this.heldText = "";
    this.atStart = false;
    return held;
  }

  /** It was no mark: the line is text. */
  #release() {
    const held = this.#take();
    if (this.kind !== "pre") {
      const indented = /^ {2,}/.test(held.map(([text]) => text).join(""));
      if (!this.block || this.blank || this.kind === "heading") {
        if (!indented) this.lists = [];
        this.#begin("p", "p");
      } else if (this.block) {
        this.#put("\n", held[0][1]);
      }
    }
    this.blank = false;
    for (const [character, token] of held) this.#character(character, token);
  }

  #blankLine() {
    this.held = [];
    this.heldText = "";
    this.blank = true;
  }

  /** Marks are drawn, though not seen, so that every token has its place. */
  #marks(classes) {
    for (const [text, token] of this.#take()) {
      const made = this.span(token);
      made.classList.add(...classes.split("."));
      made.textContent = text;
      this.inner.append(made);
    }
    this.last = null;
    this.blank = false;
  }

  #item([, spaces, mark]) {
    const indent = spaces.length;
    const tag = /\d/.test(mark) ? "ol" : "ul";
    while (this.lists.length && this.lists.at(-1).indent > indent) this.lists.pop();
    let list = this.lists.at(-1);
    if (!list || indent >= list.indent + 2 || list.element.localName !== tag) {
      const nested = list && indent >= list.indent + 2;
      if (list && !nested) this.lists.pop();
      const parent = nested ? list.element.lastElementChild.lastElementChild : this.root;
      list = { element: el(tag), indent };
      parent.append(list.element);
      this.lists.push(list);
    }
    const held = this.#take();
    const marker = el("span.marker");
    const body = el("div");
    list.element.append(el("li", {}, marker, body));
    this.#settle();
    for (const [text, token] of held) {
      if (text === " ") continue;
      const made = this.span(token);
      made.textContent = "-*+".includes(text) ? "•" : text;
      marker.append(made);
    }
    this.block = this.inner = body;
    this.kind = "item";
    this.last = null;
    this.blank = false;
  }

  // --------------------------------------------------------------------------- blocks

  #begin(tag, kind) {
    this.#settle();
    const item = this.lists.at(-1)?.element.lastElementChild?.lastElementChild;
    this.block = this.inner = el(tag);
    this.kind = kind;
    this.last = null;
    (item ?? this.root).append(this.block);
  }

  /** Before another block: what is open in this one will not be closed any more. */
  #settle() {
    this.#settleStar();
    this.#unwrap();
  }

  #beginCode() {
    this.#settle();
    const held = this.#take();
    if (this.blank && held[0][0] !== " ") this.lists = [];
    const language = held.map(([text]) => text).join("").replace(/[`\s]/g, "").slice(0, 20);
    const code = el("code");
    const label = language ? `Code, ${language}` : "Code";
    const pre = el("pre", { tabindex: "0", role: "region", "aria-label": label }, code);
    const item = this.lists.at(-1)?.element.lastElementChild?.lastElementChild;
    (item ?? this.root).append(pre);
    this.block = this.inner = code;
    this.kind = "pre";
    this.last = null;
    this.blank = false;
    this.atStart = true;
  }

  #inCode(character, token) {
    this.#put(character, token);
    if (character === "\n") this.atStart = true;
  }

  #endCode() {
    this.#take();
    this.block = this.inner = null;
    this.kind = "";
    this.last = null;
    this.atStart = true;
  }

  #newLine() {
    this.#settleStar();
    this.atStart = true;
    if (this.kind === "heading") {
      this.#unwrap();
      this.block = this.inner = null;
    }
  }

  // --------------------------------------------------------------------------- inline

  #inline(character, token) {
    if (this.star !== null) {
      const first = this.star;
      this.star = null;
      if (character === "*" && !this.open.code) {
        this.#toggle("strong", [["*", first], ["*", token]]);
        return;
      }
      this.#put("*", first);
    }
    if (character === "*" && !this.open.code) this.star = token;
    else if (character === "`") this.#toggle("code", [["`", token]]);
    else this.#put(character, token);
  }

  #settleStar() {
    if (this.star === null) return;
    const token = this.star;
    this.star = null;
    this.#put("*", token);
  }

  #toggle(tag, marks) {
    const open = this.open[tag];
    const shown = marks.map(([text, token]) => {
      const made = this.span(token);
      made.classList.add("mark");
      made.textContent = text;
      return made;
    });
    this.last = null;
    if (open) {
      // No star counts inside code, so what is opened last is closed first.
      this.inner = open.element.parentNode;
      for (const mark of [...open.marks, ...shown]) mark.classList.add("done");
      open.element.after(...shown);
      this.open[tag] = null;
      return;
    }
    const element = el(tag);
    this.inner.append(...shown, element);
    this.open[tag] = { element, marks: shown };
    this.inner = element;
  }

  /** What was opened and never closed was no mark: show it, and take its effect back. */
  #unwrap() {
    for (const tag of Object.keys(this.open)) {
      const open = this.open[tag];
      if (!open) continue;
      this.open[tag] = null;
      for (const mark of open.marks) mark.classList.remove("mark");
      open.element.replaceWith(...open.element.childNodes);
    }
    this.inner = this.block;
    this.last = null;
  }

  #put(text, token) {
    if (!this.block) {
      this.#begin("p", "p");
    }
    if (this.last && this.lastToken === token) {
      this.last.data += text;
      return;
    }
    const made = this.span(token);
    this.last = document.createTextNode(text);
    made.append(this.last);
    this.lastToken = token;
    this.inner.append(made);
  }
}
