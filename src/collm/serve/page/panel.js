// The side panel: how the answer in view is made, and how its makers are.

import { ShareBar, Sparkline } from "./charts.js";
import { byId, el } from "./dom.js";
import { listed, MODES } from "./sources.js";
import { topology, wayUp } from "./topology.js";
import { bytes, duration, milliseconds, percent } from "./words.js";

const EVERY_MS = 400;

/** Draws into the panel's places in index.html. */
export class Panel {
  constructor() {
    this.bar = new ShareBar();
    byId("panel-bar").append(this.bar.element);
    this.trip = new Sparkline("Round trip to the cloud over the last minute");
    byId("panel-spark").append(this.trip.element);
    this.answer = null;
    this.status = null;
    this.drawnAt = 0;
    this.timer = 0;
    this.topologyOf = "";
    this.totals = { up: 0, down: 0 };
  }

  /** Show this answer (or none) from now on. */
  follow(answer, conversation) {
    this.unwatch?.();
    this.answer = answer;
    this.conversation = conversation;
    this.unwatch = answer?.watch(() => this.#soon());
    this.#draw();
  }

  /** The server's own account. */
  update(status, error) {
    this.status = status;
    const cloud = wayUp(status);
    this.trip.push(!error && cloud?.ok ? (cloud.rtt_ms ?? null) : null);
    this.#link(cloud, error);
    this.#server(status, error);
    this.#draw();
  }

  #soon() {
    const wait = this.drawnAt + EVERY_MS - performance.now();
    // With the tokens that came, so that there is one frame for both; the timer is for the last.
    if (wait <= 0) this.#draw();
    else this.timer ||= setTimeout(() => this.#draw(), wait + EVERY_MS);
  }

  #draw() {
    clearTimeout(this.timer);
    this.timer = 0;
    this.drawnAt = performance.now();
    const { answer } = this;
    const summary = answer?.summary;
    this.#way(answer, summary);
    const rate = answer?.rate ?? 0;
    text("panel-rate", rate ? rate.toFixed(1) : "–");
    text("panel-tokens", answer?.tokens.length ?? "–");
    const first = summary?.ttft_ms ?? (answer?.firstAt ? answer.firstAt - answer.startedAt : null);
    text("panel-first", milliseconds(first));
    text("panel-rounds", summary?.rounds ?? "–");
    const seed = answer?.seed ?? null;
    text("panel-seed", seed === null ? "" : `Sampled with seed ${seed}`);
    this.#shares(answer);
    const traffic = summary ?? answer?.traffic;
    text("panel-up", traffic ? bytes(traffic.bytes_up) : "–");
    text("panel-down", traffic ? bytes(traffic.bytes_down) : "–");
    const total = this.#total();
    text("panel-total", total ? `${bytes(total)} in this conversation` : "");
    this.#outage(answer, summary);
  }

  /** The mode, and why. */
  #way(answer, summary) {
    const way = answer?.ways.at(-1) ?? summary?.changes?.at(-1);
    const asked = answer?.mode || summary?.mode || this.status?.mode || "";
    const now = way && way.mode !== asked ? `${asked}: ${way.mode}` : asked;
    text("panel-mode", now || "–");
    const where = way ? ` (${way.placement} layers here, ${way.wire} on the link)` : "";
    text("panel-why", way?.reason ? `${sentence(way.reason)}${where}` : (MODES[asked] ?? ""));
    byId("panel-mode").classList.toggle("live", answer?.live === true);
  }

  #shares(answer) {
    const rows = listed(answer?.counts ?? {});
    this.bar.draw(rows);
    const total = rows.reduce((sum, row) => sum + row.count, 0);
    const list = byId("panel-shares");
    const key = rows.map((row) => `${row.source} ${row.style}`).join();
    if (list.dataset.key !== key) {
      list.dataset.key = key;
      byId("panel-legend-empty").hidden = rows.length > 0;
      list.replaceChildren(...rows.map(legend));
    }
    rows.forEach((row, at) => {
      const [count, share] = [...list.children[at].children].slice(-2);
      say(count, row.count);
      say(share, percent(row.count / total));
    });
  }

  #outage(answer, summary) {
    const parts = [];
    if (answer?.offline) parts.push(`${answer.previews.length} previews, the cloud is away`);
    if (summary?.previewed) parts.push(`${summary.previewed} previewed, ${summary.withdrawn} of them corrected`);
    if (summary?.provisional) parts.push(`${summary.provisional} never checked`);
    if (summary?.reconnects) parts.push(`${summary.reconnects} × reconnected`);
    text("panel-outage", parts.join(" · "));
    byId("panel-outage").hidden = parts.length === 0;
  }

  #total() {
    let total = 0;
    for (const turn of this.conversation?.turns ?? []) {
      for (const { summary } of turn.answers) total += (summary?.bytes_up ?? 0) + (summary?.bytes_down ?? 0);
    }
    return total;
  }

  #link(cloud, error) {
    const none = error ? (error.kind === "auth" ? "–" : "server away") : !cloud ? "no cloud" : !cloud.ok ? "away" : null;
    text("panel-trip", none ?? (cloud.rtt_ms === undefined || cloud.rtt_ms === null ? "–" : milliseconds(cloud.rtt_ms)));
  }

  #server(status, error) {
    const note = byId("panel-away");
    note.hidden = !error;
    note.textContent = error ? error.message : "";
    if (!status) return;
    const shape = JSON.stringify([status.tiers, status.layers, status.exits, Boolean(error)]);
    if (shape !== this.topologyOf) {
      this.topologyOf = shape;
      byId("panel-topology").replaceChildren(topology(status));
    }
    const facts = [
      ["Model", status.model],
      ["Fingerprint", status.fingerprint && el("code", { title: status.fingerprint }, status.fingerprint.slice(0, 12))],
      ["Weights", status.weights],
      ["Exits", status.exits?.length ? `after layers ${status.exits.join(", ")}` : ""],
      ["Context", status.context_length && `${status.context_length.toLocaleString("en")} tokens`],
      ["At work", `${status.active ?? 0} of ${status.most_active ?? "–"}, ${status.waiting ?? 0} waiting`],
      ["Caches kept", `${status.kept ?? 0} (${bytes(status.kept_bytes)})`],
      ["Memory", bytes(status.rss_bytes)],
      ["Served", `${status.answers ?? 0} answers, ${(status.tokens ?? 0).toLocaleString("en")} tokens`],
      ["Up for", duration(status.uptime_seconds)],
      ["Version", status.version],
    ];
    const key = JSON.stringify(facts.map(([, value]) => value?.textContent ?? value));
    const list = byId("panel-facts");
    if (list.dataset.key === key) return;
    list.dataset.key = key;
    const shown = facts.filter(([, value]) => value !== undefined && value !== "");
    list.replaceChildren(...shown.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
  }
}

function legend(row) {
  return el(
    "li",
    {},
    el(`span.swatch.${row.style}`, { "aria-hidden": "true" }, "ab"),
    el("span.share-name", {}, row.short),
    el("span.share-count"),
    el("span.share-percent"),
  );
}

function text(id, words) {
  say(byId(id), words);
}

function say(place, words) {
  if (place.textContent !== String(words)) place.textContent = words;
}

const sentence = (words) => words.charAt(0).toUpperCase() + words.slice(1);
