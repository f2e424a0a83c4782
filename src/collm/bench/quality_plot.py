"""The figures of `collm eval quality --plot`: quality against cloud work, with the Pareto front.

For each domain two PNG files, cloud work counted in FLOPs and in time; each has a panel for
agreement and one for mean log-probability. Needs matplotlib (`pip install 'collm[plot]'`).
Settings carry numbers, with their names below the panels: names at points would hide each other.

Not covered: interactive plots, other file formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from collm.bench.quality_report import QUALITY, QualityReport, SettingReport
from collm.bench.stats import Interval

PUBLISHED = (("XSum", 0.845), ("Alpaca", 0.695))
"""Cloud compute that CE-CoLLM saved (Jin & Wu, arXiv 2411.02829; a 7B model, other hardware)."""
_DPI = 150
_INK, _GREY, _GRID, _FRONT = "#22262b", "#6b7280", "#e5e7eb", "#b7bdc6"
_PAPER = "#b8860b"
_COLOURS = {
    "cloud": _INK,
    "verified": "#2a6f97",
    "threshold": "#d1603d",
    "refine": "#6a994e",
    "standalone": "#8e5ea2",
}
STYLE = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.edgecolor": _GREY,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "text.color": _INK,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
}
_TITLES = {
    "agreement": "Tokens that are the full model's own choice",
    "mean_logprob": "Mean log-probability under the full model, nats a token",
}
_WORK = {"flops": "saved_flops", "time": "saved_time"}


@dataclass(frozen=True)
class Point:
    """A setting in a panel; x: share of plain cloud's work, y: quality."""

    number: int
    mode: str
    x: Interval
    y: Interval


