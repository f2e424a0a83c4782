"""The figure of `collm bench scaling --plot`: time and memory against what was varied.

Needs matplotlib (`pip install 'collm[plot]'`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from collm.bench.quality_plot import STYLE
from collm.bench.scaling import Row, ScalingReport
from collm.bench.stats import Summary

_DPI = 150
_WHOLE, _SPLIT, _GREY = "#22262b", "#2a6f97", "#6b7280"


def draw_scaling(report: ScalingReport, path: Path) -> None:
    """Four panels: step time against context, sessions and depth, and memory against sessions."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 7.4), layout="constrained")
        context, sessions, depth, memory = figure.subplots(2, 2).flat
        figure.suptitle("What one exact step of one session costs a cloud core",
                        x=0.01, ha="left", fontsize=12, fontweight="bold")  # fmt: skip
        _times(context, report.context, lambda row: row.positions)
        context.set_title("Longer texts")
        context.set_xlabel("positions that the session holds")
        _times(sessions, report.sessions, lambda row: row.sessions)
        sessions.set_title("More open sessions, asking one at a time")
        sessions.set_xlabel(f"open sessions of {report.options.positions} positions")
        _doubling(sessions, [row.sessions for row in report.sessions])
        _line(depth, report.depth, lambda row: row.layers, _WHOLE, "")
        depth.set_title("More layers left to the cloud")
        depth.set_xlabel(f"layers that the cloud runs, of {report.layers}")
        _memory(memory, report)
        for panel in (context, sessions, depth):
            panel.set_ylabel("milliseconds")
            panel.legend(frameon=False, fontsize=9)
        for panel in (context, sessions, depth, memory):
            panel.set_ylim(bottom=0)
        figure.savefig(path, dpi=_DPI)


def _times(axes: Any, rows: Sequence[Row], x: Callable[[Row], int]) -> None:
    for first, colour in _colours(rows):
        mine = [row for row in rows if row.first_layer == first]
        _line(axes, mine, x, colour, f", layers {first}–{first + mine[0].layers - 1}")


def _line(axes: Any, rows: Sequence[Row], x: Callable[[Row], int], colour: str, words: str) -> None:
    """Medians of step and round trip; quartiles as bars."""
    shown: list[tuple[str, str, list[Summary]]] = [
        ("-", "step in the cloud", [row.step for row in rows]),
        (":", "round trip, no network", [row.round_trip for row in rows]),
    ]
    for style, name, found in shown:
        axes.errorbar(
            [x(row) for row in rows], [1000 * one.median for one in found],
            yerr=[[1000 * (one.median - one.p25) for one in found],
                  [1000 * (one.p75 - one.median) for one in found]],
            color=colour, linestyle=style, marker="o", markersize=4, linewidth=1.6,
            elinewidth=1, capsize=2, label=f"{name}{words}",
        )  # fmt: skip


def _memory(axes: Any, report: ScalingReport) -> None:
    rows = report.sessions
    for first, colour in _colours(rows):
        mine = [row for row in rows if row.first_layer == first]
        words = f"layers {first}–{report.layers - 1}"
        counts = [row.sessions for row in mine]
        axes.plot(counts, [(row.process_bytes - report.idle_bytes) / 1e6 for row in mine],
                  color=colour, marker="o", markersize=4, linewidth=1.6,
                  label=f"process, beyond an idle one's, {words}")  # fmt: skip
        axes.plot(counts, [row.sessions * row.session_bytes / 1e6 for row in mine],
                  color=colour, linestyle=":", linewidth=1.6,
                  label=f"caches and pending rows, {words}")  # fmt: skip
    axes.set_title("Memory")
    axes.set_xlabel(f"open sessions of {report.options.positions} positions")
    axes.set_ylabel("MB")
    _doubling(axes, [row.sessions for row in rows])
    axes.legend(frameon=False, fontsize=9)


def _colours(rows: Sequence[Row]) -> list[tuple[int, str]]:
    firsts = sorted({row.first_layer for row in rows})
    return list(zip(firsts, (_WHOLE, _SPLIT, _GREY), strict=False))


def _doubling(axes: Any, counts: Sequence[int]) -> None:
    axes.set_xticks(sorted(set(counts)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
