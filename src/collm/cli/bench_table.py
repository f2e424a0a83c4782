"""`collm bench table`: every mode and baseline, over every link, beside the full model's text."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from collm.bench.datasets import Item, choose_items
from collm.cli.demo import PROMPTS
from collm.cli.eval_quality import read_items
from collm.cli.options import JsonOption
from collm.cli.progress import counting_bar
from collm.cli.run import default_placement
from collm.cli.show import plain_table, wide_console
from collm.model.artifact import Artifact, check_placement


def table_command(
    artifact: Annotated[Path, typer.Argument(help="The artifact folder.")],
    prompts: Annotated[
        Path | None, typer.Option(help="As --data of collm eval quality; default: the demo's.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of every answer.")] = 100,
    naive_tokens: Annotated[
        int, typer.Option(min=2, help="Tokens of the naive split's, which is very slow.")
    ] = 16,
    prompt_tokens: Annotated[
        int, typer.Option(min=16, help="Longer articles and passages are cut to this.")
    ] = 512,
    links: Annotated[
        str, typer.Option(help="Named or such as rtt:50ms, separated by commas.")
    ] = "paper,wifi,lte,wan",
    contenders: Annotated[
        str | None, typer.Option(help="Such as verified,threshold-0.8; default: all.")
    ] = None,
    modes: Annotated[
        str | None, typer.Option(help="All contenders of these modes instead.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Answers of everyone to a prompt.")] = 3,
    limit: Annotated[
        int | None, typer.Option(min=1, help="So many prompts, domains in turn; default: all.")
    ] = None,
    placement: Annotated[
        int | None, typer.Option(help="Layers on the edge; default: the cut nearest to half.")
    ] = None,
    threads: Annotated[
        int, typer.Option(min=1, max=256, help="Compute threads, and cores, of each side.")
    ] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the oracle's mistakes.")] = 0,
    cloud_load: Annotated[
        int, typer.Option(min=0, max=64, help="Busy processes beside the cloud on its core.")
    ] = 0,
    edge_load: Annotated[
        int, typer.Option(min=0, max=64, help="Busy processes beside the edge on its core.")
    ] = 0,
    as_json: JsonOption = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Keep answers, table.json and the report here; a run broken off goes on.",
            metavar="DIR",
        ),
    ] = None,
) -> None:
    """Wall time, cloud work and quality of every mode and baseline over shaped links."""
    from collm.bench.contenders import choose_contenders
    from collm.bench.cores import busy, choose_cores, pinned_here
    from collm.bench.link_probe import calibrate
    from collm.bench.machine import load_average
    from collm.bench.quality import read_prompts
    from collm.bench.quality_measure import needs_rouge
    from collm.bench.table import Length, Table
    from collm.bench.table_answers import TableFile, TableHeader, digest_of
    from collm.bench.table_raw import to_json
    from collm.bench.table_report import write_report
    from collm.bench.table_world import Processes, is_plain
    from collm.link.shapes import parse_link
    from collm.model.files import sha256_of

    needs_rouge()
    opened = Artifact(artifact)
    chosen = choose_contenders(contenders, modes)
    shapes = list({s.name: s for s in map(parse_link, links.split(","))}.values())
    placed = default_placement(opened.manifest) if placement is None else placement
    check_placement(opened.manifest, placed)
    items = [Item(prompt=text) for text in PROMPTS]
    if prompts is not None:
        items = read_items(prompts, opened)
    found = read_prompts(
        opened, choose_items(items, [], limit), prompt_tokens=prompt_tokens, max_tokens=tokens
    )
    header = TableHeader(
        fingerprint=opened.fingerprint,
        manifest=sha256_of(opened.folder / "manifest.json"),
        data=digest_of(PROMPTS) if prompts is None else sha256_of(prompts),
        tokens=tokens,
        naive_tokens=naive_tokens,
        prompt_tokens=prompt_tokens,
        placement=placed,
        threads=threads,
        seed=seed,
        cloud_load=cloud_load,
        edge_load=edge_load,
    )
    kept = TableFile(out, header)
    cores = choose_cores(threads)
    if cores.are_shared:
        typer.echo(
            f"edge and cloud share cores {', '.join(map(str, cores.cloud))}: there are too few for "
            f"--threads {threads} each, so times say little",
            err=True,
        )
    load = load_average()
    with ExitStack() as stack:
        progress = stack.enter_context(counting_bar("calibrating links", width=40, timed=False))
        measured = {s.name: asdict(calibrate(s)) for s in shapes if not is_plain(s)}
        stack.enter_context(busy(cloud_load, cores.cloud))
        stack.enter_context(busy(edge_load, cores.edge))
        world = stack.enter_context(Processes(artifact, threads=threads, cores=cores))
        progress("loading", 0, 1)
        table = Table(
            opened,
            chosen,
            shapes,
            world,
            placement=placed,
            length=Length(tokens=tokens, naive_tokens=naive_tokens),
            threads=threads,
            seed=seed,
        )
        stack.enter_context(pinned_here(cores.edge))
        answers = table.run(found.chosen, rounds, kept, progress)
    options = {
        **{name: getattr(header, name) for name in header.__dataclass_fields__},
        "prompts": len(found.chosen),
        "rounds": rounds,
        "edge_cores": cores.edge,
        "cloud_cores": cores.cloud,
        "cores_shared": cores.are_shared,
    }
    raw = to_json(
        opened,
        table,
        answers,
        command=shlex.join(["collm", *sys.argv[1:]]),
        options=options,
        shapes=shapes,
        measured=measured,
        load=(load, load_average()),
    )
    text = json.dumps(raw, indent=1)
    written = []
    if out is not None:
        path = out / "table.json"
        path.write_text(text + "\n", encoding="utf-8")
        written.append(path)
        written += write_report([json.loads(text)], out)
    if as_json:
        typer.echo(text)
        return
    _print_summary(raw)
    for path in written:
        typer.echo(f"wrote {path}")


def _print_summary(raw: dict[str, Any]) -> None:
    """Medians per link and contender; the report has the rest."""
    columns = ["contender", "wall", "first token", "cloud CPU", "bytes up", "identical"]
    for link in raw["links"]:
        table = plain_table(f"{link['name']}: medians of an answer", columns)
        for one in raw["contenders"]:
            some = [
                answer
                for answer in raw["answers"]
                if (answer["link"], answer["contender"]) == (link["name"], one["name"])
            ]
            times = [
                f"{1000 * median(answer[name] for answer in some):.0f} ms"
                for name in ("wall_seconds", "first_token_seconds", "cloud_cpu_seconds")
            ]
            up = f"{median(answer['bytes_up'] for answer in some):,.0f}"
            same = sum(answer["identical"] for answer in some)
            table.add_row(one["name"], *times, up, f"{same}/{len(some)}")
        wide_console(110).print(table)