def draw_plots(report: QualityReport, folder: Path) -> list[Path]:
    """Draw every figure that the report has data for; returns the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with matplotlib.rc_context(STYLE):
        for domain in report.domains:
            for unit, work in _WORK.items():
                path = folder / f"quality-{unit}-{domain}.png"
                _figure(report, domain, unit, work).savefig(path, dpi=_DPI)
                written.append(path)
    return written


def points(found: Sequence[SettingReport], work: str, quality: str) -> list[Point]:
    """Settings that have both figures, numbered from 1 as they come."""
    made = []
    for number, one in enumerate(found, start=1):
        saved, y = one.figures[work], one.figures[quality]
        if saved is not None and y is not None:
            low, high = (None if b is None else 1 - b for b in (saved.high, saved.low))
            x = Interval(value=1 - saved.value, low=low, high=high)
            made.append(Point(number, one.setting.mode, x, y))
    return made


def pareto_front(some: Sequence[Point]) -> list[Point]:
    """Those that no other beats in one thing without losing in the other, least work first."""
    front: list[Point] = []
    for point in sorted(some, key=lambda p: (p.x.value, -p.y.value)):
        if not front or point.y.value > front[-1].y.value:
            front.append(point)
    return front


def _figure(report: QualityReport, domain: str, unit: str, work: str) -> Figure:
    found = report.of(domain)
    columns = 2 if max(len(one.label) for one in found) > 34 else 3
    key_rows = -(-(len(found) + 2) // columns)
    height = 4.6 + 0.2 * key_rows
    figure = Figure(figsize=(10.4, height), layout="constrained")
    axes = figure.subplots(1, len(QUALITY))
    of = "" if domain == "all" else f", {domain}"
    figure.suptitle(f"Quality against cloud work: {report.model}{of}, {found[0].prompts} prompts",
                    x=0.01, ha="left", fontsize=12, fontweight="bold")  # fmt: skip
    for panel, quality in zip(axes, QUALITY, strict=True):
        _panel(panel, points(found, work, quality), _TITLES[quality])
    axes[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    share = f"cloud {'FLOPs' if unit == 'flops' else 'time'} a token, of mode cloud's"
    for panel in axes:
        panel.set_xlabel(f"{share}; bars: 95 % interval")
    dots: list[Any] = [
        Line2D([], [], marker="o", linestyle="", markersize=6, color=_COLOURS[one.setting.mode],
               label=f"{number}  {one.label}") for number, one in enumerate(found, start=1)
    ]  # fmt: skip
    paper = "cloud compute saved by CE-CoLLM, published, 7B, other hardware"
    dots.append(Line2D([], [], color=_PAPER, linestyle=(0, (4, 3)), linewidth=1.2, label=paper))
    figure.legend(handles=dots, loc="outside lower left", ncols=columns, frameon=False,
                  fontsize=9, handletextpad=0.4, columnspacing=1.6)  # fmt: skip
    figure.draw_without_rendering()  # settles where things are, for the numbers
    for panel, quality in zip(axes, QUALITY, strict=True):
        _number(panel, points(found, work, quality))
    return figure


def _panel(axes: Any, some: Sequence[Point], title: str) -> None:
    axes.set_title(title, pad=18)
    front = pareto_front(some)
    axes.plot([p.x.value for p in front], [p.y.value for p in front], color=_FRONT, linewidth=5,
              drawstyle="steps-post", solid_capstyle="round", zorder=1)  # fmt: skip
    for point in some:
        colour = _COLOURS[point.mode]
        axes.errorbar(point.x.value, point.y.value, xerr=_reach(point.x), yerr=_reach(point.y),
                      color=colour, marker="o", markersize=6, elinewidth=1.2, capsize=2.5,
                      zorder=3)  # fmt: skip
    most = max((p.x.high or p.x.value for p in some), default=1.0)
    axes.set_xlim(-0.09, max(1.08, 1.05 * most))
    axes.margins(y=0.12)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    for (name, saved), side in zip(PUBLISHED, (-1, 1), strict=True):
        axes.axvline(1 - saved, color=_PAPER, linewidth=1.2, linestyle=(0, (4, 3)), zorder=0)
        axes.annotate(f"{name} {saved:.1%}", (1 - saved, 1), (4 * side, 2),
                      ha="right" if side < 0 else "left", va="bottom",
                      xycoords=("data", "axes fraction"), textcoords="offset points",
                      color=_PAPER, fontsize=8.5)  # fmt: skip


def _reach(interval: Interval) -> Any:
    if interval.low is None or interval.high is None:
        return None
    low, high = interval.value - interval.low, interval.high - interval.value
    return np.maximum([[low], [high]], 0.0)


_OFFSETS = tuple(
    (distance * float(np.cos(angle)), distance * float(np.sin(angle)))
    for distance in (11.0, 17.0, 24.0)
    for angle in np.pi / 4 * (np.arange(8) + 1)
)


def _number(axes: Any, some: Sequence[Point]) -> None:
    """Write each point's number near it, where it hides no point, bar's middle or other number."""
    scale = 72 / axes.figure.dpi
    at = [axes.transData.transform((p.x.value, p.y.value)) * scale for p in some]
    taken = list(at)
    for point, place in zip(some, at, strict=True):

        def crowd(offset: tuple[float, float], place: Any = place) -> float:
            spot = place + np.array(offset)
            near = [max(0.0, 12.0 - float(np.hypot(*(spot - other)))) for other in taken]
            # Straight up, down, left and right the bars are in the way.
            barred = min(abs(offset[0]), abs(offset[1])) < 1
            return sum(near) + 0.15 * float(np.hypot(*offset)) + 3 * barred

        offset = min(_OFFSETS, key=crowd)
        taken.append(place + np.array(offset))
        line = {"arrowstyle": "-", "color": _COLOURS[point.mode], "linewidth": 0.6,
                "shrinkA": 0, "shrinkB": 3}  # fmt: skip
        axes.annotate(
            str(point.number), (point.x.value, point.y.value), offset,
            textcoords="offset points", color=_COLOURS[point.mode], ha="center", va="center",
            fontsize=9.5, fontweight="bold", zorder=4, annotation_clip=False,
            bbox={"boxstyle": "round,pad=0.05", "fc": "white", "ec": "none", "alpha": 0.8},
            arrowprops=line if float(np.hypot(*offset)) > 12 else None,
        )  # fmt: skip
