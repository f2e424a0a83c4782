"""`collm info`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from collm.cli.options import JsonOption
from collm.cli.show import megabytes, plain_table
from collm.model.artifact import Artifact
from collm.model.drafts import draft_bytes, held_out_agreement
from collm.model.manifest import Manifest


def info_command(
    artifact: Annotated[Path, typer.Argument(help="The artifact folder.")],
    verify: Annotated[bool, typer.Option(help="Hash every file.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what an artifact is made of."""
    opened = Artifact(artifact)
    manifest, arch = opened.manifest, opened.architecture
    if verify:
        for name in manifest.files:
            opened.path(name)
    if as_json:
        data = manifest.to_json()
        data.pop("chat_template")
        typer.echo(json.dumps({"fingerprint": opened.fingerprint, "verified": verify} | data))
        return
    console = Console()
    console.print(
        f"{manifest.name}: {arch.family}, {arch.layers} layers, hidden size {arch.hidden_size}, "
        f"vocabulary {arch.vocab_size:,}, context {arch.context_length:,}\n"
        f"weights {manifest.weights}, fingerprint {opened.fingerprint}"
        + (", every file verified" if verify else ""),
        highlight=False,
        soft_wrap=True,
    )
    adaptation = f"adaptation {manifest.adaptation or 'none'}"
    console.print(adaptation, highlight=False, markup=False, soft_wrap=True)
    table = plain_table("Blocks", ["layers", "size"])
    for block in manifest.blocks:
        weights = block.graph.removesuffix(".onnx") + ".data"
        size = manifest.files[weights].bytes + manifest.files[block.graph].bytes
        table.add_row(f"{block.first} to {block.last - 1}", megabytes(size))
    table.add_row("head", megabytes(manifest.files["heads/full.data"].bytes))
    console.print(table)
    console.print(_exit_table(manifest))
    if manifest.drafts:
        console.print(_draft_table(manifest))


def _exit_table(manifest: Manifest) -> Table:
    columns = ["after layer", "kind", "window", "vocabulary", "threshold", "held-out agreement"]
    table = plain_table("Exits", columns)
    for entry in manifest.exits:
        agreement = entry.agreement
        table.add_row(
            str(entry.cut) + (f" with {', '.join(map(str, entry.feed))}" if entry.feed else ""),
            entry.kind if entry.layers < 2 else f"{entry.layers} layers",
            str(entry.window or "all") if entry.layers else "",
            f"{manifest.heads[entry.head].vocabulary:,}",
            "" if entry.threshold is None else f"{entry.threshold:.3f}",
            "untrained" if agreement is None else f"{agreement:.1%}",
        )
    return table


def _draft_table(manifest: Manifest) -> Table:
    columns = ["name", "layers", "weights", "size", "held-out agreement"]
    table = plain_table("Draft paths", columns)
    for entry in manifest.drafts:
        share = held_out_agreement(entry)
        table.add_row(
            entry.name,
            f"{len(entry.layers)} of {entry.cut}",
            entry.weights,
            megabytes(draft_bytes(manifest, entry)),
            f"{share:.1%}" if share else "not measured",
        )
    return table
