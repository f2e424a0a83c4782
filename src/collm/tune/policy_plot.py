"""The figures of `collm eval policy --plot`: cloud work against agreement and consequence.

Needs matplotlib (`pip install 'collm[plot]'`). One line per kind of criterion, at the set of exits
that is best at 95 % agreement; other fixed thresholds are thin and grey.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from collm.tune.plots import STYLE
from collm.tune.policy_curves import Curve, requests_at
from collm.tune.policy_report import FIXED, PolicyReport

_DPI = 150
_GREY = "#9aa1ab"
_COLOURS = {
    FIXED: "#22262b", "hybrid": "#2a6f97", "margin": "#6a994e", "entropy": "#b8860b",
    "patience 2": "#8e5ea2", "patience 3": "#c39bd3",
}  # fmt: skip
_LEARNED = ("#d1403d", "#e08a3c", "#a33b6a", "#e5637a")
_SHOWN_AT = 0.95


def draw_policy_plots(report: PolicyReport, folder: Path) -> list[Path]:
    """Draw into `folder`; returns the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    with matplotlib.rc_context(STYLE):
        for name, draw in (
            ("policies-agreement.png", _agreement),
            ("policies-consequence.png", _consequence),
            ("policies-gain.png", _gain),
        ):
            draw(report).savefig(folder / name, dpi=_DPI)
            made.append(folder / name)
    return made


def _agreement(report: PolicyReport) -> Figure:
    figure, axes = _figure("Cloud work and agreement of exit criteria")
    for name, curve, look in _lines(report):
        order = np.argsort(curve.requests, kind="stable")
        axes.plot(curve.requests[order], curve.agreement[order], label=name, **look)
    for point in report.points:
        axes.scatter(point.requests, point.agreement, s=28, color=_COLOURS[FIXED], zorder=4)
        axes.annotate(point.name, (point.requests, point.agreement), (5, -10), fontsize=8,
                      textcoords="offset points")  # fmt: skip
    axes.set_ylim(0.75, 1.002)
    axes.set_ylabel("tokens with the full model's choice")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def _consequence(report: PolicyReport) -> Figure:
    figure, axes = _figure("Cloud work and what wrong tokens cost later")
    for name, curve, look in _lines(report):
        order = np.argsort(curve.requests, kind="stable")
        axes.plot(curve.requests[order], curve.drop[order], label=name, **look)
    axes.set_ylim(0, 0.1)
    axes.set_ylabel("nats per token lost after wrong tokens")
    axes.legend(frameon=False, fontsize=9, loc="upper right")
    return figure


def _gain(report: PolicyReport) -> Figure:
    """Differences are a few per cent: next to the baseline itself they can be seen."""
    figure, axes = _figure("Cloud requests saved against the best fixed threshold")
    levels = np.linspace(0.8, 0.995, 60)
    fixed = [curve for name, curve in report.curves.items() if report.kinds[name] == FIXED]
    base = np.array([min(requests_at(curve, at) for curve in fixed) for at in levels])
    for name, curve, look in _lines(report):
        if look["linewidth"] < 1 or report.kinds[name] == FIXED:
            continue
        saved = base - np.array([requests_at(curve, at) for at in levels])
        axes.plot(levels, saved, label=name, **look)
    axes.axhline(0, color=_COLOURS[FIXED], linewidth=1.2)
    told = [c for c in report.comparisons if c.what == "requests" and c.kind.startswith("learned")]
    for one in told:
        off = one.difference
        axes.plot([one.at, one.at], [-off.low, -off.high], color=_GREY, linewidth=3, zorder=1)
    axes.set_xlabel("agreement with the full model (bars: 95 % interval of a learned policy)")
    axes.set_xticks([0.8, 0.85, 0.9, 0.95, 1.0])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylim(bottom=max(-0.12, axes.get_ylim()[0]))
    axes.set_ylabel("requests saved per token")
    axes.legend(frameon=False, fontsize=9, loc="lower left")
    return figure


def _lines(report: PolicyReport) -> list[tuple[str, Curve, dict[str, Any]]]:
    made: list[tuple[str, Curve, dict[str, Any]]] = []
    best: dict[str, str] = {}
    for name, curve in report.curves.items():
        kind = report.kinds[name]
        now = best.get(kind)
        if now is None or requests_at(curve, _SHOWN_AT) < requests_at(
            report.curves[now], _SHOWN_AT
        ):
            best[kind] = name
    for name, curve in report.curves.items():
        kind = report.kinds[name]
        if name == best[kind]:
            learned = [k for k in best if k.startswith("learned")]
            colour = _COLOURS.get(kind) or _LEARNED[learned.index(kind) % len(_LEARNED)]
            strong = kind == FIXED or kind.startswith("learned")
            width = 2.2 if strong else 1.3
            made.append((name, curve, {"color": colour, "linewidth": width, "zorder": 3}))
        elif kind == FIXED:
            made.append(("_", curve, {"color": _GREY, "linewidth": 0.6, "alpha": 0.5}))
    return made


def _figure(title: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(8.0, 5.2), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    axes.set_xlabel("cloud requests per token")
    return figure, axes
