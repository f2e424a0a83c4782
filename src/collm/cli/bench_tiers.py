"""`collm bench tiers`: with and without an edge server on the way, over the same links."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from collm.cli.cloud import layers_of
from collm.cli.demo import PROMPTS
from collm.cli.options import JsonOption, WireOption, numbers, output_file
from collm.cli.progress import counting_bar
from collm.cli.prompts import read_prompts, record_ids
from collm.cli.show import plain_table, wide_console
from collm.errors import UsageError
from collm.link.shapes import LinkShape, parse_link
from collm.model.artifact import Artifact, check_placement
from collm.session.server_exits import askable

if TYPE_CHECKING:
    from collm.bench.tiers import TierRow

_MODES = ("verified", "threshold", "refine")
_NEAR, _FAR = "device-server", "server-cloud"


def tiers_command(
    artifact: Annotated[Path, typer.Argument(help="The artifact folder.")],
    device_placement: Annotated[int, typer.Option(help="Layers on the device.")] = 10,
    server: Annotated[
        str,
        typer.Option(
            help="Layers of the edge server, such as 10:20; with exits that read shallower states, "
            "from 0 on."
        ),
    ] = "0:20",
    server_exits: Annotated[
        str, typer.Option(help="Exits that the server asks, such as 15,20; default: all it can.")
    ] = "",
    links: Annotated[
        str, typer.Option(help="Both links, each as for collm bench table.")
    ] = f"{_NEAR}=rtt:4ms@100mbit,{_FAR}=rtt:40ms@100mbit",
    modes: Annotated[str, typer.Option(help="verified, threshold and refine, or some of them.")] = (
        "verified,threshold"
    ),
    criterion: Annotated[
        str, typer.Option(help="What a token of the device's exits must meet.")
    ] = "confidence:0.8",
    server_criterion: Annotated[
        str, typer.Option(help="What a token of the server's exits must meet.")
    ] = "confidence:0.8",
    wire: WireOption = "f32",
    prompts: Annotated[
        Path | None, typer.Option(help="JSONL, as for collm run; default: the demo's.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="So many prompts.")] = None,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of every answer.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Answers of each kind to a prompt.")] = 3,
    kill: Annotated[
        bool,
        typer.Option("--kill", help="Also kill a server in mid-answer, with a sibling beside it."),
    ] = False,
    threads: Annotated[
        int, typer.Option(min=1, max=256, help="Compute threads of each process.")
    ] = 1,
    as_json: JsonOption = False,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")] = None,
) -> None:
    """Share of tokens each tier answers, latency and cloud work, against two tiers."""
    from collm.bench.machine import load_average, this_machine
    from collm.bench.table_raw import commit
    from collm.bench.tiers import TiersOptions, answers_json, run_kills, run_tiers, tier_rows
    from collm.bench.tiers_world import TiersWorld

    output_file(out)
    opened, load = Artifact(artifact), load_average()
    near, far = parse_links(links)
    chosen = tuple(modes.split(","))
    if not set(chosen) <= set(_MODES):
        raise UsageError(f"--modes {modes!r}: expected some of {', '.join(_MODES)}")
    check_placement(opened.manifest, device_placement)
    layers = layers_of(opened, server, option="--server")
    if not layers.start <= device_placement < layers.stop < opened.architecture.layers:
        raise UsageError(
            f"--server {server} with {device_placement} layers on the device: expected a server "
            f"that has the device's end within its layers, and leaves some to the cloud"
        )
    asked = numbers("--server-exits", server_exits) if server_exits else askable(opened, layers)
    options = TiersOptions(
        placement=device_placement,
        server=layers,
        modes=chosen,
        tokens=tokens,
        rounds=rounds,
        criterion=criterion,
        wire=wire,
        threads=threads,
    )
    words = ["--blocks", f"{layers.start}:{layers.stop}", "--upstream-wire", wire]
    if asked:
        words += ["--exits", ",".join(map(str, asked)), "--criterion", server_criterion]
    tokenizer = opened.tokenizer()
    records = read_prompts(prompts) if prompts else [{"prompt": text} for text in PROMPTS]
    ids = [record_ids(tokenizer, record, raw=False) for record in records[:limit]]
    with ExitStack() as stack:
        progress = stack.enter_context(counting_bar("starting", width=40, timed=False))
        world = TiersWorld(artifact, near=near, far=far, server=words, threads=threads)
        stack.enter_context(world)
        answers = run_tiers(opened, ids, world, options, progress)
        kills = run_kills(opened, ids, world, options, progress) if kill else []
    raw: dict[str, Any] = {
        "format": "collm-tiers",
        "version": 1,
        "machine": asdict(this_machine()),
        "commit": commit(),
        "command": shlex.join(["collm", *sys.argv[1:]]),
        "artifact": {"model": opened.manifest.name, "fingerprint": opened.fingerprint},
        "options": {**asdict(options), "server": [layers.start, layers.stop], "exits": asked,
                    "server_criterion": server_criterion},
        "links": {_NEAR: near.name, _FAR: far.name},
        "load": [load, load_average()],
        "answers": answers_json(answers),
        "kills": answers_json(kills),
    }  # fmt: skip
    rows = tier_rows(raw["answers"], tokens)
    raw["rows"] = [asdict(row) for row in rows]
    text = json.dumps(raw, indent=1)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
    if as_json:
        typer.echo(text)
    else:
        _print(rows, near, far, tokens)
        for one in kills:
            same = "the text is the same" if one.is_undisturbed else "THE TEXT DIFFERS"
            typer.echo(
                f"{one.mode}: server killed after {one.after} tokens, {same}; longest wait for a "
                f"token {1000 * one.longest_gap_seconds:.0f} ms"
            )
    if not all(one.is_undisturbed for one in kills) or any(
        row.mode == "verified" and row.identical < row.answers for row in rows
    ):
        raise typer.Exit(1)


def parse_links(text: str) -> tuple[LinkShape, LinkShape]:
    """Near and far of `device-server=SHAPE,server-cloud=SHAPE`. Raises UsageError."""
    found = dict(part.partition("=")[::2] for part in text.split(","))
    if found.keys() != {_NEAR, _FAR}:
        raise UsageError(
            f"--links {text[:80]!r}: expected both {_NEAR}=SHAPE and {_FAR}=SHAPE, separated by a "
            "comma"
        )
    return parse_link(found[_NEAR]), parse_link(found[_FAR])


def _print(rows: list[TierRow], near: LinkShape, far: LinkShape, tokens: int) -> None:
    columns = ["", "chosen by", "a token", "first token", "against two", "device link",
               "cloud link", "cloud CPU", "server CPU", "the model's"]  # fmt: skip
    table = plain_table(f"{near.name}, then {far.name}: medians of {tokens} tokens", columns)
    for row in rows:
        shares = ", ".join(f"{source} {share:.0%}" for source, share in row.shares.items())
        table.add_row(
            f"{row.mode}, {row.arrangement}",
            shares,
            f"{1000 * row.token_seconds:.1f} ms",
            f"{1000 * row.first_token_seconds:.0f} ms",
            f"{row.wall_ratio:.2f} ×",
            f"{row.device_bytes / 1000:.2f} kB",
            f"{row.cloud_bytes / 1000:.2f} kB",
            f"{1000 * row.cloud_cpu_seconds:.1f} ms",
            f"{1000 * row.server_cpu_seconds:.1f} ms",
            f"{row.identical} of {row.answers}",
        )
    wide_console(160).print(table)
