"""`collm bench peers`: llama.cpp's RPC split and Transformers' early exit beside our modes."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from collm.bench.datasets import Item, choose_items
from collm.cli.demo import PROMPTS
from collm.cli.eval_quality import read_items
from collm.cli.options import JsonOption, output_file
from collm.cli.progress import counting_bar
from collm.cli.run import default_placement
from collm.cli.show import plain_table, wide_console
from collm.model.artifact import Artifact, check_placement
from collm.model.sources import resolve_source

_OURS = "standalone,fair-split,verified,verified-ahead,verified-lookup-ahead"


def peers_command(
    artifact: Annotated[Path, typer.Argument(help="The artifact folder.")],
    gguf: Annotated[
        str, typer.Option(help="The GGUF file that the peers run, or the word smollm2.")
    ] = "smollm2",
    link: Annotated[str, typer.Option(help="Named or such as rtt:50ms.")] = "paper",
    llama_cpp: Annotated[
        Path | None,
        typer.Option(help="Folder of llama-server and ggml-rpc-server, for its RPC split."),
    ] = None,
    contenders: Annotated[
        str, typer.Option(help="Ours beside plain cloud, as for collm bench table.")
    ] = _OURS,
    prompts: Annotated[
        Path | None, typer.Option(help="As --data of collm eval quality; default: the demo's.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="So many prompts.")] = None,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of every answer.")] = 48,
    rounds: Annotated[int, typer.Option(min=1, help="Answers of everyone to a prompt.")] = 3,
    prompt_tokens: Annotated[
        int, typer.Option(min=16, help="Longer articles and passages are cut to this.")
    ] = 512,
    placement: Annotated[
        int | None, typer.Option(help="Layers on the edge; default: the cut nearest to half.")
    ] = None,
    threads: Annotated[
        int, typer.Option(min=1, max=256, help="Compute threads, and cores, of each side.")
    ] = 1,
    as_json: JsonOption = False,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")] = None,
) -> None:
    """Time other people's ways of running the same model over the same link."""
    from collm.bench.contender import Surroundings
    from collm.bench.contenders import choose_contenders
    from collm.bench.cores import choose_cores, pinned_here
    from collm.bench.failures import require
    from collm.bench.link_probe import calibrate
    from collm.bench.machine import load_average, this_machine
    from collm.bench.peer_llama_rpc import LlamaRpc, find_programs
    from collm.bench.peer_transformers import TransformersPeer, best_early_exit
    from collm.bench.peers import Ours, Peer, peer_rows, run_peers
    from collm.bench.quality import read_prompts
    from collm.bench.reference import Reference
    from collm.bench.table_raw import commit
    from collm.bench.table_world import Connector, Processes, is_plain
    from collm.link.shapes import parse_link

    output_file(out)
    require("torch", "transformers")
    opened, file, shape = Artifact(artifact), resolve_source(gguf), parse_link(link)
    programs = None if llama_cpp is None else find_programs(llama_cpp)
    chosen = choose_contenders(contenders, None)
    placed = default_placement(opened.manifest) if placement is None else placement
    check_placement(opened.manifest, placed)
    items = [Item(prompt=text) for text in PROMPTS]
    if prompts is not None:
        items = read_items(prompts, opened)
    found = read_prompts(
        opened, choose_items(items, [], limit), prompt_tokens=prompt_tokens, max_tokens=tokens
    ).chosen
    layers, cores, load = opened.architecture.layers, choose_cores(threads), load_average()
    cuts = [entry.cut for entry in opened.exits(None, layers) if entry.cut < layers]
    with ExitStack() as stack:
        progress = stack.enter_context(counting_bar("calibrating", width=40, timed=False))
        measured = None if is_plain(shape) else asdict(calibrate(shape))
        progress("loading", 0, 1)
        world = stack.enter_context(Processes(artifact, threads=threads, cores=cores))
        connector = Connector(world)
        around = Surroundings(artifact=opened, placement=placed, threads=threads, connect=connector)
        peers: list[Peer] = [Ours(one, around, world, shape) for one in chosen]
        if programs is not None:
            split = LlamaRpc(
                programs,
                file,
                shape,
                far_layers=layers - placed,
                context=max(len(one.ids) for one in found) + tokens + 64,
                threads=threads,
                cores=cores,
            )
            peers.append(stack.enter_context(split))
        stack.enter_context(pinned_here(cores.edge))
        reference = Reference(file, threads)
        progress("trying early exits", 0, 1)
        peers.append(TransformersPeer(reference, None))
        if (early := best_early_exit(reference, cuts, found[0].ids)) is not None:
            peers.append(TransformersPeer(reference, early))
        answers = run_peers(peers, found, tokens=tokens, rounds=rounds, progress=progress)
    raw = {
        "format": "collm-peers",
        "version": 1,
        "machine": asdict(this_machine()),
        "commit": commit(),
        "command": shlex.join(["collm", *sys.argv[1:]]),
        "artifact": {"model": opened.manifest.name, "fingerprint": opened.fingerprint},
        "options": {"tokens": tokens, "rounds": rounds, "placement": placed, "threads": threads},
        "link": {"name": shape.name, "measured": measured},
        "load": [load, load_average()],
        "peers": [{"name": peer.name, "note": peer.note} for peer in peers],
        "answers": [answer.to_json() for answer in answers],
    }
    text = json.dumps(raw, indent=1)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
    if as_json:
        typer.echo(text)
        return
    columns = ["peer", "× plain", "a token", "first token", "later token", "edge CPU", "cloud CPU"]
    table = plain_table(f"{shape.name}: medians of {tokens} tokens", [*columns, "same tokens"])
    for row in peer_rows(raw):
        times = (row.per_token, row.first_token, row.decode, row.near_cpu, row.far_cpu)
        cells = [f"{1000 * seconds:.1f} ms" for seconds in times]
        table.add_row(row.name, f"{row.against_plain:.2f}", *cells, f"{row.same_prefix:.0f}")
    wide_console(120).print(table)
    if programs is None:
        typer.echo(
            "llama.cpp's RPC split was left out: no wheel has it; build llama.cpp with "
            "-DGGML_RPC=ON and give --llama-cpp build/bin",
            err=True,
        )
