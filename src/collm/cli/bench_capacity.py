"""`collm bench capacity` and `collm bench scaling`: what a cloud core holds, and what it costs."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from collm.bench.datasets import Item, choose_items
from collm.cli.demo import PROMPTS
from collm.cli.eval_quality import read_items
from collm.cli.options import JsonOption, numbers, output_file
from collm.cli.progress import counting_bar
from collm.cli.run import default_placement
from collm.cli.show import megabytes, plain_table, wide_console
from collm.errors import UsageError
from collm.limits import DEFAULT_LIMITS
from collm.model.artifact import Artifact, check_placement

_BUSY_GENERATOR = 0.7


def capacity_command(
    artifact: Annotated[Path, typer.Argument(help="The artifact folder.")],
    target: Annotated[
        float, typer.Option(min=1, help="Milliseconds a token, 95th percentile over all tokens.")
    ] = 100,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--setting",
            help="As for collm eval quality, instead of the usual ones; may be repeated.",
        ),
    ] = None,
    placements: Annotated[
        str | None,
        typer.Option(help="Layers on the edge, such as 15,20; default: half, and the deepest cut."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="As --data of collm eval quality; default: the demo's.")
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, help="Prompts whose answers are recorded, domains in turn.")
    ] = 6,
    tokens: Annotated[int, typer.Option(min=8, help="Tokens of every answer.")] = 64,
    prompt_tokens: Annotated[
        int, typer.Option(min=16, help="Longer articles and passages are cut to this.")
    ] = 256,
    seconds: Annotated[
        float, typer.Option(min=1, max=600, help="Measured at every number of clients.")
    ] = 15,
    most: Annotated[
        int,
        typer.Option(min=1, max=DEFAULT_LIMITS.max_sessions - 4, help="Clients tried at most."),
    ] = 48,
    as_json: JsonOption = False,
    out: Annotated[
        Path | None, typer.Option(help="Keep the JSON here; a run broken off goes on.")
    ] = None,
) -> None:
    """How many clients one cloud core holds: plain generation against the split modes."""
    from collm.bench.capacity import (
        PLAIN,
        CapacityOptions,
        Cloud,
        run_capacity,
        usual_settings,
    )
    from collm.bench.capacity_file import CapacityFile
    from collm.bench.cores import choose_cores, pin, pinned_here
    from collm.bench.machine import this_machine
    from collm.bench.quality import read_prompts
    from collm.bench.quality_settings import Setting, parse_setting, with_baseline
    from collm.link.grpc_client import connect
    from collm.model.files import sha256_of
    from collm.serve.spawn import spawned_cloud

    output_file(out)
    opened = Artifact(artifact)
    placed = _placements(opened, placements)
    if settings:
        usual = Setting(mode="verified", placement=placed[0])
        chosen = with_baseline([PLAIN, *(parse_setting(text, usual) for text in settings)])
    else:
        chosen = usual_settings(opened, placed)
    items = [Item(prompt=text) for text in PROMPTS]
    if prompts is not None:
        items = read_items(prompts, opened)
    found = read_prompts(
        opened, choose_items(items, [], limit), prompt_tokens=prompt_tokens, max_tokens=tokens
    ).chosen
    options = CapacityOptions(
        target_seconds=target / 1000, tokens=tokens, seconds=seconds, most=most
    )
    cores = choose_cores(1)
    if cores.are_shared:
        raise UsageError("this takes two cores, one of them for the cloud; there is only one")
    header = {
        "target_seconds": options.target_seconds,
        "fingerprint": opened.fingerprint,
        "manifest": sha256_of(opened.folder / "manifest.json"),
        "prompts": [prompt.digest for prompt in found],
        "tokens": tokens,
        "seconds": seconds,
    }
    about = {
        "model": opened.manifest.name,
        "weights": opened.manifest.weights,
        "command": shlex.join(["collm", *sys.argv[1:]]),
        "cloud_cores": cores.cloud,
        "client_cores": cores.edge,
        "machine": asdict(this_machine()),
    }
    kept = CapacityFile(out, header, about)
    with (
        counting_bar("starting", width=48, timed=False) as progress,
        spawned_cloud(artifact, threads=1, limits=DEFAULT_LIMITS) as spawned,
        pinned_here(cores.edge),
    ):
        pin(spawned.pid, cores.cloud)
        cloud = Cloud(connect=lambda: connect(spawned.address, DEFAULT_LIMITS), pid=spawned.pid)
        results = run_capacity(opened, chosen, found, cloud, options, kept, progress)
    if as_json:
        typer.echo(json.dumps(kept.to_json(), indent=1))
        return
    title = f"Clients of one cloud core, 95 % of tokens within {target:g} ms"
    columns = [
        "setting",
        "clients",
        "× plain",
        "p95",
        "median",
        "first token",
        "tokens/s",
        "cloud CPU a token",
        "memory",
        "identical",
    ]
    table = plain_table(title, columns)
    plain = results[0].clients or 0
    for result in results:
        level, clients = result.level, result.clients or 0
        assert level is not None
        times = (
            level.p95_seconds,
            level.median_seconds,
            level.first_token_seconds,
        )
        table.add_row(
            result.name,
            f"{'≥ ' if result.is_most else ''}{clients}",
            f"{clients / plain:.1f}" if plain else "–",
            *(_milliseconds(one) for one in times),
            f"{level.tokens_per_second:.0f}",
            _milliseconds(level.cloud_cpu_per_token),
            megabytes(level.cloud_memory_bytes),
            f"{result.identical}/{result.answers}",
        )
    _print(table)
    busiest = max(level.generator_cpu for result in results if (level := result.level) is not None)
    typer.echo(f"the clients themselves took at most {busiest:.0%} of a core")
    if busiest > _BUSY_GENERATOR:
        typer.echo("they may be what is slow: figures are lower bounds", err=True)


def scaling_command(
    artifact: Annotated[Path, typer.Argument(help="The artifact folder.")],
    contexts: Annotated[
        str | None,
        typer.Option(help="Positions a session holds; default: 16,64,… 2048, as far as it fits."),
    ] = None,
    sessions: Annotated[str, typer.Option(help="Open sessions.")] = "1,2,4,8,16,32",
    positions: Annotated[
        int, typer.Option(min=2, help="Positions of each session where others things vary.")
    ] = 192,
    placement: Annotated[
        int | None, typer.Option(help="Layers on the edge; default: the cut nearest to half.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps timed for every figure.")] = 24,
    plot: Annotated[Path | None, typer.Option(help="Draw the figures into this file.")] = None,
    as_json: JsonOption = False,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")] = None,
) -> None:
    """What a step costs the cloud against context length, open sessions, and layers it runs."""
    from collm.bench.capacity import Cloud
    from collm.bench.cores import choose_cores, pin, pinned_here
    from collm.bench.machine import load_average, this_machine
    from collm.bench.scaling import ScalingOptions, run_scaling
    from collm.cli.prompts import prompt_ids
    from collm.link.grpc_client import connect
    from collm.serve.spawn import spawned_cloud

    output_file(out)
    output_file(plot)
    if plot is not None and find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: pip install 'collm[plot]'")
    opened = Artifact(artifact)
    options = ScalingOptions(
        contexts=_contexts(opened, contexts, steps),
        sessions=_counts("--sessions", sessions, DEFAULT_LIMITS.max_sessions),
        positions=positions,
        placement=_placements(opened, None if placement is None else str(placement))[0],
        steps=steps,
    )
    cores = choose_cores(1)
    tokenizer = opened.tokenizer()
    ids = [i for text in PROMPTS for i in prompt_ids(tokenizer, text, raw=False)]

    @contextmanager
    def open_cloud() -> Iterator[Cloud]:
        with spawned_cloud(artifact, threads=1, limits=DEFAULT_LIMITS) as spawned:
            pin(spawned.pid, cores.cloud)
            yield Cloud(connect=lambda: connect(spawned.address, DEFAULT_LIMITS), pid=spawned.pid)

    load = load_average()
    with (
        counting_bar("starting", width=32, timed=False) as progress,
        pinned_here(cores.edge),
    ):
        report = run_scaling(opened, ids, open_cloud, options, progress)
    about = {
        "model": opened.manifest.name,
        "weights": opened.manifest.weights,
        "fingerprint": opened.fingerprint,
        "command": shlex.join(["collm", *sys.argv[1:]]),
        "load_before": load,
        "machine": asdict(this_machine()),
    }
    text = json.dumps(report.to_json() | about, indent=1)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
    if plot is not None:
        from collm.bench.scaling_plot import draw_scaling

        draw_scaling(report, plot)
    if as_json:
        typer.echo(text)
        return
    columns = ["", "step", "round trip", "a session holds", "cloud process"]
    for title, rows, word in (
        ("Context length: positions held", report.context, "positions"),
        (f"Open sessions of {positions} positions", report.sessions, "sessions"),
        (f"Depth, at {positions} positions", report.depth, "layers"),
    ):
        table = plain_table(title, columns)
        for row in rows:
            table.add_row(
                f"{getattr(row, word):,} {word}, layers {row.first_layer} to {report.layers - 1}",
                f"{1000 * row.step.median:.2f} ms",
                f"{1000 * row.round_trip.median:.2f} ms",
                f"{row.session_bytes / 1e6:.1f} MB",
                megabytes(row.process_bytes),
            )
        _print(table)


def _contexts(artifact: Artifact, text: str | None, steps: int) -> tuple[int, ...]:
    most = artifact.architecture.context_length
    if text is not None:
        return _counts("--contexts", text, most)
    usual = (16, 64, 256, 512, 1024, 2048)
    return tuple(n for n in usual if n + steps + 4 <= most) or (most // 2,)


def _counts(option: str, text: str, most: int) -> tuple[int, ...]:
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = [0]
    if not 1 <= found[0] <= found[-1] <= most:
        raise UsageError(f"{option} {text!r}: expected numbers from 1 to {most}, such as 1,4,16")
    return tuple(found)


def _placements(artifact: Artifact, text: str | None) -> list[int]:
    if text is None:
        deepest = max(artifact.manifest.cuts, default=0)
        placed = sorted({default_placement(artifact.manifest), deepest})
    else:
        placed = sorted(set(numbers("--placements", text)))
    for one in placed:
        check_placement(artifact.manifest, one)
        if one in (0, artifact.architecture.layers):
            raise UsageError(
                f"--placements {one}: expected cuts, with layers on both sides: "
                f"{', '.join(map(str, artifact.manifest.cuts))}"
            )
    return placed


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:.1f} ms"


def _print(table: Any) -> None:
    wide_console(130).print(table)
