"""The report of `collm bench table`: a table a link, break-even points, the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from collm.bench.stats import Interval
from collm.bench.table_figures import PLAIN, Row, break_even, rows

_TIMES = ("contender", "against plain cloud", "ms a token", "first token, ms",
          "gap p50 / p95, ms", "edge + cloud + communication, ms")  # fmt: skip
_WORK = ("contender", "requests a token", "cloud CPU saved", "cloud FLOPs saved", "kB up / down",
         "identical", "full model's own choice", "mean log-probability",
         "ROUGE-L")  # fmt: skip


def write_report(
    raws: Sequence[Mapping[str, Any]], folder: Path, capacity: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write report.md and, where matplotlib is there, report.html and its plots into `folder`.

    raws: one run, or several that belong together. Returns what was written.
    """
    files = {"report.md": "\n".join(markdown(raw) for raw in raws)}
    if find_spec("matplotlib") is not None:
        from collm.bench.table_page import page
        from collm.bench.table_plots import capacity_plot, plots

        drawn = [plots(raw) for raw in raws]
        more = [capacity_plot(capacity)] if capacity else []
        files["report.html"] = page(raws, drawn, more)
        for number, some in enumerate(drawn):
            last = f"-{number + 1}" if number else ""
            files |= {f"{plot.name}{last}.svg": plot.svg for plot in some}
        files |= {f"{plot.name}.svg": plot.svg for plot in more}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in files]


def markdown(raw: Mapping[str, Any]) -> str:
    """The whole report; the same dictionary gives the same text."""
    parts = [*_head(raw)]
    for link in raw["links"]:
        some = rows(raw, link["name"])
        parts += [f"## {_link(link)}", "", *_table(_TIMES, [_times(row) for row in some])]
        parts += ["", *_table(_WORK, [_work(row) for row in some]), ""]
    parts += ["## Break-even", "", *_break_even(raw), "", "## Contenders", ""]
    parts += [f"* **{one['name']}** ({one['kind']}): {one['note']}." for one in raw["contenders"]]
    return "\n".join(parts) + "\n"


def _head(raw: Mapping[str, Any]) -> list[str]:
    machine, artifact, options = raw["machine"], raw["artifact"], raw["options"]
    noise = raw["noise"]
    probe = noise["probe_variation"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    shared = (
        " **Edge and cloud shared cores: times say little.**" if options["cores_shared"] else ""
    )
    spread = "not measured" if probe is None else f"varied by {probe:.1%}"
    what = (
        f"{options['prompts']} prompts, {options['rounds']} rounds, {options['tokens']} tokens an "
        f"answer (naive split: {options['naive_tokens']}), placement {options['placement']} of "
        f"{artifact['layers']} layers, {options['threads']} threads a side, busy processes beside "
        f"the cloud {options['cloud_load']}, beside the edge {options['edge_load']}.{shared}"
    )
    where = (
        f"{machine['cpu']}, {machine['usable_cores']} cores, {machine['system']}; {versions}. "
        f"A fixed computation between prompts {spread}; load {noise['load_before']:.2f} before, "
        f"{noise['load_after']:.2f} after."
    )
    how = (
        "Times are medians. Against plain cloud: median of time a token over plain cloud's for the "
        "same prompt in the same round, with its 95 % interval over prompts; below 1 is faster. "
        "Communication is what is left of the wall time. Cloud CPU is the process's own, all "
        "threads; FLOPs count matrix products with weights."
    )
    title = f"# {artifact['model']}, {artifact['weights']}: {raw['date']}"
    made = f"`{raw['command']}`, commit {raw['commit']}"
    return [title, "", made, "", what, "", where, "", how, ""]


def _link(link: Mapping[str, Any]) -> str:
    rate = link["bits_per_second"]
    asked = f"{1000 * link['round_trip_seconds']:g} ms there and back"
    asked += f", {rate / 1e6:g} Mbit/s" if rate else ""
    found = link["measured"]
    if found is None:
        return f"{link['name']}: {asked}"
    return (
        f"{link['name']}: {asked} (measured {1000 * found['round_trip_median']:.1f} ms, "
        f"{found['up_bits_per_second'] / 1e6:.1f} Mbit/s up, "
        f"{found['down_bits_per_second'] / 1e6:.1f} down)"
    )


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines)]


def _times(row: Row) -> list[str]:
    parts = " + ".join(f"{1000 * s:.1f}" for s in (row.edge, row.cloud, row.communication))
    return [
        row.name,
        _interval(row.against_plain),
        f"{1000 * row.wall:.1f}",
        f"{1000 * row.first_token:.0f}",
        f"{1000 * row.gap_p50:.1f} / {1000 * row.gap_p95:.1f}",
        parts,
    ]


def _work(row: Row) -> list[str]:
    return [
        row.name,
        f"{row.requests:.2f}",
        _share(row.cpu_saved),
        _share(row.flops_saved),
        f"{row.bytes_up / 1000:.1f} / {row.bytes_down / 1000:.1f}",
        _share(row.identical, 0),
        _share(row.agreed),
        f"{row.logprob:.3f}",
        "" if row.rouge is None else f"{row.rouge:.3f}",
    ]


def _break_even(raw: Mapping[str, Any]) -> list[str]:
    lines = []
    for one in raw["contenders"]:
        if one["name"] == PLAIN:
            continue
        ratios = [r.against_plain for link in raw["links"]
                  for r in rows(raw, link["name"], one["name"])
                  if r.against_plain is not None]  # fmt: skip
        at = break_even(raw, one["name"])
        if at is not None:
            said = f"{1000 * at:.1f} ms"
        elif ratios and all(ratio.value < 1 for ratio in ratios):
            said = "faster on every link here"
        else:
            said = "slower on the nearest link here"
        lines.append([one["name"], said])
    return _table(("contender", "round trip at which it stops beating plain cloud"), lines)


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return ""
    if interval.low is None or interval.high is None:
        return f"{interval.value:.2f} ×"
    return f"{interval.value:.2f} × [{interval.low:.2f}, {interval.high:.2f}]"


def _share(value: float | None, places: int = 1) -> str:
    return "" if value is None else f"{value:.{places}%}"
