"""`collm eval exits`: how good an artifact's exits are on held-out text."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from collm.cli.eval_policy import eval_policy_command
from collm.cli.eval_quality import eval_quality_command
from collm.cli.options import JsonOption, ThreadsOption, numbers, output_file, thread_count
from collm.cli.progress import counting_bar
from collm.cli.show import wide_console
from collm.errors import UsageError
from collm.model.artifact import Artifact

if TYPE_CHECKING:
    from collm.tune.scores import ExitScores

evaluation = typer.Typer(help="Measure how good exits are.", no_args_is_help=True)
evaluation.command("quality")(eval_quality_command)
evaluation.command("policy")(eval_policy_command)

DataOption = Annotated[
    Path, typer.Option("--data", help="A corpus made by collm synthesize; its held-out part.")
]
ExitsOption = Annotated[
    str | None, typer.Option("--exits", help="Layers, such as 5,15; default: every trained exit.")
]
ROWS = 20_000


@evaluation.command("exits")
def eval_exits_command(
    artifact: Annotated[Path, typer.Argument(help="The artifact folder.")],
    data: DataOption,
    plot: Annotated[
        Path | None, typer.Option(help="Draw plots (PNG) into this folder.", metavar="DIR")
    ] = None,
    exits: ExitsOption = None,
    limit: Annotated[int, typer.Option(min=1, help="About so many tokens are scored.")] = ROWS,
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")] = None,
) -> None:
    """Agreement, calibration and drafts of exits, against the full model, per domain."""
    from collm.tune.report import make_report
    from collm.tune.report_table import print_report

    output_file(out)
    if plot is not None:
        can_plot(plot)
    opened = Artifact(artifact)
    scored = score_file(opened, data, exits, limit, threads)
    report = make_report(opened, scored.scores, corpus=str(data), corpus_sha256=scored.sha256)
    text = json.dumps(report.to_json(), indent=1)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
    plots: list[Path] = []
    if plot is not None:
        from collm.tune.plots import draw_plots

        plots = draw_plots(report, plot)
    if as_json:
        typer.echo(text)
        return
    # Wide enough for the tables also where the output is no terminal.
    print_report(wide_console(100), report)
    for path in plots:
        typer.echo(f"wrote {path}")


@dataclass(frozen=True, kw_only=True)
class ScoredFile:
    """Scores over a corpus, and the digest of its file."""

    scores: ExitScores
    sha256: str


def score_file(
    artifact: Artifact, data: Path, exits: str | None, limit: int, threads: int
) -> ScoredFile:
    """Score an artifact's exits on a corpus, with a bar. What cannot work is refused at once."""
    from collm.tune.corpus import check_tokenizer, read_corpus
    from collm.tune.scores import choose_examples, exits_to_score, score_exits

    cuts = exits_to_score(artifact, None if exits is None else numbers("--exits", exits))
    corpus = read_corpus(data)
    check_tokenizer(corpus, artifact)
    examples = choose_examples(corpus, limit)
    with counting_bar("loading", width=12, unit="tokens") as progress:
        scores = score_exits(
            artifact, examples, cuts, threads=thread_count(threads), progress=progress
        )
    with data.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return ScoredFile(scores=scores, sha256=sha256)


def can_plot(folder: Path) -> None:
    """Refuse plots that could not be drawn, before any work is done for them."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--plot {folder}: a file; expected a folder, which may not exist yet")
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: pip install 'collm[plot]'")
