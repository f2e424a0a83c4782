"""`collm cloud`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from collm.cli.options import ThreadsOption, numbers, thread_count
from collm.limits import DEFAULT_LIMITS
from collm.model.artifact import Artifact
from collm.serve.cloud_process import run_cloud
from collm.session.self_draft import SelfDraft, self_draft


def cloud_command(
    artifact: Annotated[Path, typer.Argument(help="The artifact folder.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT; port 0 takes a free one.")] = (
        "127.0.0.1:50051"
    ),
    threads: ThreadsOption = 0,
    exits: Annotated[
        str, typer.Option(help="Draft with these exits when an answer is left to this cloud alone.")
    ] = "",
    draft: Annotated[
        int, typer.Option(min=1, max=128, help="With --exits: most tokens drafted in a row.")
    ] = 6,
    criterion: Annotated[
        str, typer.Option(help="With --exits: what an exit's token must meet to be drafted.")
    ] = "confidence:0.6",
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure", help="Let other machines in, without encryption or authentication."
        ),
    ] = False,
    spawned: Annotated[
        bool, typer.Option(hidden=True, help="End with standard input; print only the address.")
    ] = False,
) -> None:
    """Serve the deeper layers to edges, until interrupted."""
    opened = Artifact(artifact)
    drafting: SelfDraft | None = None
    if exits:
        cuts = numbers("--exits", exits)
        drafting = self_draft(opened, cuts, criterion=criterion, draft=draft)

    def ready(address: str) -> None:
        if spawned:
            print(address, flush=True)
        else:
            name = opened.manifest.name
            print(f"serving {name} ({opened.fingerprint[:12]}) on {address}", flush=True)

    run_cloud(
        opened,
        listen=listen,
        threads=thread_count(threads),
        limits=DEFAULT_LIMITS,
        ready=ready,
        self_draft=drafting,
        until_stdin_closes=spawned,
        insecure=insecure,
    )
