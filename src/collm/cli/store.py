"""`collm list` and `collm rm`: the artifacts on this machine."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from collm.cli.complete import complete_names
from collm.cli.options import JsonOption
from collm.cli.ps import duration
from collm.cli.table import megabytes, plain_table, wide_console
from collm.errors import ArtifactError, UsageError
from collm.model.inventory import Held, find, held, held_folder, remove
from collm.model.store import Store

StoreOption = Annotated[
    Path | None, typer.Option(help="Where blobs are kept; default: the user's cache.")
]


def list_command(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Also these artifact folders.")
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the artifacts that were pulled, in the store or to folders of their own."""
    opened = Store(store)
    listed = held(opened)
    known = {one.folder.resolve() for one in listed}
    listed += [
        held_folder(opened, folder) for folder in folders or () if folder.resolve() not in known
    ]
    if as_json:
        typer.echo(json.dumps([_record(one) for one in listed]))
        return
    if not listed:
        typer.echo(f"no artifacts in {opened.root}; collm pull fetches one, collm build makes one")
        return
    table = plain_table(
        None, ["name", "fingerprint", "weights", "layers here", "size", "used", "folder"]
    )
    for one in listed:
        size = megabytes(one.bytes)
        if one.bytes < one.all_bytes:
            size += f" of {megabytes(one.all_bytes)}"
        table.add_row(
            one.manifest.name,
            one.manifest.fingerprint[:12],
            one.manifest.weights,
            _layers(one),
            size,
            f"{duration(max(0.0, time.time() - one.used))} ago",
            one.folder.name if one.in_store else str(one.folder),
        )
    wide_console(160).print(table)


def rm_command(
    artifacts: Annotated[
        list[str],
        typer.Argument(
            help="Names or fingerprints that collm list shows, or paths of artifact folders.",
            autocompletion=complete_names,
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove artifacts, and the blobs in the store that nothing needs any more."""
    opened = Store(store)
    chosen: dict[Path, Held] = {}
    for words in artifacts:
        one = _chosen(opened, words)
        chosen[one.folder.resolve()] = one
    _check_unused(list(chosen.values()))
    if not yes:
        _confirm(list(chosen.values()))
    made = remove(opened, list(chosen.values()))
    if as_json:
        told = [str(folder) for folder in made.folders]
        typer.echo(
            json.dumps({"folders": told, "blobs": made.blobs, "freed_bytes": made.freed_bytes})
        )
        return
    for folder in made.folders:
        typer.echo(f"{folder}: removed")
    typer.echo(f"{megabytes(made.freed_bytes)} freed")


def _chosen(store: Store, words: str) -> Held:
    """Raises UsageError, ArtifactError."""
    found = find(store, words)
    if len(found) > 1:
        told = ", ".join(
            one.folder.name if one.in_store else str(one.folder.absolute()) for one in found
        )
        raise UsageError(f"{words}: there are several: {told}; name one of these")
    if found:
        return found[0]
    is_path = "/" in words or words in (".", "..")
    if not is_path and Path(words).is_dir():
        raise UsageError(
            f"{words}: no artifact of that name in {store.root}; to remove the folder of that name "
            f"say ./{words}"
        )
    if not is_path:
        names = ", ".join(sorted({one.manifest.name for one in held(store)})) or "none"
        raise UsageError(f"{words}: no such artifact; there are: {names} (collm list)")
    folder = Path(words)
    if folder.is_symlink():
        raise UsageError(f"{words}: a symbolic link; name the folder {folder.resolve()} itself")
    try:
        return held_folder(store, folder)
    except ArtifactError as error:
        raise UsageError(f"{error}; nothing was removed") from None


def _check_unused(chosen: list[Held]) -> None:
    """Raise UsageError for what a process on this machine has open."""
    from collm.serve.registry import running

    folders = {str(one.folder.resolve()) for one in chosen}
    for process in running():
        if process.artifact and str(Path(process.artifact).resolve()) in folders:
            raise UsageError(
                f"{process.artifact}: in use by {process.kind} {process.address} (pid "
                f"{process.pid}); end that first"
            )


def _confirm(chosen: list[Held]) -> None:
    if not sys.stdin.isatty():
        raise UsageError("removing asks before it does, and here is nobody to ask: say --yes")
    for one in chosen:
        typer.echo(f"{one.folder}: {one.manifest.name}, {megabytes(one.bytes)}", err=True)
    if not typer.confirm("Remove?", err=True):
        typer.echo("nothing was removed", err=True)
        raise typer.Exit(1)


def _layers(one: Held) -> str:
    layers = one.manifest.architecture.layers
    if one.layers == ((0, layers),):
        return f"all {layers}"
    told = ", ".join(f"{first} to {last - 1}" for first, last in one.layers)
    return f"{told or 'none'} of {layers}"


def _record(one: Held) -> dict[str, Any]:
    return {
        "name": one.manifest.name,
        "fingerprint": one.manifest.fingerprint,
        "weights": one.manifest.weights,
        "folder": str(one.folder),
        "in_store": one.in_store,
        "layers": one.manifest.architecture.layers,
        "layers_here": [list(run) for run in one.layers],
        "bytes": one.bytes,
        "all_bytes": one.all_bytes,
        "used": one.used,
    }
