"""The plots of the benchmark report, as SVG; each can be read without the text beside it.

Needs matplotlib (`pip install 'collm[plot]'`). A plot is left out where the raw figures have
nothing to show in it.

Not covered: interactive plots.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

from collm.bench.quality_plot import STYLE
from collm.bench.table_figures import PLAIN, Row, break_even, rows

Raw = Mapping[str, Any]
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000")
_MARKS = "osD^vP*Xhd<>"
_DASHES = ("-", "--", ":")
_WIDTH = 8.2
_MOST_RATIO = 4.0
_ORACLE = re.compile(r"verified, oracle ([0-9.]+)")


@dataclass(frozen=True)
class Plot:
    """One picture. name: of its file, without ending; svg: the picture itself."""

    name: str
    caption: str
    svg: str


def plots(raw: Raw) -> list[Plot]:
    """Those that a run of `collm bench table` has figures for."""
    made = [_trips(raw), _agreement(raw)]
    made += [draw(raw, raw["links"][0]["name"]) for draw in (_pareto, _breakdown)]
    return [one for one in made if one is not None]


def capacity_plot(capacity: Raw) -> Plot:
    """Bars of `collm bench capacity`'s results."""
    found = capacity["results"]
    plain = next((one["clients"] for one in found if one["name"] == PLAIN), None)
    target = 1000 * capacity["target_seconds"]
    with _figure(0.5 + 0.42 * len(found)) as (figure, saved):
        axes = figure.add_subplot()
        names = [one["name"] for one in found][::-1]
        counts = [one["clients"] or 0 for one in found][::-1]
        axes.barh(names, counts, color=_COLOURS[0])
        for place, count in enumerate(counts):
            times = f"  {count} ({count / plain:.1f} ×)" if plain else f"  {count}"
            axes.text(count, place, times, va="center")
        axes.set_xlim(0, 1.25 * max(counts, default=1) + 1)
        axes.set_xlabel(f"clients of one cloud core, 95 % of tokens within {target:g} ms")
        axes.set_title("How many clients one cloud core holds (× plain cloud)")
    caption = "Each client asks again and again, as recorded from a real edge; link: loopback."
    return Plot("capacity", caption, saved())


def _trips(raw: Raw) -> Plot | None:
    links = sorted(raw["links"], key=_trip)
    if len(links) < 2:
        return None
    by_link = {link["name"]: {row.name: row for row in rows(raw, link["name"])} for link in links}
    with _figure(5.4) as (figure, saved):
        axes = figure.add_subplot()
        marks, clipped = 0, []
        drawn: list[str] = []  # colours: lines of the same one differ in their dashes
        for name, colour, mark in _styles(raw):
            points = [
                (1000 * _trip(link), found.against_plain.value)
                for link in links
                if (found := by_link[link["name"]].get(name)) and found.against_plain
            ]
            if not points or min(y for _, y in points) > _MOST_RATIO:
                clipped += [f"{name} ({points[0][1]:.0f} ×)"] if points else []
                continue
            xs, ys = zip(*points, strict=True)
            dashes = _DASHES[min(drawn.count(colour), len(_DASHES) - 1)]
            drawn.append(colour)
            axes.plot(xs, ys, color=colour, marker=mark, ls=dashes, label=name, markersize=5)
            at = break_even(raw, name)
            if at is not None:
                marks += 1
                label = "break-even" if marks == 1 else None
                axes.plot([1000 * at], [1], "o", ms=13, mfc="none", mec="black", label=label)
        axes.axhline(1, color="black", linewidth=1.2, label="plain cloud")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks([round(1000 * _trip(link), 1) for link in links])
        axes.set_ylim(0, min(_MOST_RATIO, axes.get_ylim()[1]))
        axes.set_xlabel("round trip of the link, ms (logarithmic)")
        axes.set_ylabel("time, plain cloud = 1")
        axes.set_title("Time of an answer against the link's round trip; below 1 beats plain cloud")
        axes.legend(
            fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14), handlelength=3.5
        )
    caption = "Medians of answers to the same prompts."
    caption += f" Beyond the plot: {', '.join(clipped)}." if clipped else ""
    return Plot("round-trips", caption, saved())


