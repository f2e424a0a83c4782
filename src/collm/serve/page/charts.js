// Two small charts: shares as one stacked bar, and a figure over the last minute as a line.

import { el, svg } from "./dom.js";

/** A stacked bar of sources. Call `draw(listed)` with what `listed()` gives. */
export class ShareBar {
  constructor(spec = "div.share-bar") {
    this.element = el(spec, { role: "img", "aria-label": "No tokens yet" });
    this.parts = new Map();
  }

  draw(rows) {
    const total = rows.reduce((sum, row) => sum + row.count, 0);
    rows.forEach((row, at) => {
      let part = this.parts.get(row.source);
      if (!part) {
        part = el(`span.share.${row.style}`);
        this.parts.set(row.source, part);
      }
      part.style.flexGrow = row.count;
      part.style.order = at;
      if (part.parentNode !== this.element) this.element.append(part);
    });
    const named = new Set(rows.map((row) => row.source));
    for (const [source, part] of this.parts) if (!named.has(source)) part.remove();
    const words = rows.map((row) => `${row.short} ${Math.round((100 * row.count) / total)} %`);
    this.element.setAttribute("aria-label", words.join(", ") || "No tokens yet");
  }
}

const WIDTH = 240;
const HEIGHT = 36;
const INSET = 3; // the last point's dot stays inside

/** The last `most` values as a line from left to right; null is a gap. */
export class Sparkline {
  constructor(label, most = 60) {
    this.label = label;
    this.most = most;
    this.values = [];
    this.line = svg("path.spark-line");
    this.area = svg("path.spark-area");
    this.dot = svg("circle.spark-dot", { r: 2.5 });
    this.element = svg(
      "svg.spark",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label },
      svg("line.spark-base", { x1: 0, x2: WIDTH, y1: HEIGHT - 1, y2: HEIGHT - 1 }),
      this.area,
      this.line,
      this.dot,
    );
  }

  push(value) {
    this.values.push(value);
    if (this.values.length > this.most) this.values.shift();
    const known = this.values.filter((one) => one !== null);
    const top = Math.max(...known, 0) * 1.15 || 1;
    const step = WIDTH / (this.most - 1);
    const start = this.most - this.values.length;
    let path = "";
    let area = "";
    let from = null; // where the line now drawn began
    this.values.forEach((one, at) => {
      const x = ((start + at) * step - INSET).toFixed(1);
      const y = (HEIGHT - 2 - ((one ?? 0) / top) * (HEIGHT - 6)).toFixed(1);
      if (one !== null) {
        path += `${from === null ? "M" : "L"}${x} ${y}`;
        area += from === null ? `M${x} ${HEIGHT - 1}L${x} ${y}` : `L${x} ${y}`;
        from ??= x;
        this.dot.setAttribute("cx", x);
        this.dot.setAttribute("cy", y);
      }
      if (from !== null && (one === null || at === this.values.length - 1)) {
        const end = one === null ? ((start + at - 1) * step - INSET).toFixed(1) : x;
        area += `L${end} ${HEIGHT - 1}Z`;
        from = null;
      }
    });
    this.line.setAttribute("d", path);
    this.area.setAttribute("d", area);
    this.dot.toggleAttribute("hidden", value === null);
    const words = known.length ? `${known.at(-1).toFixed(1)} ms now, ${Math.max(...known).toFixed(1)} ms at most` : "unknown";
    this.element.setAttribute("aria-label", `${this.label}: ${words}`);
  }
}
