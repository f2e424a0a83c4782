"""What `collm eval exits` found, for people: a summary, then a table for each exit."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from collm.policy.calibration import Drafting
from collm.tune.report import DRAFT_LENGTHS, PRECISION, DomainReport, ExitReport, ExitsReport


def print_report(console: Console, report: ExitsReport) -> None:
    """Text, summary, and a table of thresholds for each exit."""
    console.print(
        f"{report.model}, {report.layers} layers, {report.weights} weights ({report.artifact}) "
        f"on {report.corpus}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_text(report))
    console.print(_summary(report))
    if not any(found.best for found in report.exits):
        console.print("No greedy text in this corpus: tokens a round were not counted.")
    for found in report.exits:
        console.print(_thresholds(found))
    console.print(
        "An exit agrees where it chooses the full model's likeliest token; ± is half a 95 % "
        "interval over examples. ECE: expected calibration error, 15 bins. Tokens a round count "
        "the full model's own; drafts after a wrong one are not counted.",
        highlight=False,
    )


def _text(report: ExitsReport) -> Table:
    table = _table("Held-out text", "", "examples", "rows", "full model's perplexity")
    for text in report.text:
        likely = "" if text.perplexity is None else f"{text.perplexity:.2f}"
        table.add_row(text.domain, f"{text.examples:,}", f"{text.rows:,}", likely)
    return table


def _summary(report: ExitsReport) -> Table:
    """A row a figure and a column an exit: figures are more than exits, and have longer names."""
    table = _table("Exits", "after layer", *(str(found.cut) for found in report.exits))
    for name in report.domains:
        found = [exit_report.domain(name) for exit_report in report.exits]
        table.add_row(f"agreement, {name}", *(_agreement(d) for d in found))
    everything = [exit_report.domain("all") for exit_report in report.exits]
    table.add_row("ECE", *(f"{d.calibration_error:.3f}" for d in everything))
    table.add_row(f"coverage, precision ≥ {PRECISION:.0%}", *(_widest(d) for d in everything))
    best = [exit_report.best for exit_report in report.exits]
    if any(best):
        table.add_row("tokens a round", *(f"{b.tokens_per_round:.2f}" if b else "" for b in best))
        settings = (f"θ {b.threshold:.2f}, {b.length}" if b else "" for b in best)
        table.add_row("  with θ, most drafts", *settings)
    return table


def _agreement(found: DomainReport) -> str:
    return f"{found.agreement:.1%} ± {100 * (found.high - found.low) / 2:.1f}"


def _widest(found: DomainReport) -> str:
    return "none" if found.widest is None else f"{found.widest.coverage:.1%}"


def _thresholds(found: ExitReport) -> Table:
    title = f"Exit after layer {found.cut} ({found.kind}, vocabulary {found.vocabulary:,})"
    if found.best is not None:
        title += "\nright: tokens a round / drafts a token, by most drafts a round"
    lengths = [str(length) for length in DRAFT_LENGTHS] if found.best else []
    table = _table(title, "θ", "coverage", "precision", *lengths)
    cells = {(d.threshold, d.length): d for d in found.drafting}
    for at in found.domain("all").thresholds:
        table.add_row(
            f"{at.threshold:.2f}",
            f"{at.coverage:.1%}",
            "" if at.precision is None else f"{at.precision:.1%}",
            *(_cell(cells[at.threshold, int(length)], found.best) for length in lengths),
        )
    return table


def _cell(drafting: Drafting, best: Drafting | None) -> str:
    text = f"{drafting.tokens_per_round:.2f}/{drafting.drafted_per_token:.2f}"
    return f"[bold]{text}[/bold]" if drafting == best else text


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table