def _agreement(raw: Raw) -> Plot | None:
    link = raw["links"][0]["name"]
    found = {row.name: row for row in rows(raw, link)}
    rated = [(float(m[1]), row) for name, row in found.items() if (m := _ORACLE.fullmatch(name))]
    if len(rated) < 2:
        return None
    rated.sort(key=lambda one: one[0])
    today = [row for name, row in found.items() if name.startswith("verified")
             and "oracle" not in name]  # fmt: skip
    with _figure(3.9) as (figure, saved):
        left, right = figure.subplots(1, 2)
        panels: tuple[tuple[Any, Callable[[Row], float], float], ...] = (
            (left, _ratio, 1.0),
            (right, lambda row: row.cpu_saved or 0.0, 0.0),
        )
        for axes, value, line in panels:
            axes.plot([rate for rate, _ in rated], [value(row) for _, row in rated],
                      color=_COLOURS[0], marker="o", label="oracle")  # fmt: skip
            for row, style in zip(today, ("--", ":", "-."), strict=False):
                axes.axhline(value(row), color=_COLOURS[1], linestyle=style,
                             label=f"today's exits: {row.name}")  # fmt: skip
            axes.axhline(line, color="black", linewidth=1.2, label="plain cloud")
            axes.set_xlabel("share of drafts that are right")
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, 0))
        left.set_ylabel("time, plain cloud = 1")
        left.set_ylim(bottom=0)
        left.set_title("Time")
        right.set_ylabel("cloud CPU time saved")
        right.yaxis.set_major_formatter(PercentFormatter(1.0, 0))
        right.set_title("Cloud work saved")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
    return Plot("agreement", f"What better exits would give; link: {link}; identical text.",
                saved())  # fmt: skip


def _pareto(raw: Raw, link: str) -> Plot:
    found = {row.name: row for row in rows(raw, link)}
    with _figure(5.0) as (figure, saved):
        axes = figure.add_subplot()
        clipped = []
        for name, colour, mark in [(PLAIN, "black", "o"), *_styles(raw)]:
            row = found.get(name)
            if row is None or row.cpu_saved is None:
                continue
            if row.cpu_saved < -0.5:
                clipped.append(f"{name} ({row.cpu_saved:.0%})")
                continue
            axes.plot([row.cpu_saved], [row.agreed], marker=mark, color=colour, ls="", ms=8,
                      label=name)  # fmt: skip
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, 0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, 0))
        axes.set_xlabel("cloud CPU time saved against plain cloud (right is better)")
        axes.set_ylabel("tokens that are the full model's choice")
        axes.set_title("Quality against cloud work")
        axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    caption = f"Link: {link}."
    caption += f" Beyond the plot: {', '.join(clipped)}." if clipped else ""
    return Plot("quality-and-work", caption, saved())


def _breakdown(raw: Raw, link: str) -> Plot:
    shown = sorted((row for row in rows(raw, link) if _is_shown(row)), key=lambda row: -row.wall)
    parts: tuple[tuple[str, str, Callable[[Row], float]], ...] = (
        ("edge", _COLOURS[0], lambda row: row.edge),
        ("cloud", _COLOURS[1], lambda row: row.cloud),
        ("communication", _COLOURS[6], lambda row: row.communication),
    )
    with _figure(1.4 + 0.32 * len(shown)) as (figure, saved):
        axes = figure.add_subplot()
        names, left = [row.name for row in shown], [0.0] * len(shown)
        for label, colour, value in parts:
            widths = [1000 * value(row) for row in shown]
            axes.barh(names, widths, left=left, color=colour, label=label)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axes.plot([1000 * row.wall for row in shown], names, "|", color="black", ms=16, mew=2,
                  label="time as the user sees it")  # fmt: skip
        axes.set_xlabel("ms a token")
        axes.set_title("Where the time goes; a bar beyond its mark: edge and cloud overlap")
        axes.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.4, -0.12))
    return Plot("breakdown", f"Link: {link}. Medians; the naive split is left out.", saved())


def _ratio(row: Row) -> float:
    assert row.against_plain is not None  # plain cloud is in every run
    return row.against_plain.value


def _is_shown(row: Row) -> bool:
    return row.against_plain is not None and row.against_plain.value < _MOST_RATIO


def _styles(raw: Raw) -> Iterator[tuple[str, str, str]]:
    names = [one["name"] for one in raw["contenders"] if one["name"] != PLAIN]
    for i, name in enumerate(names):
        yield name, _COLOURS[i % len(_COLOURS)], _MARKS[i % len(_MARKS)]


def _trip(link: Mapping[str, Any]) -> float:
    found = link["measured"]
    return float(found["round_trip_median"] if found else link["round_trip_seconds"])


class _figure:
    """A figure of this height in inches; gives it and what turns it into SVG."""

    def __init__(self, height: float) -> None:
        self._style = matplotlib.rc_context(
            {**STYLE, "svg.fonttype": "path", "svg.hashsalt": "collm", "font.size": 9}
        )
        self._height = height

    def __enter__(self) -> tuple[Figure, Callable[[], str]]:
        self._style.__enter__()
        figure = Figure(figsize=(_WIDTH, self._height), layout="constrained")

        def saved() -> str:
            file = io.StringIO()
            figure.savefig(file, format="svg", metadata={"Date": None})
            return file.getvalue()[file.getvalue().index("<svg") :]

        return figure, saved

    def __exit__(self, *why: object) -> None:
        self._style.__exit__(None, None, None)
