"""`collm tune`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from collm.cli.options import (
    DeviceOption,
    JsonOption,
    ThreadsOption,
    needs_torch,
    numbers,
    thread_count,
    tune_folder,
)
from collm.errors import UsageError
from collm.model.artifact import Artifact

if TYPE_CHECKING:
    from collm.tune.adapt_export import ExportedAdaptation
    from collm.tune.adapt_measure import Look
    from collm.tune.export import ExportedExit
    from collm.tune.tuning import TuneConfig


def tune_command(
    artifact: Annotated[Path, typer.Argument(help="The artifact folder; it gets the exits.")],
    exits: Annotated[
        str | None, typer.Option(help="Cuts to train exits for, such as 10,15; default: all.")
    ] = None,
    kind: Annotated[str, typer.Option(help="layer, mlp or linear.")] = "layer",
    layers: Annotated[int, typer.Option(help="Decoder layers of the kind layer: 1 or 2.")] = 1,
    window: Annotated[
        int, typer.Option(help="Positions that a layer sees; 0: the whole context.")
    ] = 0,
    feed: Annotated[
        bool, typer.Option(help="Let exits read the states at earlier cuts as well.")
    ] = True,
    data: Annotated[
        Path | None,
        typer.Option(help="A corpus of collm synthesize; default: the model writes one."),
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=1000, help="Tokens to train on, counted as often as seen.")
    ] = 200_000,
    adapt: Annotated[
        str | None, typer.Option(help="lora: also move the model's decision to earlier layers.")
    ] = None,
    rank: Annotated[int, typer.Option(help="Rank of the update that --adapt trains.")] = 16,
    layer_dropout: Annotated[
        float, typer.Option(help="Share of steps that --adapt leaves out the last layer.")
    ] = 0.02,
    looks: Annotated[int, typer.Option(min=1, help="Points of --adapt's curve.")] = 6,
    start: Annotated[
        Path | None, typer.Option(help="A folder with exits of the same make to start from.")
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(help="Folder to keep the run in; default: ARTIFACT-tune.", show_default=False),
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="The highest learning rate.")] = 1e-3,
    batch: Annotated[int, typer.Option(min=1, help="Tokens in a step.")] = 512,
    shortlist: Annotated[
        int, typer.Option(help="Tokens that an exit can choose from; a multiple of 32.")
    ] = 10_240,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same exits.")] = 0,
    threads: ThreadsOption = 0,
    device: DeviceOption = "auto",
    dry_run: Annotated[bool, typer.Option(help="Say how long it would take, and stop.")] = False,
    install: Annotated[bool, typer.Option(help="Add the exits to the artifact.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Train exits by distillation from the artifact's own full model; no data set is needed."""
    needs_torch("tune")
    from collm.tune.device import pick_device, set_threads
    from collm.tune.distill import DistillConfig
    from collm.tune.tuning import TuneConfig, exit_specs, tune

    if adapt not in (None, "lora"):
        raise UsageError(f"--adapt {adapt!r}: expected lora")
    if not 0 < learning_rate < 1:
        raise UsageError(f"--learning-rate {learning_rate:g}: expected a number between 0 and 1")
    opened = Artifact(artifact)
    set_threads(thread_count(threads))
    config = TuneConfig(
        work=work or tune_folder(artifact),
        cuts=None if exits is None else tuple(numbers("--exits", exits)),
        kind=kind,
        layers=layers,
        window=window,
        feed=feed,
        data=data,
        start=start,
        device=pick_device(device),
        training=DistillConfig(
            tokens=tokens,
            shortlist=shortlist,
            batch_tokens=batch,
            learning_rate=learning_rate,
            seed=seed,
        ),
    )
    exit_specs(opened, config)
    if dry_run and adapt:
        raise UsageError("--dry-run knows plain tuning only; leave out --adapt")
    if dry_run:
        _predict(opened, config, as_json)
        return
    console = Console(stderr=True, highlight=False)

    def said(line: str) -> None:
        console.print(line, soft_wrap=True)

    if adapt:
        from collm.tune.adapt_run import AdaptConfig
        from collm.tune.adapting import tune_adapted

        low_rank = AdaptConfig(
            **asdict(config.training), rank=rank, layer_dropout=layer_dropout, looks=looks
        )
        adaptation, curve = tune_adapted(opened, config, low_rank, said=said)
        _report_adapted(adaptation, curve, as_json)
        return
    exported = tune(opened, config, install=install, said=said)
    if as_json:
        typer.echo(json.dumps([_record(made) for made in exported]))
        return
    Console().print(_table(exported))
    where = f"{artifact} has them" if install else "add them with: collm add-exit"
    typer.echo(f"{config.work / 'exits'}: {len(exported)} exits; {where}")


