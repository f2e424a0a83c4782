// What an answer is asked with: which settings there are, what of them goes into a request, and
// the dialog to change them.

/* global kept */
import { byId, el } from "./dom.js";
import { MODES } from "./sources.js";

const KEY = "collm.settings";

// `only`: the modes in which the server takes the field. Empty fields are not sent.
const FIELDS = [
  { key: "temperature", label: "Temperature", hint: "0 takes the likeliest token", min: 0, max: 2, step: "any" },
  { key: "top_p", label: "Top p", hint: "Likeliest tokens up to this sum", min: 0, max: 1, step: "any" },
  { key: "top_k", label: "Top k", hint: "Only the k likeliest; 0 keeps all", min: 0, max: 16777216, step: 1 },
  { key: "seed", label: "Seed", hint: "The same seed, the same text", min: 0, max: 9007199254740991, step: 1 },
  { key: "max_tokens", label: "Most tokens", hint: "Of one answer", min: 1, max: 1000000, step: 1 },
];
const COLLM_FIELDS = [
  { key: "threshold", label: "Threshold", hint: "Confidence an exit needs", min: 0, max: 1, step: "any" },
  { key: "criterion", label: "Criterion", hint: "Such as margin:0.3 & coherence", text: true },
  { key: "draft", label: "Longest draft", hint: "Tokens before the cloud is asked", min: 1, max: 128, step: 1 },
  {
    key: "deadline_ms",
    label: "Deadline, ms a token",
    hint: "In mode threshold",
    min: 0,
    max: 3600000,
    step: "any",
    only: ["threshold"],
  },
  {
    key: "ahead",
    label: "Draft ahead",
    hint: "From this confidence on; verified, auto",
    min: 0,
    max: 1,
    step: "any",
    only: ["verified", "auto"],
  },
];

const LOOKUP_ONLY = ["verified", "auto"];

/** Whether a mode takes a setting that goes with `only` these; an unknown mode may. */
const takes = (mode, only) => !only || !mode || only.includes(mode);

/** The settings that a new conversation begins with: those used last. */
export function lastSettings() {
  try {
    const settings = JSON.parse(kept.local.get(KEY) ?? "{}");
    return typeof settings === "object" && settings ? settings : {};
  } catch {
    return {}; // damaged
  }
}

/**
 * A conversation's settings as fields of a request, in `mode` ("": the server's own, `serverMode`).
 * What the mode does not take is not sent: the server would refuse all of it.
 */
export function requestFields(settings, mode, serverMode) {
  const used = mode || serverMode;
  const fields = {};
  for (const { key } of FIELDS) if (settings[key] !== undefined) fields[key] = settings[key];
  if (settings.stop?.length) fields.stop = settings.stop;
  const collm = {};
  if (mode) collm.mode = mode;
  for (const { key, only } of COLLM_FIELDS) {
    if (settings[key] !== undefined && takes(used, only)) collm[key] = settings[key];
  }
  if (settings.lookup && takes(used, LOOKUP_ONLY)) collm.lookup = true;
  if (Object.keys(collm).length) fields.collm = collm;
  return fields;
}

/** How many settings differ from the server's own, for the button's badge. */
export function changedCount(settings) {
  const keys = [...FIELDS, ...COLLM_FIELDS].map(({ key }) => key);
  const set = keys.filter((key) => settings[key] !== undefined).length;
  return set + Boolean(settings.system) + Boolean(settings.stop?.length) + Boolean(settings.lookup);
}

/** The dialog. `apply(settings)` is called when it is confirmed. */
export class SettingsDialog {
  constructor(apply) {
    this.dialog = byId("settings");
    this.form = this.dialog.querySelector("form");
    this.inputs = new Map();
    byId("sampling-fields").append(...FIELDS.map((field) => this.#field(field)));
    byId("collm-fields").append(...COLLM_FIELDS.map((field) => this.#field(field)));
    this.form.addEventListener("submit", () => {
      const settings = this.#read();
      kept.local.set(KEY, JSON.stringify(settings));
      apply(settings);
    });
    byId("settings-reset").addEventListener("click", () => this.#fill({}));
  }

  /** `modes`: those that the next answer is asked for in ("": the server's own). */
  open(settings, status, modes) {
    this.#fill(settings);
    this.#tellUnused(modes.map((mode) => mode || status?.mode || ""));
    const mode = status?.mode ? `The server’s mode is ${status.mode}: ${MODES[status.mode] ?? ""}` : "";
    byId("settings-mode").textContent = mode;
    this.dialog.showModal();
    byId("set-system").focus();
  }

  #field({ key, label, hint, text, min, max, step }) {
    const id = `set-${key}`;
    const kind = text ? { type: "text", maxlength: 500 } : { type: "number", min, max, step, inputmode: "decimal" };
    const input = el("input", { id, name: key, autocomplete: "off", "aria-describedby": `${id}-hint`, ...kind });
    this.inputs.set(key, input);
    return el(
      "div.field",
      {},
      el("label", { for: id }, label),
      input,
      el("small", { id: `${id}-hint` }, hint),
    );
  }

  /** Say which settings do nothing in the modes that are chosen. */
  #tellUnused(modes) {
    const where = [...new Set(modes)].join(" and ");
    for (const { key, hint, only } of COLLM_FIELDS) {
      const unused = !modes.some((mode) => takes(mode, only));
      byId(`set-${key}-hint`).textContent = unused ? `Not used in mode ${where}` : hint;
    }
    byId("set-lookup-unused").textContent = modes.some((mode) => takes(mode, LOOKUP_ONLY)) ? "" : `Not used in mode ${where}`;
  }

  #fill(settings) {
    for (const [key, input] of this.inputs) input.value = settings[key] ?? "";
    byId("set-system").value = settings.system ?? "";
    byId("set-stop").value = (settings.stop ?? []).map((line) => line.replaceAll("\n", "\\n")).join("\n");
    byId("set-lookup").checked = settings.lookup === true;
  }

  #read() {
    const settings = {};
    for (const [key, input] of this.inputs) {
      if (input.value.trim() === "") continue;
      settings[key] = input.type === "number" ? input.valueAsNumber : input.value.trim();
    }
    const system = byId("set-system").value.trim();
    if (system) settings.system = system;
    // A line is a stop string; \n in it stands for a line's end.
    const stop = byId("set-stop").value.split("\n").filter((line) => line !== "");
    if (stop.length) settings.stop = stop.map((line) => line.replaceAll("\\n", "\n")).slice(0, 16);
    if (byId("set-lookup").checked) settings.lookup = true;
    return settings;
  }
}
