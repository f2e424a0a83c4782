"""`collm doctor`: what is wrong, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from collm.cli.complete import complete_artifacts, complete_modes
from collm.cli.options import JsonOption, layer_count
from collm.cli.security import CaOption, CertOption, KeyOption, TokenFileOption, client_security
from collm.errors import ArtifactError, UsageError
from collm.link.credentials import ClientSecurity
from collm.model.artifact import Artifact
from collm.serve.checks.finding import Finding, Findings, fault, ok

_COLOURS = {"ok": "green", "warning": "yellow", "FAULT": "bold red"}


def doctor_command(
    context: typer.Context,
    artifact: Annotated[
        Path | None,
        typer.Argument(help="The artifact folder.", autocompletion=complete_artifacts),
    ] = None,
    cloud: Annotated[
        str | None, typer.Option(help="HOST:PORT of a cloud, or of several, separated by commas.")
    ] = None,
    ca: CaOption = None,
    cert: CertOption = None,
    key: KeyOption = None,
    token_file: TokenFileOption = None,
    server: Annotated[
        str | None, typer.Option(help="URL of a collm serve, such as http://127.0.0.1:8000.")
    ] = None,
    artifacts: Annotated[str | None, typer.Option(help="URL that collm pull fetches from.")] = None,
    placement: Annotated[
        str | None, typer.Option(help="Layers that are to run here: a cut, 0, or all of them.")
    ] = None,
    mode: Annotated[
        str, typer.Option(help="As for collm run.", autocompletion=complete_modes)
    ] = "verified",
    threads: Annotated[
        int, typer.Option(min=0, max=4096, help="Threads that are to be used; 0: as collm does.")
    ] = 0,
    store: Annotated[
        Path | None, typer.Option(help="Where blobs are kept; default: the user's cache.")
    ] = None,
    listen: Annotated[
        str, typer.Option(help="HOST:PORT that a server here is to have; empty: none.")
    ] = "",
    deep: Annotated[bool, typer.Option("--deep", help="Hash every file of the artifact.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check installation, machine, artifact, configuration, cloud and server, a line for each.

    Exit code 1 where there is a FAULT.
    """
    layers = None if placement in (None, "auto") else layer_count("--placement", placement or "")
    security = client_security(ca, cert, key, token_file)
    found: list[Finding] = []
    console = Console(highlight=False)
    for finding in _findings(
        config=_config(context),
        artifact=artifact,
        cloud=cloud,
        security=security,
        # $COLLM_TOKEN is a cloud's, and so is --token-file where there is one.
        others=client_security(ca, cert, key, None if cloud else token_file, environment=False),
        server=server,
        artifacts=artifacts,
        placement=layers,
        mode=mode,
        threads=threads,
        store=store,
        listen=listen,
        deep=deep,
    ):
        found.append(finding)
        if not as_json:
            console.print(_line(finding), soft_wrap=True)
    faults = sum(one.level == "FAULT" for one in found)
    warnings = sum(one.level == "warning" for one in found)
    if as_json:
        told = {"faults": faults, "warnings": warnings, "checks": [asdict(one) for one in found]}
        typer.echo(json.dumps(told))
    else:
        console.print(_verdict(faults, warnings), soft_wrap=True)
    if faults:
        raise typer.Exit(1)


def _findings(
    *,
    config: Findings,
    artifact: Path | None,
    cloud: str | None,
    security: ClientSecurity,
    others: ClientSecurity,
    server: str | None,
    artifacts: str | None,
    placement: int | None,
    mode: str,
    threads: int,
    store: Path | None,
    listen: str,
    deep: bool,
) -> Iterator[Finding]:
    from collm.model.inventory import is_pulled
    from collm.serve.checks.artifact import check_artifact
    from collm.serve.checks.cloud import check_cloud
    from collm.serve.checks.installation import check_installation
    from collm.serve.checks.machine import check_memory, check_port, check_store, check_threads
    from collm.serve.checks.server import check_artifacts, check_server

    yield from check_installation()
    yield from check_threads(threads)
    yield from check_store(store)
    yield from config
    opened: Artifact | None = None
    if artifact is not None:
        try:
            opened = Artifact(artifact)
        except ArtifactError as error:
            yield fault("artifact", str(error), "build it again, or pull it again")
    if opened is not None:
        yield from check_artifact(
            opened,
            deep=deep,
            mode=mode,
            placement=placement,
            is_pulled=is_pulled(opened.folder, store),
        )
        yield from check_memory(opened, mode, placement)
    for address in (cloud or "").split(","):
        if address and address != "spawn":
            yield from check_cloud(address.strip(), security, opened, placement=placement)
    if server:
        yield from check_server(server.rstrip("/"), others)
    if artifacts:
        yield from check_artifacts(artifacts.rstrip("/"), others)
    if listen:
        yield from check_port(listen, "a server here")


def _config(context: typer.Context) -> Findings:
    """Every section and key of the configuration files."""
    from collm.cli.config_apply import check_sections, commands_of, settings
    from collm.cli.config_files import config_files
    from collm.cli.lazy import load
    from collm.cli.verbs import all_verbs

    root = context.find_root().params
    if root.get("no_config"):
        return
    try:
        files = config_files(root.get("config"))
        for file in files:
            check_sections(file)
        used = {name for file in files for name in file.tables}
        for verb in all_verbs():
            is_common = "defaults" in used and verb.name in ("run", "chat", "cloud")
            if verb.name in used or is_common:
                for names, command in commands_of(files, verb, load(verb)):
                    settings(files, names, command)
    except UsageError as error:
        yield fault("config", str(error), "mend that line; collm config show tells what counts")
        return
    told = ", ".join(str(file.path.absolute()) for file in files)
    yield ok("config", told or "no collm.toml: every option has its default")


def _line(finding: Finding) -> Text:
    line = Text(f"{finding.level:<8}", _COLOURS[finding.level])
    line.append(f"{finding.check:<13} ", "bold")
    line.append(finding.found)
    if finding.todo:
        line.append(f"; {finding.todo}" if finding.level != "ok" else "")
    return line


def _verdict(faults: int, warnings: int) -> Text:
    def count(number: int, word: str) -> str:
        return f"{number} {word}" + ("" if number == 1 else "s")

    if not faults and not warnings:
        return Text("all is well", "green")
    told = ", ".join(
        count(number, word) for number, word in ((faults, "fault"), (warnings, "warning")) if number
    )
    return Text(told, _COLOURS["FAULT" if faults else "warning"])
