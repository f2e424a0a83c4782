"""`collm ps`."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Annotated, Any

import psutil
import typer

from collm.cli.options import JsonOption
from collm.cli.table import megabytes, plain_table, wide_console
from collm.errors import CollmError
from collm.serve.registry import Running, running


def ps_command(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print addresses only.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List CoLLM's clouds, edge servers and servers on this machine, of this user."""
    found = running()
    if quiet:
        for one in found:
            typer.echo(one.address)
        return
    records = [_record(one) for one in found]
    if as_json:
        typer.echo(json.dumps(records))
        return
    if not records:
        typer.echo("nothing of CoLLM runs here; start a cloud with: collm cloud ARTIFACT")
        return
    columns = ["kind", "address", "model", "layers", "mode", "sessions", "memory", "up", "pid"]
    table = plain_table(None, columns)
    for record in records:
        table.add_row(
            record["kind"],
            record["address"],
            f"{record['model']} ({record['fingerprint'][:8]})" if record["model"] else "",
            f"{record['first']} to {record['last'] - 1} of {record['layers']}"
            if record["layers"]
            else "",
            record["mode"],
            "" if record["sessions"] is None else f"{record['sessions']:.0f}",
            megabytes(record["memory_bytes"]),
            duration(record["uptime_seconds"]),
            str(record["pid"]),
        )
    wide_console(140).print(table)


def duration(seconds: float) -> str:
    """Of a time for people: 45 s, 12 min, 3 h 20 min, 5 d 2 h."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def _record(one: Running) -> dict[str, Any]:
    process = one.process()
    memory = 0
    try:
        memory = process.memory_info().rss if process is not None else 0
    except psutil.Error:
        pass  # it ended this moment
    return asdict(one) | {
        "memory_bytes": memory,
        "uptime_seconds": max(0.0, time.time() - one.started),
        "sessions": _sessions(one),
    }


def _sessions(one: Running) -> float | None:
    """What it has open; None where it does not tell."""
    from collm.serve.scrape import Source, read_samples

    if not one.socket:
        return None
    try:
        samples = read_samples(Source(one.socket))
    except CollmError:
        return None
    return samples.total("collm_answers_active" if one.kind == "serve" else "collm_sessions")
