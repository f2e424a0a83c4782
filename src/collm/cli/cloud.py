"""`collm cloud`."""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from collm.cli.options import (
    InsecureOption,
    LogOption,
    MetricsOption,
    ThreadsOption,
    TlsCertOption,
    TlsKeyOption,
    byte_count,
    numbers,
    thread_count,
)
from collm.cli.security import check_token_stays_secret, client_security
from collm.errors import PlacementError, UsageError
from collm.limits import DEFAULT_LIMITS
from collm.link.address import parse_address
from collm.link.credentials import ClientSecurity, ServerSecurity
from collm.link.dialer import Dialer
from collm.model.artifact import Artifact
from collm.serve.artifacts import artifact_server
from collm.serve.cloud_process import Upstream, run_cloud
from collm.serve.logs import logs
from collm.serve.metrics import metrics_server
from collm.serve.registry import registered
from collm.session.self_draft import SelfDraft, self_draft
from collm.session.server_exits import ServerExits, server_exits
from collm.wire.codec import ROW_FORMATS


def cloud_command(
    artifact: Annotated[Path, typer.Argument(help="The artifact folder.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT; port 0 takes a free one.")] = (
        "127.0.0.1:50051"
    ),
    threads: ThreadsOption = 0,
    blocks: Annotated[
        str, typer.Option(help="Layers to run here, such as 10:20; default: all there are.")
    ] = "",
    upstream: Annotated[
        str,
        typer.Option(
            help="HOST:PORT of the cloud that runs what follows, or of several, separated by "
            "commas: this is then an edge server."
        ),
    ] = "",
    upstream_wire: Annotated[
        str, typer.Option(help="Hidden states travel there as f32, f16 or int8.")
    ] = "f32",
    upstream_ca: Annotated[
        Path | None, typer.Option(help="PEM: the authority of its certificate; uses TLS.")
    ] = None,
    upstream_cert: Annotated[
        Path | None, typer.Option(help="PEM certificate that it wants of this server.")
    ] = None,
    upstream_key: Annotated[Path | None, typer.Option(help="PEM key of that certificate.")] = None,
    upstream_token_file: Annotated[
        Path | None,
        typer.Option(help="File with this server's token for it; default: $COLLM_TOKEN."),
    ] = None,
    exits: Annotated[
        str,
        typer.Option(
            help="Draft with these exits when an answer is left to this cloud alone; an edge "
            "server answers from them in mode threshold."
        ),
    ] = "",
    draft: Annotated[
        int, typer.Option(min=1, max=128, help="With --exits: most tokens drafted in a row.")
    ] = 6,
    criterion: Annotated[
        str,
        typer.Option(
            help="With --exits: what an exit's token must meet; default: confidence:0.6, of an "
            "edge server confidence:0.8."
        ),
    ] = "",
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    client_ca: Annotated[
        Path | None, typer.Option(help="PEM: edges need a certificate of this authority.")
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(help="Edges need a token of this file: lines of a name and a token."),
    ] = None,
    insecure: InsecureOption = False,
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
    log: LogOption = "text",
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
    layers = layers_of(opened, blocks) if blocks else range(opened.architecture.layers)
    cuts = numbers("--exits", exits) if exits else []
    drafting: SelfDraft | None = None
    above: Upstream | None = None
    if upstream:
        above = _upstream(
            upstream,
            client_security(upstream_ca, upstream_cert, upstream_key, upstream_token_file),
            upstream_wire,
            server_exits(opened, layers, cuts, criterion or "confidence:0.8") if cuts else None,
        )
    elif cuts:
        drafting = self_draft(opened, cuts, criterion=criterion or "confidence:0.6", draft=draft)
    _check_reaches_the_end(opened, layers, above)

    def ready(address: str) -> None:
        stack.enter_context(
            registered(
                kind="edge server" if above is not None else "cloud",
                address=address,
                artifact=opened,
                layers=layers,
                cloud=upstream,
                metrics=where,
            )
        )
        if spawned:
            print(address, flush=True)
        else:
            name = opened.manifest.name
            share = f" layers {layers.start} to {layers.stop} of" if blocks else ""
            print(f"serving{share} {name} ({opened.fingerprint[:12]}) on {address}", flush=True)

    with ExitStack() as stack:
        where = ""
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
            layers=layers,
            upstream=above,
        )


def layers_of(artifact: Artifact, blocks: str, option: str = "--blocks") -> range:
    """The layers FIRST:END. Raises PlacementError for what are not whole blocks."""
    last = artifact.architecture.layers
    found = re.fullmatch(r"([0-9]{1,4}):([0-9]{1,4})", blocks)
    first, end = (int(found[1]), int(found[2])) if found else (0, 0)
    bounds = (0, *artifact.manifest.cuts, last)
    if first >= end or not {first, end} <= set(bounds):
        cuts = ", ".join(map(str, bounds))
        raise PlacementError(
            f"{option} {blocks[:40]}: expected FIRST:END, two of {cuts}, such as "
            f"{bounds[-2]}:{bounds[-1]}"
        )
    return range(first, end)


def _check_reaches_the_end(artifact: Artifact, layers: range, above: Upstream | None) -> None:
    last = artifact.architecture.layers
    if above is None and layers.stop < last:
        raise PlacementError(
            f"--blocks {layers.start}:{layers.stop} of {last} layers: something has to run the "
            f"others; add --upstream HOST:PORT, or end at {last}"
        )
    if above is not None and layers.stop == last:
        raise PlacementError(
            f"--upstream has nothing to do after all {last} layers; add --blocks, such as "
            f"--blocks {layers.start}:{artifact.manifest.cuts[-1]}"
            if artifact.manifest.cuts
            else "--upstream has nothing to do: this artifact has one block"
        )


def _upstream(
    addresses: str, security: ClientSecurity, wire: str, exits: ServerExits | None
) -> Upstream:
    """Raises UsageError."""
    if wire not in ROW_FORMATS:
        raise UsageError(f"--upstream-wire {wire!r}: expected one of {', '.join(ROW_FORMATS)}")
    places = addresses.split(",")
    for place in places:
        try:
            parse_address(place)
        except ValueError as error:
            raise UsageError(f"--upstream {error}") from None
    check_token_stays_secret(places, security, cloud="--upstream", ca="--upstream-ca")
    return Upstream(dialer=Dialer(places, DEFAULT_LIMITS, security), wire=wire, exits=exits)
