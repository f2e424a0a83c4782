"""`collm serve`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from collm.cli.auto import Asked, AutoPlan, given_options
from collm.cli.options import (
    AheadOption,
    BatchOption,
    CloudOption,
    CriterionOption,
    DeadlineOption,
    DraftOption,
    ExitsOption,
    InsecureOption,
    LogOption,
    LookupOption,
    PlacementOption,
    RepetitionOption,
    RouteOption,
    TemperatureOption,
    ThreadsOption,
    ThresholdOption,
    TlsCertOption,
    TlsKeyOption,
    TopKOption,
    TopPOption,
    WireOption,
    byte_count,
    layer_count,
    numbers,
    thread_count,
)
from collm.cli.remote import open_placed
from collm.cli.run import cloud_link
from collm.cli.security import (
    CaOption,
    CertOption,
    KeyOption,
    TokenFileOption,
    client_security,
)
from collm.config import Generation, Sampling
from collm.errors import PlacementError, UsageError
from collm.link.credentials import ServerSecurity, TokenFile
from collm.link.grpc_server import check_listen
from collm.serve.cloud_process import keep_memory_together
from collm.serve.engine import Engine, EngineSettings
from collm.serve.logs import logs
from collm.serve.openai.guard import allowed_hosts
from collm.serve.openai.page import FOLDER
from collm.serve.openai.server import listening, run_server
from collm.serve.openai.serving import Serving
from collm.serve.registry import registered

_CONTEXT = 1024
"""Positions of prompt and answer that a plan leaves room for."""


def serve_command(
    context: typer.Context,
    artifact: Annotated[
        str,
        typer.Argument(help="The artifact folder, or addresses to fetch what is needed from."),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8000,
    name: Annotated[
        str, typer.Option(help="The model's id for clients; default: the artifact's name.")
    ] = "",
    cloud: CloudOption = None,
    route: RouteOption = "order",
    ca: CaOption = None,
    cert: CertOption = None,
    key: KeyOption = None,
    token_file: TokenFileOption = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="What a request gets that names none: verified, threshold, refine, standalone, "
            "cloud or auto; default: verified, or standalone where a part of the model is here "
            "and there is no cloud."
        ),
    ] = None,
    placement: PlacementOption = None,
    exits: ExitsOption = None,
    threads: ThreadsOption = 0,
    threshold: ThresholdOption = 0.6,
    criterion: CriterionOption = "",
    wire: WireOption = "f32",
    deadline: DeadlineOption = 0.0,
    draft: DraftOption = 8,
    batch: BatchOption = 1,
    ahead: AheadOption = None,
    lookup: LookupOption = False,
    temperature: TemperatureOption = 1.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    repetition_penalty: RepetitionOption = 1.0,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="Clients need a key of this file: one a line; read again on a change."),
    ] = None,
    tls_cert: TlsCertOption = None,
    tls_key: TlsKeyOption = None,
    insecure: InsecureOption = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Another name of this server (repeatable)."),
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Let pages of this site use the server, such as https://chat.example "
            "(repeatable); default: none but its own.",
        ),
    ] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="The chat page at /.")] = True,
    parallel: Annotated[
        int, typer.Option(min=1, max=1024, help="Answers under way at once.")
    ] = EngineSettings.most_active,
    queue: Annotated[
        int,
        typer.Option(min=0, max=65536, help="Requests that wait for their turn; beyond: 429."),
    ] = EngineSettings.most_waiting,
    keep: Annotated[
        int,
        typer.Option(min=0, max=1024, help="Conversations whose caches wait for the next turn."),
    ] = EngineSettings.most_kept,
    keep_memory: Annotated[
        str, typer.Option(help="Most memory for those caches, such as 512mb.")
    ] = "512mb",
    log: LogOption = "text",
) -> None:
    """Serve a model as OpenAI's API does, with a chat page, until interrupted."""
    server = ServerSecurity(certificate=tls_cert, key=tls_key, tokens=api_key_file)
    where = check_listen(
        f"{_bracketed(host)}:{port}",
        server,
        insecure=insecure,
        option="--host",
        tokens="--api-key-file",
    )
    keys = TokenFile(api_key_file, bare=True) if api_key_file is not None else None
    origins = tuple(_origin(one) for one in cors or ())
    kept_bytes = byte_count("--keep-memory", keep_memory)
    security = client_security(ca, cert, key, token_file)
    chosen = None if exits is None else tuple(numbers("--exits", exits))
    layers = None if placement in (None, "auto") else layer_count("--placement", placement or "")
    opened, layers, mode = open_placed(artifact, mode, layers, chosen, cloud, security)
    defaults = Generation(
        mode=mode,
        threshold=threshold,
        criterion=criterion,
        deadline_seconds=deadline / 1000,
        draft=draft,
        batch=batch,
        ahead=ahead,
        lookup=lookup,
        sampling=Sampling(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
        ),
    )
    keep_memory_together()
    cores = thread_count(threads, processes=2 if cloud == "spawn" and mode != "cloud" else 1)
    with ExitStack() as stack:
        stack.enter_context(logs(log))
        taken = stack.enter_context(listening(where, port))  # before the weights are loaded
        linked = stack.enter_context(cloud_link(opened.folder, cloud, cores, security, route))
        if placement == "auto":
            asked = Asked(
                generation=defaults,
                exits=chosen,
                wire=wire,
                threads=threads,
                given=given_options(context),
            )
            plan = stack.enter_context(AutoPlan(opened, linked, asked, _CONTEXT))
            if plan.way.draft_path:
                raise PlacementError(
                    f"the plan is to draft with the path {plan.way.draft_path}, which collm serve "
                    "cannot; name a --placement"
                )
            defaults, layers = plan.generation(), plan.way.placement
            chosen, cores, wire = plan.way.exits or None, plan.way.threads, plan.way.wire
        engine = stack.enter_context(
            Engine(
                opened,
                EngineSettings(
                    mode=defaults.mode,
                    placement=layers,
                    exits=chosen,
                    threads=cores,
                    wire=wire,
                    most_active=parallel,
                    most_waiting=queue,
                    most_kept=keep,
                    kept_bytes=kept_bytes,
                ),
                linked,
            )
        )
        serving = Serving(
            engine=engine,
            name=name or opened.manifest.name,
            defaults=defaults,
            keys=keys,
            hosts=allowed_hosts(where, allow_host or ()),
            origins=origins,
            page=FOLDER if page and FOLDER.is_dir() else None,
        )

        def ready(url: str) -> None:
            is_part = layers < opened.architecture.layers
            share = f"layers 0 to {layers} of " if is_part else ""
            about = registered(
                kind="serve",
                address=url,
                artifact=opened,
                layers=range(layers),
                mode=defaults.mode,
                cloud=cloud or "",
                metrics=f"{url}/metrics",
            )
            stack.enter_context(about)
            print(f"serving {share}{serving.name} on {url} (API: {url}/v1)", flush=True)

        run_server(serving, taken, ready=ready, security=server)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _origin(text: str) -> str:
    """An origin as browsers send it. Raises UsageError."""
    try:
        found = urlsplit(text)
    except ValueError:
        found = urlsplit("")
    if text != "*" and (not found.scheme or not found.netloc or text.count("/") != 2):
        raise UsageError(
            f"--cors {text[:80]!r}: expected a site such as https://chat.example, or *"
        )
    return text.lower()
