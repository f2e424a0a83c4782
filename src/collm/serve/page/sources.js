// Where tokens are made: what a source is called, how it looks, in which order it is listed.
//
// A source is `exit@15` (an exit on this device), `server@15` (an edge server's exit), `cloud`
// (the full model), or `edge` (the whole model on this device). Each has a tint and an underline
// of its own, so that colour is never the only difference; the classes are in tokens.css.

const MOST_SHADES = 5;
const known = new Map();
let exits = [];

/** Tell which exits the model has, shallow first, so that each keeps its shade. */
export function setExits(all) {
  exits = [...all].sort((a, b) => a - b);
  known.clear();
}

function rank(layer) {
  if (!exits.includes(layer)) setExits([...exits, layer]);
  const last = Math.max(1, exits.length - 1);
  const most = Math.min(MOST_SHADES, exits.length) - 1;
  return Math.round((exits.indexOf(layer) / last) * most);
}

function describe(source) {
  const [kind, number] = source.split("@");
  const layer = Number(number);
  switch (kind) {
    case "exit":
      return {
        group: "device",
        order: layer,
        short: `Exit ${layer}`,
        words: `this device, exit after layer ${layer}`,
        style: `s-exit-${rank(layer)}`,
      };
    case "server":
      return {
        group: "server",
        order: 1000 + layer,
        short: `Edge server, exit ${layer}`,
        words: `edge server, exit after layer ${layer}`,
        style: "s-server",
      };
    case "cloud":
      return { group: "cloud", order: 3000, short: "Cloud", words: "cloud, full model", style: "s-cloud" };
    case "edge":
      return {
        group: "device",
        order: 2000,
        short: "Device, full model",
        words: "this device, full model",
        style: "s-edge",
      };
    default:
      return {
        group: "other",
        order: 4000,
        short: source || "Unknown",
        words: source || "an unnamed source",
        style: "s-other",
      };
  }
}

/** What there is to say about a source: {group, order, short, words, style}. */
export function sourceOf(source) {
  let found = known.get(source);
  if (!found) {
    found = describe(source);
    known.set(source, found);
  }
  return found;
}

/** Sources with their counts, device first. */
export function listed(counts) {
  return [...Object.entries(counts)]
    .map(([source, count]) => ({ source, count, ...sourceOf(source) }))
    .sort((a, b) => a.order - b.order);
}

/** What a mode does, for people. */
export const MODES = {
  auto: "Chooses by what it measures on the way; the text stays the full model’s.",
  verified: "The device drafts, the cloud checks every token. The text is the full model’s, exactly.",
  threshold: "Exits answer what they are sure of; the cloud finishes the other tokens.",
  refine: "The device writes a segment, the full model scores it and mends what does not stand.",
  standalone: "The device alone, from its exits. No network is used.",
  cloud: "The cloud writes alone. The text is the full model’s, exactly.",
};
