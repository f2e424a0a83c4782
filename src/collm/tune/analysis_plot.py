"""The picture of `collm analyze --plot`: what each layer is worth, and what paths of k layers are.

Needs matplotlib (`pip install 'collm[plot]'`).
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from collm.tune.analysis import Analysis
from collm.tune.plots import STYLE

_DPI = 150
_DEEP, _LIGHT, _WARM, _GREY = "#1d6a86", "#8ed1c6", "#d1603d", "#6b7280"


def draw_analysis(analysis: Analysis, path: Path) -> None:
    """Draw it as the PNG file `path`, 1,350 pixels wide."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 10.2), layout="constrained")
        upper, middle, lower = figure.subplots(3, 1)
        figure.suptitle(
            f"{analysis.model}, {analysis.weights} weights: {analysis.rows:,} tokens",
            fontsize=11,
            x=0.01,
            ha="left",
        )
        _leaving_out(analysis, upper)
        _change(analysis, middle)
        _paths(analysis, lower)
        figure.savefig(path, dpi=_DPI)


def _leaving_out(analysis: Analysis, axes: Axes) -> None:
    layers = [one.layer for one in analysis.layers]
    axes.bar(layers, [one.full_agreement for one in analysis.layers], color=_LIGHT, width=0.72)
    axes.plot([], [], "s", color=_LIGHT, label="full model")
    cut = analysis.cut
    below = [one for one in analysis.layers if cut in one.exit_agreement]
    shares = [one.exit_agreement[cut] for one in below]
    axes.plot([one.layer for one in below], shares, "o-", color=_DEEP, label=f"exit {cut}")
    axes.axhline(analysis.exits[cut], color=_DEEP, linestyle=":", linewidth=1.2)
    axes.annotate(
        f"exit {cut} with all layers: {analysis.exits[cut]:.0%}",
        (layers[-1] + 0.4, analysis.exits[cut]),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        color=_DEEP,
        fontsize=9,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )
    axes.set_title("Agreement with the full model when a layer is left out")
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, loc="upper left", ncols=2)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _layer_axis(axes)


def _change(analysis: Analysis, axes: Axes) -> None:
    layers = [one.layer for one in analysis.layers]
    axes.bar(layers, [max(one.change, 1e-4) for one in analysis.layers], color=_WARM, width=0.72)
    axes.set_yscale("log")
    axes.set_title("How far a layer turns the state: 1 − cosine of its input and output")
    _layer_axis(axes)


def _paths(analysis: Analysis, axes: Axes) -> None:
    counts = [len(one.layers) for one in analysis.subsets]
    shares = [one.agreement for one in analysis.subsets]
    axes.plot(counts, shares, "o-", color=_DEEP)
    for one in analysis.subsets:
        axes.annotate(
            f"{one.agreement:.0%}\n{one.weight_bytes / 1e6:.0f} MB",
            (len(one.layers), one.agreement),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=_GREY,
        )
    axes.set_title(f"The best path found of so many layers, exit {analysis.cut} not tuned for it")
    axes.set_xlabel(f"layers of {analysis.cut}")
    axes.set_ylim(0, max(shares) * 1.3)
    axes.set_xlim(min(counts) - 0.6, max(counts) + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _layer_axis(axes: Axes) -> None:
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.01)
