"""`collm bench wire` and `collm bench adapt`: what travels, and how it adapts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from collm.cli.demo import PROMPTS
from collm.cli.options import JsonOption, ThreadsOption, numbers, output_file, thread_count
from collm.cli.progress import counting_bar
from collm.cli.prompts import record_ids
from collm.cli.run import default_placement
from collm.cli.show import plain_table, wide_console
from collm.errors import UsageError
from collm.model.artifact import Artifact, check_placement


def wire_command(
    artifact: Annotated[Path, typer.Argument(help="The artifact folder.")],
    placements: Annotated[
        str,
        typer.Option(help="Layers on the edge, such as 5,15; default: half the layers."),
    ] = "",
    prompts: Annotated[int, typer.Option(min=1, help="Of the demo's, so many.")] = 4,
    tokens: Annotated[int, typer.Option(min=8, help="Tokens of every answer.")] = 100,
    threshold: Annotated[float, typer.Option(help="As for collm run.")] = 0.6,
    draft: Annotated[int, typer.Option(help="As for collm run.")] = 8,
    threads: ThreadsOption = 0,
    as_json: JsonOption = False,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")] = None,
) -> None:
    """Bytes a token, agreement and accepted drafts of every wire format."""
    from collm.bench.wire import WireOptions, run_wire

    output_file(out)
    opened = Artifact(artifact)
    chosen = numbers("--placements", placements) if placements else []
    chosen = chosen or [default_placement(opened.manifest)]
    for placement in chosen:
        check_placement(opened.manifest, placement)
        if not 0 < placement < opened.architecture.layers:
            raise UsageError(f"placement {placement}: hidden states travel between two cuts only")
    tokenizer = opened.tokenizer()
    ids = [record_ids(tokenizer, {"prompt": text}, raw=False) for text in PROMPTS[:prompts]]
    options = WireOptions(
        placements=tuple(chosen),
        tokens=tokens,
        threshold=threshold,
        draft=draft,
        threads=thread_count(threads),
    )
    with counting_bar("reading") as progress:
        report = run_wire(opened, ids, options, progress)
    text = json.dumps(report.to_json(), indent=1)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
    if as_json:
        typer.echo(text)
        return
    columns = ["cut", "wire", "row", "up/token", "down/token", "agreement", "accepted", "identical"]
    table = plain_table("What travels, bytes", columns)
    for one in report.figures:
        table.add_row(
            str(one.placement),
            one.wire,
            f"{one.row_bytes:,}",
            f"{one.bytes_up:,.1f}",
            f"{one.bytes_down:,.1f}",
            f"{100 * one.agreement:.1f} ± {100 * one.margin:.1f} %",
            f"{one.accepted:.2f}",
            f"{one.identical}/{one.answers}",
        )
    _print(table)


def adapt_command(
    artifact: Annotated[Path, typer.Argument(help="The artifact folder.")],
    before: Annotated[str, typer.Option(help="The link at first.")] = "rtt:3ms@100mbit",
    after: Annotated[str, typer.Option(help="The link from the change on.")] = "rtt:3ms@1mbit",
    contenders: Annotated[
        str | None, typer.Option(help="Such as 'verified f32,verified auto'; default: all.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=32, help="Tokens of every answer.")] = 400,
    change_at: Annotated[int, typer.Option(min=8, help="The link changes after so many.")] = 100,
    rounds: Annotated[int, typer.Option(min=1, help="Answers of everyone.")] = 3,
    placement: Annotated[int | None, typer.Option(help="Layers on the edge.")] = None,
    good: Annotated[
        float, typer.Option(min=0.1, max=1.0, help="Share of the best fixed setting's rate.")
    ] = 0.9,
    prompt: Annotated[str, typer.Option(help="What to ask.")] = PROMPTS[0],
    threads: ThreadsOption = 1,
    as_json: JsonOption = False,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")] = None,
) -> None:
    """Let a link become slow in mid-answer, and see how soon the controller has settled."""
    from collm.bench.adapt import CONTENDERS, AdaptOptions, run_adapt
    from collm.link.shapes import parse_link

    output_file(out)
    opened = Artifact(artifact)
    names = list(CONTENDERS) if contenders is None else contenders.split(",")
    for name in names:
        if name not in CONTENDERS:
            raise UsageError(f"contender {name!r}: expected some of {', '.join(CONTENDERS)}")
    placed = default_placement(opened.manifest) if placement is None else placement
    check_placement(opened.manifest, placed)
    options = AdaptOptions(
        before=parse_link(before),
        after=parse_link(after),
        tokens=tokens,
        change_at=min(change_at, tokens // 2),
        rounds=rounds,
        placement=placed,
        threads=thread_count(threads),
        good=good,
    )
    ids = record_ids(opened.tokenizer(), {"prompt": prompt}, raw=False)
    with counting_bar("loading", timed=False) as progress:
        report = run_adapt(opened, artifact, ids, names, options, progress)
    text = json.dumps(report, indent=1)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
    if as_json:
        typer.echo(text)
        return
    columns = ["contender", "before", "after", "of the best fixed", "settled", "same text"]
    table = plain_table(f"Tokens/s; the link goes from {before} to {after}", columns)
    for one in report["figures"]:
        table.add_row(*_adapt_row(one))
    _print(table)


def _adapt_row(one: dict[str, Any]) -> list[str]:
    settled = one["settled_seconds"]
    return [
        one["contender"],
        f"{one['before']:.1f}",
        f"{one['after']:.1f}",
        f"{one['of_best_fixed']:.2f} of {one['best_fixed']}",
        "no" if settled is None else f"{settled:.1f} s",
        "yes" if one["identical"] else "NO",
    ]


def _print(table: Any) -> None:
    wide_console(110).print(table)
