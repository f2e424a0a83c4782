// Who runs which layers, drawn: device, edge server, cloud, from top to bottom, each with its
// health and its share of the layers, and exits where they sit.

import { svg } from "./dom.js";

const WIDTH = 272;
const NODE = 74;
const GAP = 30;
const PAD = 12;

const NAMES = { device: "This device", "edge server": "Edge server", cloud: "Cloud" };

/** An SVG of `status.tiers`; null without a status. */
export function topology(status) {
  const tiers = status.tiers ?? [];
  const height = tiers.length * NODE + Math.max(0, tiers.length - 1) * GAP;
  const drawing = svg("svg.topology", {
    viewBox: `0 0 ${WIDTH} ${height}`,
    role: "img",
    "aria-label": inWords(status),
  });
  tiers.forEach((tier, at) => {
    const top = at * (NODE + GAP);
    if (at > 0) drawing.append(...link(tier, top, tiers[at - 1]));
    drawing.append(node(tier, top, status));
  });
  return drawing;
}

/** From the device to the last tier: whether all are there, and the round trip; null: none is above. */
export function wayUp(status) {
  const above = status?.tiers?.slice(1) ?? [];
  if (!above.length) return null;
  const trips = above.map((tier) => tier.rtt_ms);
  const known = trips.every((ms) => typeof ms === "number");
  return { ok: above.every((tier) => tier.ok), rtt_ms: known ? trips.reduce((sum, ms) => sum + ms) : null };
}

function node(tier, top, status) {
  const group = svg(`g.tier.${tier.ok ? "up" : "down"}`, { transform: `translate(0 ${top})` });
  group.append(
    svg("rect.tier-box", { x: 0.5, y: 0.5, width: WIDTH - 1, height: NODE - 1, rx: 10 }),
    ...health(tier),
    text("tier-name", PAD + 16, 24, NAMES[tier.role] ?? tier.role),
    text("tier-note end", WIDTH - PAD, 24, range(tier)),
    text("tier-note", PAD, 43, address(tier)),
  );
  if (tier.error) group.prepend(svg("title", {}, tier.error));
  if (tier.sessions !== undefined && tier.sessions !== null) {
    const words = `${tier.sessions} ${tier.sessions === 1 ? "session" : "sessions"}`;
    group.append(text("tier-note end", WIDTH - PAD, 43, words));
  }
  group.append(...layers(tier, status));
  return group;
}

/** A full dot for well, an empty one with a stroke through it for away: not by colour alone. */
function health(tier) {
  const dot = svg("circle.health", { cx: PAD + 5, cy: 19.5, r: 4.5 });
  if (tier.ok) return [dot];
  return [dot, svg("line.health", { x1: PAD + 1, y1: 23.5, x2: PAD + 9, y2: 15.5 })];
}

function layers(tier, { layers: count = 0, exits = [] }) {
  if (!count) return [];
  const drawn = [];
  const step = (WIDTH - 2 * PAD) / count;
  const gap = Math.min(1.5, step / 4);
  for (let layer = 0; layer < count; layer += 1) {
    const ours = layer >= tier.first && layer < tier.last;
    const x = PAD + layer * step;
    drawn.push(svg(`rect.layer${ours ? ".ours" : ""}`, { x, y: 54, width: step - gap, height: 7, rx: 1.5 }));
  }
  if (tier.role !== "device") return drawn;
  for (const exit of exits) {
    if (exit > tier.last) continue;
    const x = PAD + exit * step - gap / 2;
    drawn.push(svg("path.exit-mark", { d: `M${x - 3.5} 69.5h7l-3.5-5.5z` }));
  }
  return drawn;
}

function link(tier, top, below) {
  const x = PAD + 5;
  const away = tier.ok ? "" : ".away";
  const words = tier.ok ? milliseconds(tier.rtt_ms) : below.ok ? "no connection" : "not known";
  return [
    svg(`line.tier-link${away}`, { x1: x, x2: x, y1: top - GAP + 1, y2: top - 1 }),
    text("tier-note", x + 11, top - GAP / 2 + 4, words),
  ];
}

function text(classes, x, y, words) {
  const made = svg("text", { x, y, class: classes }, words);
  return made;
}

const milliseconds = (ms) => (ms === undefined || ms === null ? "connected" : `${ms.toFixed(1)} ms there and back`);
const range = ({ first, last }) =>
  last > first + 1 ? `layers ${first + 1} to ${last}` : last > first ? `layer ${last}` : "no layers";
const short = (words, most) => (words.length > most ? `${words.slice(0, most - 1)}…` : words);
const address = (tier) => short(tier.role === "device" ? "runs this page’s server" : (tier.address ?? ""), 30);

function inWords({ tiers = [], exits = [] }) {
  const parts = tiers.map((tier, at) => {
    const name = NAMES[tier.role] ?? tier.role;
    const away = tiers[at - 1]?.ok === false ? "not known" : `away${tier.error ? `: ${tier.error}` : ""}`;
    const state = tier.ok ? "well" : away;
    return `${name}: ${range(tier)}, ${state}`;
  });
  if (exits.length) parts.push(`exits after layers ${exits.join(", ")}`);
  return parts.join(". ");
}
