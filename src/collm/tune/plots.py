"""The figures of `collm eval exits --plot`: four PNG files, 1,200 pixels wide or a little more.

Needs matplotlib (`pip install 'collm[plot]'`). Exits and draft lengths are shades of one colour,
from shallow to deep and from short to long; domains have colours of their own. Curves carry their
names at their ends instead of in a legend.

Not covered: interactive plots, other file formats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from collm.tune.report import DRAFT_LENGTHS, PRECISION, ExitReport, ExitsReport

_DPI = 150
_WIDTH = 8.0
_INK, _GREY, _GRID = "#22262b", "#6b7280", "#e5e7eb"
_SHADES = ("#8ed1c6", "#2a9d8f", "#1d6a86", "#22345f")
"""Light to dark; shades between are mixed."""
_DOMAIN_COLOURS = ("#2a6f97", "#d1603d", "#6a994e", "#8e5ea2", "#b8860b")
STYLE = {
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.edgecolor": _GREY,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "lines.linewidth": 2.0,
    "text.color": _INK,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
}


def draw_plots(report: ExitsReport, folder: Path) -> list[Path]:
    """Draw every figure that the report has data for; returns the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Callable[[ExitsReport], Figure | None]] = {
        "agreement-by-depth.png": _agreement_by_depth,
        "risk-coverage.png": _risk_coverage,
        "reliability.png": _reliability,
        "tokens-per-round.png": _tokens_per_round,
    }
    written = []
    with matplotlib.rc_context(STYLE):
        for name, draw in figures.items():
            figure = draw(report)
            if figure is not None:
                figure.savefig(folder / name, dpi=_DPI)
                written.append(folder / name)
    return written


def _agreement_by_depth(report: ExitsReport) -> Figure:
    figure, axes = _single(f"How often exits agree with the full model: {report.model}")
    domains = [name for name in report.domains if name != "all" and "," not in name]
    ends = []
    for i, name in enumerate(domains):
        found = [exit_report.domain(name) for exit_report in report.exits]
        colour = _DOMAIN_COLOURS[i % len(_DOMAIN_COLOURS)]
        # Side by side, so that intervals at one cut can be told apart.
        depth = [e.cut + 0.008 * report.layers * (i - (len(domains) - 1) / 2) for e in report.exits]
        value = np.array([d.agreement for d in found])
        reach = np.abs(np.array([[d.low, d.high] for d in found]).T - value)
        axes.errorbar(depth, value, reach, color=colour, marker="o", markersize=5, elinewidth=1.2,
                      capsize=3)  # fmt: skip
        ends.append((report.exits[-1].cut + 0.02 * report.layers, float(value[-1]), name, colour))
    axes.set_ylim(bottom=0, top=min(1.0, axes.get_ylim()[1]))
    axes.set_xlim(0, min(1.0, report.exits[-1].cut / report.layers + 0.12) * report.layers)
    _name_ends(axes, ends)
    axes.set_xticks([exit_report.cut for exit_report in report.exits])
    axes.set_xlabel(f"exit after layer (of {report.layers}); bars: 95 % interval over examples")
    axes.set_ylabel("tokens with the full model's choice")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return figure


def _risk_coverage(report: ExitsReport) -> Figure:
    figure, axes = _single("What an exit gets wrong when it answers only its surest tokens")
    ends = []
    for exit_report, colour in zip(report.exits, _shades(len(report.exits)), strict=True):
        coverage = [point.coverage for point in exit_report.curve]
        risk = [point.risk for point in exit_report.curve]
        axes.plot(coverage, risk, color=colour)
        ends.append((coverage[-1], risk[-1], f"exit {exit_report.cut}", colour))
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, 1)
    axes.axhline(1 - PRECISION, color=_GREY, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(f"precision {PRECISION:.0%}", (1, 1 - PRECISION), (-4, 4), ha="right",
                  textcoords="offset points", color=_GREY, fontsize=9)  # fmt: skip
    _name_ends(axes, ends)
    axes.set_xlabel("coverage: share of tokens the exit answers")
    axes.set_ylabel("risk: wrong among those")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return figure


def _reliability(report: ExitsReport) -> Figure:
    figure, grid = _panels(
        report.exits, "Whether an exit is right as often as it says", square=True
    )
    for axes, exit_report in grid:
        bins = exit_report.bins
        said = np.array([b.confidence for b in bins])
        right = np.array([b.accuracy for b in bins])
        rows = np.array([b.rows for b in bins])
        colour = _SHADES[2]
        axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle=(0, (4, 3)))
        axes.vlines(said, said, right, color=colour, alpha=0.35, linewidth=4)
        axes.scatter(said, right, s=8 + 70 * rows / rows.max(), color=colour, linewidth=0)
        error = exit_report.domain("all").calibration_error
        axes.set_title(f"exit {exit_report.cut}", fontsize=10.5, pad=6)
        axes.annotate(f"ECE {error:.3f}", (0.04, 0.93), xycoords="axes fraction", va="top")
        axes.set(xlim=(0, 1.03), ylim=(0, 1.03))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xticks([0, 0.5, 1.0])
        axes.set_yticks([0, 0.5, 1.0])
    figure.supxlabel("confidence; dots: area by number of tokens", fontsize=10)
    figure.supylabel("share right", fontsize=10)
    return figure


