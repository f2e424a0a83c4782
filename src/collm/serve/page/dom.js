// Elements made and found. Text is always set as text: nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element: `el("p.note", {title: "x", onclick: f}, "text", child, null)`. */
export function el(spec, props = {}, ...children) {
  const [tag, ...classes] = spec.split(".");
  const made = document.createElement(tag || "div");
  if (classes.length) made.className = classes.join(" ");
  set(made, props);
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

/** The same in SVG. */
export function svg(spec, props = {}, ...children) {
  const [tag, ...classes] = spec.split(".");
  const made = document.createElementNS(SVG, tag);
  if (classes.length) made.setAttribute("class", classes.join(" "));
  set(made, props);
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

function set(made, props) {
  for (const [key, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key === "value" && "value" in made && made.namespaceURI !== SVG) made.value = value;
    else made.setAttribute(key, value === true ? "" : String(value));
  }
}

/** One of the icons in icons.svg; decoration only, its button carries the name. */
export function icon(name) {
  const use = svg("use", { href: `page/icons.svg#${name}` });
  return svg("svg.icon", { "aria-hidden": "true", focusable: "false" }, use);
}

/** A button that shows an icon and is named by its label. */
export function iconButton(name, label, onclick, props = {}) {
  const { spec = "button.icon-button", ...rest } = props;
  return el(spec, { type: "button", "aria-label": label, title: label, onclick, ...rest }, icon(name));
}

/** The element with this id. A missing one is a mistake in index.html. */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`index.html has no #${id}`);
  return found;
}

let announced = 0;

/** Say something to screen readers, once, without moving the focus. */
export function announce(text) {
  const region = byId("announcer");
  // The same text twice would be no change, and so not be read.
  region.textContent = announced++ % 2 ? `${text}\u00a0` : text;
}

const FRAME_MS = 70; // a frame costs more than the tokens in it, and fourteen a second read well

/** A function that asks for `work` to be done in a frame to come: at most every `FRAME_MS`. */
export function inFrames(work) {
  let asked = false;
  let last = 0;
  const draw = (now) => {
    asked = false;
    last = now ?? performance.now();
    work();
  };
  return () => {
    if (asked) return;
    asked = true;
    const wait = last + FRAME_MS - performance.now();
    // A hidden page draws no frames, but its conversation still has to be kept up.
    if (document.hidden) setTimeout(draw, 200);
    else if (wait > 8) setTimeout(() => requestAnimationFrame(draw), wait - 8);
    else requestAnimationFrame(draw);
  };
}
