"""`collm cloud`."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from collm.cli.options import MetricsOption, ThreadsOption, byte_count, numbers, thread_count
from collm.limits import DEFAULT_LIMITS
from collm.link.credentials import ServerSecurity
from collm.model.artifact import Artifact
from collm.serve.artifacts import artifact_server
from collm.serve.cloud_process import run_cloud
from collm.serve.logs import logs
from collm.serve.metrics import metrics_server
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
    tls_cert: Annotated[
        Path | None, typer.Option(help="PEM certificate of this cloud, for TLS.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM key of that certificate.")] = None,
    client_ca: Annotated[
        Path | None, typer.Option(help="PEM: edges need a certificate of this authority.")
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(help="Edges need a token of this file: lines of a name and a token."),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure", help="Let other machines in, without encryption or authentication."
        ),
    ] = False,
    max_sessions: Annotated[
        int, typer.Option(min=1, max=100_000, help="Sessions at once.")
    ] = DEFAULT_LIMITS.max_sessions,
    max_identity_sessions: Annotated[
        int, typer.Option(min=0, help="Sessions of one identity at once; 0: any number.")
    ] = 0,
    identity_tokens: Annotated[
        float, typer.Option(min=0, help="Tokens a second for one identity; 0: any number.")
    ] = 0.0,
    identity_bytes: Annotated[
        float, typer.Option(min=0, help="Bytes a second from one identity; 0: any number.")
    ] = 0.0,
    kv_memory: Annotated[
        str, typer.Option(help="Most memory for caches and pending states, such as 4gb.")
    ] = "4gb",
    artifacts: Annotated[
        str, typer.Option(help="HOST:PORT where collm pull fetches the artifact; empty: nowhere.")
    ] = "",
    metrics: MetricsOption = "",
    log: Annotated[str, typer.Option(help="Log as text, or as a JSON object a line.")] = "text",
    spawned: Annotated[
        bool, typer.Option(hidden=True, help="End with standard input; print only the address.")
    ] = False,
) -> None:
    """Serve the deeper layers to edges, until interrupted."""
    security = ServerSecurity(certificate=tls_cert, key=tls_key, client_ca=client_ca, tokens=tokens)
    limits = replace(
        DEFAULT_LIMITS,
        max_sessions=max_sessions,
        max_identity_sessions=max_identity_sessions,
        identity_tokens_per_second=identity_tokens,
        identity_bytes_per_second=identity_bytes,
        max_kv_bytes=byte_count("--kv-memory", kv_memory),
    )
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

    with ExitStack() as stack:
        stack.enter_context(logs(log))
        if metrics:
            server = metrics_server(metrics, tokens=tokens, insecure=insecure)
            where = stack.enter_context(server)
            typer.echo(f"metrics on http://{where}/metrics", err=True)
        if artifacts:
            shelf = artifact_server([artifact], artifacts, security=security, insecure=insecure)
            typer.echo(f"artifacts on {stack.enter_context(shelf)}", err=True)
        run_cloud(
            opened,
            listen=listen,
            threads=thread_count(threads),
            limits=limits,
            ready=ready,
            self_draft=drafting,
            until_stdin_closes=spawned,
            security=security,
            insecure=insecure,
        )