def _predict(artifact: Artifact, config: TuneConfig, as_json: bool) -> None:
    from collm.tune.estimate import estimate

    guess = estimate(artifact, config)
    parts = {
        "writing text": guess.writing,
        "states of the full model": guess.states,
        "training": guess.training,
    }
    if as_json:
        rounded = {name.replace(" ", "_"): round(value, 1) for name, value in parts.items()}
        typer.echo(json.dumps({"seconds": rounded, "bytes": guess.bytes}))
        return
    for name, seconds in parts.items():
        typer.echo(f"{name:<26} {_duration(seconds)}")
    typer.echo(f"{'in all':<26} {_duration(guess.total)}")
    typer.echo(f"{'kept in ' + str(config.work):<26} {guess.bytes / 1e6:,.0f} MB")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d} min"


def _table(exported: list[ExportedExit]) -> Table:
    rows = exported[0].measured.rows
    table = Table(title=f"agreement with the full model, {rows:,} held-out tokens")
    for heading in ("exit", "untrained", "trained", "KL", "temperature", "MB"):
        table.add_column(heading, justify="right")
    for made in exported:
        table.add_row(
            str(made.cut),
            f"{made.before.agreement:.1%}",
            f"{made.measured.agreement:.1%}",
            f"{made.measured.divergence:.2f}",
            f"{made.temperature:.2f}",
            f"{made.path.stat().st_size / 1e6:.1f}",
        )
    return table


def _report_adapted(made: ExportedAdaptation, curve: list[Look], as_json: bool) -> None:
    """The curve; the last row is the result as stored."""
    cuts = [one.cut for one in made.exits]
    if as_json:
        record = {"delta": str(made.delta), "exits": [_record(one) for one in made.exits]}
        typer.echo(json.dumps(record | {"curve": [asdict(look) for look in curve]}))
        return
    table = Table(title="agreement with the original model on held-out text")
    table.add_column("tokens", justify="right")
    for cut in cuts:
        table.add_column(f"exit {cut}", justify="right")
    for heading in ("full depth", "perplexity"):
        table.add_column(heading, justify="right")
    for look in curve:
        exits = [f"{share:.1%}" for share in look.agreement]
        full = (f"{look.full_agreement:.1%}", f"{look.perplexity_ratio - 1:+.2%}")
        table.add_row(f"{look.tokens:,}", *exits, *full)
    Console().print(table)
    typer.echo(
        f"{made.delta}: {made.delta.stat().st_size / 1e6:.1f} MB; build the adapted model with: "
        f"collm build SOURCE OUT --adapt {made.delta.parent}"
    )


def _record(made: ExportedExit) -> dict[str, Any]:
    return {
        "exit": made.cut,
        "file": str(made.path),
        "agreement_untrained": made.before.agreement,
        "agreement": made.measured.agreement,
        "divergence_nats": made.measured.divergence,
        "shortlist_coverage": made.measured.shortlist_coverage,
        "temperature": made.temperature,
        "held_out_tokens": made.measured.rows,
    }
