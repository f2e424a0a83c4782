"""`collm link`."""

from __future__ import annotations

import select
import signal
import sys
from typing import Annotated

import typer

from collm.link.shaper import LinkShaper
from collm.link.shapes import LinkShape, parse_link, parse_rate, parse_seconds


def link_command(
    to: Annotated[str, typer.Option(help="HOST:PORT that connections are passed on to.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT; port 0 takes a free one.")] = (
        "127.0.0.1:50052"
    ),
    delay: Annotated[str, typer.Option(help="Of a trip one way, such as 20ms.")] = "0ms",
    jitter: Annotated[str, typer.Option(help="By how much a trip varies, such as 5ms.")] = "0ms",
    rate: Annotated[str, typer.Option(help="Each way, such as 30mbit; 0: unlimited.")] = "0",
    shape: Annotated[
        str | None,
        typer.Option(help="Instead: loopback, paper, wifi, lte, wan, rtt:50ms or rtt:50ms@1gbit."),
    ] = None,
    spawned: Annotated[
        bool, typer.Option(hidden=True, help="End with standard input; print only the address.")
    ] = False,
) -> None:
    """Pass TCP connections on as a slow link would, until interrupted."""
    chosen = (
        parse_link(shape)
        if shape is not None
        else LinkShape(
            name="link",
            delay_seconds=parse_seconds(delay),
            jitter_seconds=parse_seconds(jitter),
            bits_per_second=parse_rate(rate),
        )
    )
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    with LinkShaper(chosen, listen, to) as link:
        limit = f"{chosen.bits_per_second / 1e6:g} Mbit/s" if chosen.bits_per_second else "no limit"
        print(
            link.address
            if spawned
            else f"{link.address} to {to}: {1000 * chosen.round_trip_seconds:g} ms there and back, "
            f"{limit} each way",
            flush=True,
        )
        if spawned:
            sys.stdin.read()  # the parent's end of the pipe closes however the parent dies
        else:
            select.select([], [], [])
