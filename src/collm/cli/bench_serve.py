"""`collm bench serve`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from collm.cli.demo import PROMPTS
from collm.cli.options import JsonOption, ThreadsOption, output_file, thread_count
from collm.cli.progress import counting_bar
from collm.cli.show import megabytes, plain_table, wide_console
from collm.errors import UsageError
from collm.model.artifact import Artifact, check_placement
from collm.session.placed import default_placement


def serve_bench_command(
    artifact: Annotated[Path, typer.Argument(help="The artifact folder.")],
    placement: Annotated[int | None, typer.Option(help="Layers on the edge.")] = None,
    mode: Annotated[str, typer.Option(help="As for collm run.")] = "verified",
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of an answer.")] = 48,
    rounds: Annotated[int, typer.Option(min=1, help="Answers with and without the server.")] = 9,
    streams: Annotated[int, typer.Option(min=1, help="Conversations at once.")] = 50,
    stream_tokens: Annotated[int, typer.Option(min=2, help="Tokens of each of them.")] = 32,
    threads: ThreadsOption = 1,
    as_json: JsonOption = False,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")] = None,
) -> None:
    """What the OpenAI-compatible server costs, and what a crowd does to it."""
    from collm.bench.serving import ServingOptions, run_serving

    output_file(out)
    opened = Artifact(artifact)
    placed = default_placement(opened.manifest) if placement is None else placement
    check_placement(opened.manifest, placed)
    if placed == opened.architecture.layers:
        raise UsageError(f"placement {placed} leaves nothing to the cloud; expected a cut")
    options = ServingOptions(
        placement=placed,
        mode=mode,
        tokens=tokens,
        rounds=rounds,
        streams=streams,
        stream_tokens=stream_tokens,
        threads=thread_count(threads),
    )
    with counting_bar("loading") as progress:
        report = run_serving(artifact, PROMPTS, options, progress)
    text = json.dumps(report, indent=1)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
    if as_json:
        typer.echo(text)
        return
    _print(report)


def _print(report: dict[str, Any]) -> None:
    console = wide_console(110)
    columns = ["milliseconds", "without", "with the server", "more (median of pairs)", "ratio"]
    table = plain_table("One answer at a time", columns)
    for name, figures in (("first token", "first_token"), ("each token after", "each_token")):
        one = report[figures]
        table.add_row(
            name,
            _milliseconds(one["without"]),
            _milliseconds(one["with"]),
            _milliseconds(one["more"]),
            f"{one['ratio']:.3f}",
        )
    bare = report["bare"]
    way, cpu = f"{1000 * bare['on_its_way']:.3f}", f"{1000 * bare['cpu']:.3f}"
    table.add_row("a token from the engine to its reader", "", way, "", "")
    table.add_row("CPU time of the server a token", "", cpu, "", "")
    console.print(table)
    crowd = report["crowd"]
    table = plain_table(f"{crowd['streams']} conversations at once", ["", "figure"])
    table.add_row("finished", f"{crowd['finished']} of {crowd['streams']}")
    table.add_row("tokens/s, all together", f"{crowd['tokens_per_second']:.1f}")
    first = crowd["first_token"]["median"]
    table.add_row(
        "first token, median and slowest", f"{first:.2f} s, {crowd['slowest_first_token']:.2f} s"
    )
    total = crowd["total"]["median"]
    table.add_row("whole answer, median and slowest of it", f"{total:.2f} s, "
                  f"{crowd['slowest_of_median']:.2f} x")  # fmt: skip
    table.add_row("longest pause between two tokens", f"{crowd['longest_gap']:.2f} s")
    for name in ("server", "cloud"):
        held = crowd[f"{name}_bytes"]
        table.add_row(
            f"memory of the {name}, before and at most",
            f"{megabytes(held['before'])}, {megabytes(held['peak'])}",
        )
    console.print(table)


def _milliseconds(one: dict[str, Any]) -> str:
    return f"{1000 * one['median']:.2f} ({1000 * one['p25']:.2f} to {1000 * one['p75']:.2f})"
