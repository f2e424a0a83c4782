"""`collm pull`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from collm.cli.options import JsonOption, byte_count, numbers
from collm.cli.remote import placed_choice, pull_shown, source_addresses
from collm.cli.security import CaOption, CertOption, KeyOption, client_security
from collm.cli.show import megabytes
from collm.errors import UsageError
from collm.model.manifest import Manifest
from collm.session.pull import PullSettings


def pull_command(
    source: Annotated[
        str,
        typer.Argument(
            help="http://HOST:PORT of a cloud's --artifacts, or any HTTP folder of an artifact; "
            "several, separated by commas: the next one where one fails."
        ),
    ],
    folder: Annotated[
        Path | None, typer.Argument(help="The artifact folder to make; default: in the store.")
    ] = None,
    placement: Annotated[
        int | None, typer.Option(help="Layers on the edge: a cut, 0, or all of them.")
    ] = None,
    exits: Annotated[
        str | None, typer.Option(help="Exits in use, such as 5,15; default: all on the edge.")
    ] = None,
    mode: Annotated[
        str,
        typer.Option(help="As for collm run: other modes open other files."),
    ] = "verified",
    everything: Annotated[
        bool, typer.Option("--all", help="Every file, as a cloud needs them.")
    ] = False,
    parallel: Annotated[
        int, typer.Option(min=1, max=64, help="Files fetched at the same time.")
    ] = 4,
    disk: Annotated[
        str,
        typer.Option(
            help="Most that the store may take, such as 2gb: what was used longest ago goes; "
            "default: any."
        ),
    ] = "",
    store: Annotated[
        Path | None, typer.Option(help="Where blobs are kept; default: the user's cache.")
    ] = None,
    fingerprint: Annotated[
        str,
        typer.Option(help="Take this one only: the full fingerprint, or the manifest's sha256."),
    ] = "",
    ca: CaOption = None,
    cert: CertOption = None,
    key: KeyOption = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with a token, which every source named here gets to see."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch what a placement needs of an artifact; what is here is not fetched again."""
    if everything and (placement is not None or exits is not None):
        raise UsageError("--all fetches every file: leave --placement and --exits out")
    settings = PullSettings(
        folder=folder,
        store=store,
        fingerprint=fingerprint.strip().lower(),
        parallel=parallel,
        budget=byte_count("--disk", disk) if disk else None,
        security=client_security(ca, cert, key, token_file, environment=False),
    )
    chosen = None if exits is None else numbers("--exits", exits)

    def every(manifest: Manifest) -> frozenset[str]:
        return frozenset(manifest.files)

    choose = every if everything else placed_choice(mode, placement, chosen)
    try:
        pulled = pull_shown(source_addresses(source), choose, settings)
    except KeyboardInterrupt:
        typer.echo("interrupted; pull again to go on from here", err=True)
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "folder": str(pulled.folder),
                    "name": pulled.manifest.name,
                    "fingerprint": pulled.manifest.fingerprint,
                    "manifest_sha256": pulled.manifest_sha256,
                    "files": pulled.files,
                    "fetched_bytes": pulled.fetched_bytes,
                    "present_bytes": pulled.present_bytes,
                    "evicted_bytes": pulled.evicted_bytes,
                }
            )
        )
        return
    evicted = f", {megabytes(pulled.evicted_bytes)} evicted" if pulled.evicted_bytes else ""
    typer.echo(
        f"{pulled.folder}: {pulled.manifest.name} ({pulled.manifest.fingerprint[:12]}), "
        f"{pulled.files} files, {megabytes(pulled.fetched_bytes)} fetched, "
        f"{megabytes(pulled.present_bytes)} already there{evicted}"
    )
