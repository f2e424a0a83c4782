"""`collm top`: a cloud or a server at work, drawn anew every second."""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from collm.cli.options import JsonOption
from collm.cli.table import kilobytes, megabytes
from collm.errors import CollmError, LinkError, UsageError
from collm.serve.registry import Running, running
from collm.serve.scrape import Samples, Source, read_samples
from collm.serve.view import View, view

_BAR = 24
_MOST_TOKEN_BYTES = 4096


def top_command(
    address: Annotated[
        str | None,
        typer.Argument(
            help="HOST:PORT or URL where /metrics is, or the address or pid of a process that "
            "collm ps lists; default: the one that runs here."
        ),
    ] = None,
    every: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds between looks.")] = 1.0,
    token_file: Annotated[
        Path | None, typer.Option(help="File with a token, where /metrics wants one.")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(help="PEM: the authority of the certificate, for https.")
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Look twice, print the figures, and end.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Watch sessions, rates, memory and waits of a cloud, an edge server or a server."""
    token = ""
    if token_file is not None:
        try:
            token = token_file.read_bytes()[:_MOST_TOKEN_BYTES].decode(errors="replace").strip()
        except OSError as error:
            raise UsageError(f"{token_file}: cannot be read ({error.strerror})") from None
    watched = Watched(address, token, ca)
    if once:
        first = read_samples(watched.source())
        started = time.monotonic()
        time.sleep(min(every, 1.0))
        second = read_samples(watched.source())
        seen = view(second, first, time.monotonic() - started)
        if as_json:
            typer.echo(json.dumps({"address": watched.name} | seen.to_json()))
        else:
            Console(highlight=False).print(drawn(watched.name, seen))
        return
    if as_json:
        _json_lines(watched, every)
    else:
        _live(watched, every)


class Watched:
    """The process that is looked at, found anew where it was started again. UsageError."""

    def __init__(self, address: str | None, token: str, ca: Path | None) -> None:
        self._address, self._token, self._ca = address, token, ca
        self.name = address or ""
        with suppress(LinkError):  # it may be back later
            self.source()  # or why there is nothing to look at

    def source(self) -> Source:
        """Where its metrics are now."""
        found = running()
        if self._address is None:
            if not found:
                raise UsageError(
                    "nothing of CoLLM runs here; name one: collm top HOST:PORT, as given to "
                    "collm cloud --metrics"
                )
            if len(found) > 1 and not self.name:
                told = ", ".join(f"{one.address} ({one.kind})" for one in found)
                raise UsageError(f"several run here: {told}; name one: collm top ADDRESS")
            self._address = self.name = found[-1].address
        for one in found[::-1]:
            if self._address in (one.address, str(one.pid), one.address.partition("://")[2]):
                self.name = f"{one.kind} {one.address}, {one.model}".rstrip(", ")
                return self._source_of(one)
        return Source(self._address, self._token, self._ca)

    def _source_of(self, one: Running) -> Source:
        where = one.socket or one.metrics
        if not where:
            raise LinkError(f"{one.address}: publishes no metrics; start it with --metrics")
        return Source(where, self._token, self._ca)


def looks(watched: Watched) -> Iterator[View | str]:
    """A view at every call; what is wrong, in words, while the process is away."""
    before: Samples | None = None
    at = 0.0
    while True:
        try:
            now, seen_at = read_samples(watched.source()), time.monotonic()
        except LinkError as error:
            before = None
            yield str(error)
            continue
        except CollmError as error:
            yield str(error)
            continue
        yield view(now, before, seen_at - at)
        before, at = now, seen_at


def _json_lines(watched: Watched, every: float) -> None:
    for seen in looks(watched):
        told = {"error": seen} if isinstance(seen, str) else seen.to_json()
        print(json.dumps({"address": watched.name} | told), flush=True)
        time.sleep(every)


def _live(watched: Watched, every: float) -> None:
    console = Console(highlight=False)
    last: View | None = None
    with (
        _keys() as pressed,
        Live(console=console, screen=console.is_terminal, auto_refresh=False) as live,
    ):
        try:
            for seen in looks(watched):
                if isinstance(seen, View):
                    last = seen
                    live.update(drawn(watched.name, seen, "q ends"), refresh=True)
                else:
                    live.update(_away(watched.name, seen, last), refresh=True)
                if pressed(every):
                    break
        except KeyboardInterrupt:
            pass  # as good a way to end as q


@contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """A wait that ends early where somebody presses q; the terminal is as before afterwards."""
    import termios
    import tty

    if not sys.stdin.isatty():
        yield _slept
        return
    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)

    def pressed(seconds: float) -> bool:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if select.select([number], [], [], left)[0]:
                key = os.read(number, 64)
                if not key or set(key) & set(b"qQ\x04"):
                    return True
        return False

    try:
        tty.setcbreak(number)
        yield pressed
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)


def _slept(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def drawn(name: str, seen: View, hint: str = "") -> Group:
    """The figures in a terminal."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()

    def row(label: str, *told: str) -> None:
        said = [one for one in told if one]
        if said:
            table.add_row(label, "   ".join(said))

    def count(value: float | None, unit: str, digits: int = 0) -> str:
        return "" if value is None else f"{value:,.{digits}f} {unit}".rstrip()

    row(
        "sessions",
        count(seen.sessions, "held") if seen.kv_budget else "",
        count(seen.active, "answers under way") if seen.active or not seen.kv_budget else "",
        count(seen.waiting, "turns waiting") if seen.kv_budget else "",
    )
    if seen.kv_budget:
        share = (seen.kv_bytes or 0) / seen.kv_budget
        memory = f"{megabytes(int(seen.kv_bytes or 0))} of {megabytes(int(seen.kv_budget))}"
        row("memory", f"{_bar(share)} {share:.0%}", memory)
    row("tokens", count(seen.tokens_rate, "/s", 1), f"{seen.tokens:,.0f} so far")
    row(
        "verdicts",
        count(seen.verdicts_rate, "/s", 1),
        "" if seen.accepted is None else f"{seen.accepted:.2f} tokens accepted each",
    )
    row("in", "" if seen.bytes_in_rate is None else f"{kilobytes(int(seen.bytes_in_rate))}/s")
    row("out", "" if seen.bytes_out_rate is None else f"{kilobytes(int(seen.bytes_out_rate))}/s")
    row("computing", _times(seen.turn_p50, seen.turn_p95))
    row("answers wait", _times(seen.question_p50, seen.question_p95))
    for source, share in seen.shares.items():
        row(source, f"{_bar(share)} {share:.0%}")
    row(
        "trouble",
        f"{seen.evictions:,.0f} evictions" if seen.evictions else "",
        f"{seen.reconnects:,.0f} links replaced" if seen.reconnects else "",
        *(f"{value:,.0f} refused: {code}" for code, value in seen.refusals.items()),
    )
    return Group(Text(name, "bold"), table, Text(hint, "dim"))


def _bar(share: float) -> str:
    full = round(max(0.0, min(1.0, share)) * _BAR)
    return "█" * full + "░" * (_BAR - full)


def _times(half: float | None, most: float | None) -> str:
    if half is None or most is None:
        return ""
    return f"{1000 * half:,.1f} ms half of the time, {1000 * most:,.1f} ms 95 % of the time"


def _away(name: str, why: str, last: View | None) -> Group:
    told = Text(f"away: {why}; looking again", "bold red")
    if last is None:
        return Group(Text(name, "bold"), told, Text("q ends", "dim"))
    return Group(told, drawn(name, last, "as last seen; q ends"))
