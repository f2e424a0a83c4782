"""`collm build` and `collm add-exit`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from collm.cli.options import JsonOption, numbers
from collm.cli.progress import counting_bar
from collm.cli.show import megabytes
from collm.model.build import build
from collm.model.delta import read_adaptation
from collm.model.exits import add_exit, shipped_exits
from collm.model.manifest import Manifest
from collm.model.sources import open_checkpoint


def build_artifact(
    source: str,
    out: Path,
    *,
    cuts: list[int] | None,
    weights: str,
    force: bool,
    adapt: Path | None = None,
) -> Manifest:
    """Build with a progress bar on standard error, shipped exits included."""
    adaptation = None if adapt is None else read_adaptation(adapt)
    with counting_bar("reading the checkpoint") as progress:
        checkpoint = open_checkpoint(source)
        return build(
            checkpoint,
            out,
            cuts=cuts,
            weights=weights,
            force=force,
            exits=shipped_exits,
            adaptation=adaptation,
            progress=progress,
        )


def build_command(
    source: Annotated[
        str,
        typer.Argument(
            help="A GGUF file, a folder with config.json and safetensors, or the word smollm2."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The artifact folder to make.")],
    cuts: Annotated[
        str | None,
        typer.Option(help="Layers after which the model may be split, such as 5,10,15,20."),
    ] = None,
    weights: Annotated[str, typer.Option(help="int4, int8 or fp32.")] = "int4",
    adapt: Annotated[
        Path | None,
        typer.Option(
            metavar="DELTA",
            help="Merge a delta of collm tune --adapt into the weights: its file, or its folder "
            "to take in the exits beside it as well. Matrices that it changes are int8 with "
            "--weights int4.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace an artifact that is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Turn a checkpoint into an artifact: a chain of blocks plus exits."""
    chosen = None if cuts is None else numbers("--cuts", cuts)
    manifest = build_artifact(source, out, cuts=chosen, weights=weights, force=force, adapt=adapt)
    size = sum(entry.bytes for entry in manifest.files.values())
    if as_json:
        data = {"artifact": str(out), "fingerprint": manifest.fingerprint, "bytes": size}
        typer.echo(json.dumps(data))
        return
    trained = [str(e.cut) for e in manifest.exits if e.trained]
    typer.echo(
        f"{out}: {manifest.name}, {manifest.architecture.layers} layers in "
        f"{len(manifest.blocks)} blocks, {manifest.weights} weights, {megabytes(size)}, "
        f"trained exits at {', '.join(trained) or 'none of the cuts'}"
        f"{', adapted' if manifest.adaptation else ''}"
    )


def add_exit_command(
    artifact: Annotated[Path, typer.Argument(help="The artifact folder.")],
    exit_file: Annotated[Path, typer.Argument(help="An exit made by collm tune (safetensors).")],
) -> None:
    """Add a trained exit to an artifact, in place of what its cut had."""
    manifest = add_exit(artifact, exit_file)
    cuts = ", ".join(str(e.cut) for e in manifest.exits if e.trained)
    typer.echo(f"{artifact}: trained exits at {cuts}")
