// What there is to know about one token: on hover, on tap, and by the arrow keys.

import { announce, byId, el } from "./dom.js";
import { sourceOf } from "./sources.js";

const card = () => byId("token-card");
let pinned = null;

/** Let the tokens in `root` be looked at. `tokenOf(span)` gives {token, index, total}. */
export function inspectable(root, tokenOf) {
  root.addEventListener("pointerover", (event) => {
    if (event.pointerType === "touch" || pinned) return;
    const span = spanOf(event.target);
    if (span) show(span, tokenOf(span));
    else hide();
  });
  root.addEventListener("pointerleave", () => {
    if (!pinned) hide();
  });
  root.addEventListener("click", (event) => {
    const span = spanOf(event.target);
    if (!span || !getSelection().isCollapsed) return;
    if (pinned === span) release();
    else pin(span, tokenOf(span));
  });
  root.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (move === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    const spans = [...root.querySelectorAll(".t:not(.done)")];
    if (!spans.length) return;
    event.preventDefault();
    const from = spans.indexOf(pinned);
    const to = from < 0 ? (move > 0 && move < Infinity ? 0 : spans.length - 1) : from + move;
    const span = spans[Math.max(0, Math.min(spans.length - 1, to))];
    const known = tokenOf(span);
    pin(span, known);
    span.scrollIntoView({ block: "nearest" });
    announce(inWords(known));
  });
  root.addEventListener("blur", () => {
    if (pinned && root.contains(pinned)) release();
  });
}

/** Put the card away. Returns whether there was one that somebody had opened. */
export function release() {
  const was = pinned !== null;
  pinned?.classList.remove("looked-at");
  pinned = null;
  hide();
  return was;
}

function spanOf(target) {
  return target instanceof Element ? target.closest(".t") : null;
}

function pin(span, known) {
  pinned?.classList.remove("looked-at");
  pinned = span;
  span.classList.add("looked-at");
  show(span, known);
}

function hide() {
  card().hidden = true;
}

function show(span, known) {
  if (!known) return;
  const box = card();
  box.replaceChildren(...content(known));
  box.hidden = false;
  const at = span.getClientRects()[0];
  if (!at) return hide();
  const { width, height } = box.getBoundingClientRect();
  const room = document.documentElement.clientWidth;
  const left = Math.max(8, Math.min(room - width - 8, at.left + at.width / 2 - width / 2));
  const above = at.top - height - 8;
  box.style.left = `${left}px`;
  box.style.top = `${above > 8 ? above : at.bottom + 8}px`;
}

function content({ token, index, total }) {
  const source = sourceOf(token.source);
  const rows = [el("div.card-head", {}, el(`span.swatch.${source.style}`), el("b", {}, source.short))];
  const line = (name, value) => rows.push(el("div.card-line", {}, el("span", {}, name), el("span", {}, value)));
  const { confidence } = token;
  if (confidence !== undefined) {
    const meter = el("span.meter", {}, el("span"));
    meter.firstChild.style.width = percent(confidence);
    line("Confidence", el("span.card-meter", {}, meter, percent(confidence)));
  }
  if (token.ms !== undefined) line("Time", `${token.ms.toFixed(token.ms < 10 ? 1 : 0)} ms`);
  if (token.by) line("Let pass by", token.by);
  if (index !== undefined) line("Token", `${index + 1} of ${total}`);
  line("Text", el("code", {}, visible(token.text)));
  if (token.provisional) rows.push(el("p.card-note", {}, "Provisional: no cloud has checked it."));
  if (token.stood) rows.push(el("p.card-note", {}, "First shown as a preview; it stood."));
  if (token.was !== undefined) {
    rows.push(el("p.card-note", {}, "Corrected. The preview went on: ", el("code", {}, visible(token.was))));
  } else if (token.fixed) rows.push(el("p.card-note", {}, "Corrected after a preview."));
  return rows;
}

function inWords({ token, index, total }) {
  const parts = [visible(token.text), sourceOf(token.source).words];
  if (token.confidence !== undefined) parts.push(`${percent(token.confidence)} sure`);
  if (token.ms !== undefined) parts.push(`${token.ms.toFixed(1)} milliseconds`);
  if (token.by) parts.push(`by ${token.by}`);
  if (token.provisional) parts.push("provisional");
  if (token.fixed) parts.push("corrected");
  if (index !== undefined) parts.push(`token ${index + 1} of ${total}`);
  return parts.join(", ");
}

const percent = (share) => `${Math.round(100 * share)} %`;
const visible = (text) => (text === "" ? "(nothing yet)" : text.replaceAll("\n", "↵").replaceAll(" ", "·"));
