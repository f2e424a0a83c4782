"""`collm trace`: what exits and full model say of texts, recorded for learned policies."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from collm.cli.eval import DataOption, ExitsOption
from collm.cli.options import JsonOption, ThreadsOption, numbers, output_file, thread_count
from collm.model.artifact import Artifact

_ROWS = 20_000


def trace_command(
    artifact: Annotated[Path, typer.Argument(help="The artifact folder.")],
    data: DataOption,
    out: Annotated[Path, typer.Option(help="The traces file to write.")],
    exits: ExitsOption = None,
    rows: Annotated[int, typer.Option(min=1, help="About so many tokens are traced.")] = _ROWS,
    rollouts: Annotated[
        int, typer.Option(min=0, help="Wrong tokens whose consequences are rolled out.")
    ] = 0,
    held_out: Annotated[
        bool,
        typer.Option(
            "--held-out/--training", help="Which part; exits know the training part too well."
        ),
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Chooses what is rolled out.")] = 0,
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Record per token what every exit says, what the full model says, costs and coherence."""
    from collm.tune.corpus import check_tokenizer, read_corpus
    from collm.tune.progress import progress_bar
    from collm.tune.scores import exits_to_score
    from collm.tune.trace import examples_to_trace, trace
    from collm.tune.trace_file import write_traces

    output_file(out)
    opened = Artifact(artifact)
    cuts = exits_to_score(opened, None if exits is None else numbers("--exits", exits))
    corpus = read_corpus(data)
    check_tokenizer(corpus, opened)
    part = "held-out" if held_out else "training"
    examples = examples_to_trace(corpus, part, rows)
    started = time.perf_counter()
    with progress_bar() as bar:
        task = bar.add_task("loading", total=None)
        made = trace(
            opened,
            data,
            examples,
            cuts,
            part=part,
            rollouts=rollouts,
            seed=seed,
            threads=thread_count(threads),
            progress=lambda what, done, total: bar.update(
                task, description=what, completed=done, total=total
            ),
            announce=lambda line: typer.echo(line, err=True),
        )
    write_traces(out, made)
    agreement = dict(zip(cuts, made.right.mean(axis=0).tolist(), strict=True))
    rolled = int(made.rolled.sum())
    about = {
        "traces": str(out),
        "texts": made.texts,
        "rows": len(made),
        "agreement": agreement,
        "rolled_out": rolled,
        "mean_drop": float(made.drops[made.rolled].mean()) if rolled else None,
        "rejoined": float(made.rejoined[made.rolled].mean()) if rolled else None,
        "cloud_seconds": made.costs.cloud,
        "edge_seconds": [made.costs.edge_seconds(i + 1) for i in range(len(cuts))],
        "wall_seconds": time.perf_counter() - started,
    }
    if as_json:
        typer.echo(json.dumps(about, indent=1))
        return
    shares = ", ".join(f"{cut}: {share:.1%}" for cut, share in agreement.items())
    typer.echo(f"{made.texts} texts, {len(made):,} tokens; exits agree {shares}")
    if rolled:
        typer.echo(
            f"{rolled:,} wrong tokens rolled out: {about['mean_drop']:.3f} nats a token lost, "
            f"{about['rejoined']:.0%} go on alike"
        )
    typer.echo(f"wrote {out} in {about['wall_seconds']:.0f} s")
