"""`collm calibrate`: thresholds at which exits keep a promised agreement, into the manifest."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from collm.cli.eval import ExitsOption, score_file
from collm.cli.options import JsonOption, ThreadsOption, tune_folder
from collm.cli.show import plain_table
from collm.errors import UsageError
from collm.model.artifact import Artifact
from collm.model.exits import set_thresholds

if TYPE_CHECKING:
    from collm.tune.thresholds import Realised, Thresholds

_ROWS = 40_000


def calibrate_command(
    artifact: Annotated[Path, typer.Argument(help="The artifact folder.")],
    agreement: Annotated[
        float, typer.Option(help="Expected share of tokens that are the full model's, 0.5 to 1.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            help="A corpus made by collm synthesize, its held-out part; default: collm tune's own."
        ),
    ] = None,
    exits: ExitsOption = None,
    together: Annotated[
        bool, typer.Option("--together", help="The exits answer in one cascade: share the errors.")
    ] = False,
    check: Annotated[
        bool, typer.Option(help="Keep half of the examples to check the promise on.")
    ] = True,
    limit: Annotated[int, typer.Option(min=1, help="About so many tokens are scored.")] = _ROWS,
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Choose thresholds with a guarantee (conformal risk control) and store them."""
    from collm.tune.thresholds import choose_thresholds

    if not 0.5 < agreement < 1:
        raise UsageError(
            f"--agreement {agreement:g}: expected a share above 0.5 and below 1, such as 0.98"
        )
    data = data or tune_folder(artifact) / "corpus.jsonl"
    if not data.exists():
        raise UsageError(
            f"{data}: no corpus there; name one with --data, made by: collm synthesize {artifact} "
            "--tokens 200000 --out corpus.jsonl"
        )
    opened = Artifact(artifact)
    scored = score_file(opened, data, exits, limit, threads)
    found = choose_thresholds(scored.scores, agreement, together=together, check=check)
    set_thresholds(
        artifact,
        {one.cut: (one.threshold, found.record(one, scored.sha256)) for one in found.chosen},
    )
    if as_json:
        about = {"artifact": str(artifact), "corpus": str(data), "corpus_sha256": scored.sha256}
        typer.echo(json.dumps(about | asdict(found), indent=1))
    else:
        _print(Console(), artifact, found)


def _print(console: Console, artifact: Path, found: Thresholds) -> None:
    columns = ["after layer", "threshold", "agreement", "coverage", "precision"]
    table = plain_table(f"Thresholds for an agreement of {found.agreement:.1%}", columns)
    for one in found.chosen:
        threshold = "answers nothing" if one.threshold is None else f"{one.threshold:.4f}"
        # What was realised on text that had no say in the choice, where there is such text.
        table.add_row(str(one.cut), threshold, *_cells(one.checked or one.calibrated))
    console.print(table)
    say = partial(console.print, highlight=False, soft_wrap=True)
    first = found.chosen[0]
    on = f"chosen on {first.calibrated.examples} examples ({first.calibrated.rows:,} tokens)"
    if first.checked is None:
        say(f"{on}; figures are of the same examples: nothing was kept to check on.")
    else:
        say(
            f"{on}; figures are of {first.checked.examples} others ({first.checked.rows:,} tokens)."
        )
    if found.cascade is not None:
        say(f"All exits in one cascade: agreement {found.cascade:.1%}.")
    say(f"Written to {artifact / 'manifest.json'}.")


def _cells(realised: Realised) -> tuple[str, str, str]:
    precision = "" if realised.precision is None else f"{realised.precision:.1%}"
    return f"{realised.agreement:.2%}", f"{realised.coverage:.1%}", precision