def _tokens_per_round(report: ExitsReport) -> Figure | None:
    drafting = [exit_report for exit_report in report.exits if exit_report.best is not None]
    if not drafting:
        return None
    figure, grid = _panels(
        drafting, "Tokens a verify round, by confidence asked for and most drafts a round"
    )
    most = max(d.tokens_per_round for e in drafting for d in e.drafting)
    for axes, exit_report in grid:
        axes.set(xlim=(0.13, 0.98), ylim=(1, 1 + max(0.1, 1.15 * (most - 1))))
        ends = []
        for length, colour in zip(DRAFT_LENGTHS, _shades(len(DRAFT_LENGTHS)), strict=True):
            settings = [d for d in exit_report.drafting if d.length == length]
            tokens = [d.tokens_per_round for d in settings]
            axes.plot([d.threshold for d in settings], tokens, color=colour, linewidth=1.8)
            ends.append((settings[0].threshold, tokens[0], str(length), colour))
        best = exit_report.best
        assert best is not None
        at = (best.threshold, best.tokens_per_round)
        axes.scatter(*at, s=30, color=_INK, zorder=3)
        axes.annotate(f"{at[1]:.2f}", at, (3, 6), textcoords="offset points", fontweight="bold")
        axes.set_title(f"exit {exit_report.cut}", fontsize=10.5, pad=6)
        axes.set_xticks([0.3, 0.5, 0.7, 0.9])
        _name_ends(axes, ends, left=True)
    figure.supxlabel(
        "threshold θ; numbers at the lines: most drafts a round; dot: the best setting", fontsize=10
    )
    figure.supylabel("tokens a round (1: no exit)", fontsize=10)
    return figure


# ------------------------------------------------------------------------------- drawing


def _single(title: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(_WIDTH, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    return figure, axes


def _panels(
    exits: Sequence[ExitReport], title: str, *, square: bool = False
) -> tuple[Figure, list[tuple[Any, ExitReport]]]:
    """Small multiples, at most four in a row, sharing both axes."""
    columns = min(4, len(exits))
    rows = -(-len(exits) // columns)
    height = min(3.7, _WIDTH / columns * (1.05 if square else 1.5)) * rows + 0.9
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for unused in grid[len(exits) :]:
        unused.set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return figure, list(zip(grid, exits, strict=False))


def _shades(count: int) -> list[Any]:
    stops = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in _SHADES])
    place = np.linspace(0, len(_SHADES) - 1, max(count, 2))
    mixed = [np.interp(place, range(len(_SHADES)), stops[:, i]) for i in range(3)]
    shades = [tuple(colour) for colour in np.stack(mixed, axis=1)]
    return [shades[-1]] if count == 1 else shades


def _name_ends(
    axes: Any, ends: Sequence[tuple[float, float, str, Any]], *, left: bool = False
) -> None:
    """Write each curve's name beside its end, (x, y, name, colour), moved apart where needed.

    The axes' limits have to be final.
    """
    axes.figure.draw_without_rendering()  # settles where things are
    points = 72 / axes.figure.dpi
    at = [axes.transData.transform((x, y))[1] * points for x, y, _, _ in ends]
    for (x, y, name, colour), now, wanted in zip(ends, at, _apart(at, 13.0), strict=True):
        axes.annotate(
            name, (x, y), (-6 if left else 8, wanted - now), textcoords="offset points",
            color=colour, va="center", ha="right" if left else "left", fontweight="bold",
            annotation_clip=False,
        )  # fmt: skip


def _apart(values: Sequence[float], gap: float) -> list[float]:
    """The values, moved so that neighbours are at least `gap` apart and their mean stays."""
    order = np.argsort(values, kind="stable")
    placed = np.array(values, dtype=np.float64)
    for before, after in pairwise(order):
        placed[after] = max(placed[after], placed[before] + gap)
    return [float(p) for p in placed - (placed.mean() - np.mean(values))]
