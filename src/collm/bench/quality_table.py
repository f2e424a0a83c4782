"""What `collm eval quality` found, for people: per domain a table of quality and one of work."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from collm.bench.quality_report import FIGURES, Figure, QualityReport, SettingReport, shown

_QUALITY = (
    "agreement", "identical_prefix", "same_places", "rouge_full", "rouge_reference",
    "mean_logprob", "logprob_gap", "repeated_ngrams", "end_repetition", "drift",
)  # fmt: skip
_WORK = (
    "requests_per_token", "saved_time", "saved_flops", "bytes_up", "bytes_down",
    "wall_per_token", "tokens", "degraded",
)  # fmt: skip
_FIGURES = {figure.name: figure for figure in FIGURES}
_SETTINGS_A_TABLE = 4
"""More columns than these do not fit beside the names of the figures."""


def print_report(console: Console, report: QualityReport) -> None:
    """What was run, tables, and what the words mean."""
    header = report.header
    _print(
        console,
        f"{report.model}, {report.layers} layers, {report.weights} weights ({report.artifact}) on "
        f"{report.data}; greedy, at most {header.max_tokens} tokens; cloud {header.cloud}, "
        f"{header.threads} threads each; {report.machine.cpu}",
    )
    if report.cut_prompts:
        _print(
            console,
            f"{report.cut_prompts} long prompts were cut to {header.prompt_tokens} tokens.",
        )
    if report.left_out:
        _print(
            console,
            f"{report.left_out} prompts were left out: doubles, or too long for the context.",
        )
    for domain in report.domains:
        found = report.of(domain)
        title = f"{domain}, {found[0].prompts} prompts"
        _tables(console, f"Quality: {title}", found, _QUALITY)
        _tables(console, f"Work: {title}", found, _WORK)
        differing = [one for one in found if one.differences]
        if differing:
            title = f"Less {report.compared}: {title}"
            _tables(console, title, differing, (*_QUALITY, *_WORK), differences=True)
    _print(
        console,
        "± is half a 95 % bootstrap interval over prompts. The full model's own choices: tokens "
        "that it finds likeliest after the prompt and the answer before them. Identical prefix: "
        "how far the answer is the full model's own text, as a share of the longer of the two; "
        "same token in same place: over the same length. Mean log-probability: nats a token under "
        "the full model; in column cloud, of its own text. Cloud time and FLOPs saved: 1 − work a "
        "token / mode cloud's work a token, prompts included; FLOPs count matrix products with "
        "weights, not attention over the context. Mode cloud asks once and streams.",
    )


def _print(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)


def _tables(
    console: Console,
    title: str,
    found: list[SettingReport],
    names: tuple[str, ...],
    *,
    differences: bool = False,
) -> None:
    for start in range(0, len(found), _SETTINGS_A_TABLE):
        some = found[start : start + _SETTINGS_A_TABLE]
        console.print(_table(title, some, [_FIGURES[name] for name in names], differences))
        title = f"{title.removesuffix(' (more)')} (more)"


def _table(
    title: str, found: list[SettingReport], figures: list[Figure], differences: bool
) -> Table:
    """A row a figure and a column a setting; figures that nobody has are left out."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("", no_wrap=True)
    for one in found:
        table.add_column(one.label, justify="right", overflow="fold")
    for figure in figures:
        cells = [
            shown(
                figure,
                (one.differences if differences else one.figures)[figure.name],
                signed=differences,
            )
            for one in found
        ]
        if any(cells) and not (figure.name == "degraded" and not differences and _none(found)):
            table.add_row(figure.title, *cells)
    return table


def _none(found: list[SettingReport]) -> bool:
    degraded = [one.figures["degraded"] for one in found]
    return not any(interval is not None and interval.value for interval in degraded)
