"""`collm link`."""

from __future__ import annotations

import select
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from collm.cli.options import byte_count
from collm.link.faults import LinkFaults, read_script
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
    stall: Annotated[
        float, typer.Option(help="Chance that a piece of bytes, and all after it, is held up.")
    ] = 0.0,
    stall_for: Annotated[str, typer.Option(help="… for so long.")] = "2s",
    cut_after: Annotated[
        str, typer.Option(help="End every connection after such as 10s, or 500kb; empty: never.")
    ] = "",
    reset: Annotated[
        float, typer.Option(help="Chance, for each piece, that its connection breaks.")
    ] = 0.0,
    blackhole: Annotated[
        float, typer.Option(help="Chance, for each piece, that nothing passes from then on.")
    ] = 0.0,
    corrupt: Annotated[
        float, typer.Option(help="Chance, for each piece, that one of its bits changes.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Same seed, same chances.")] = 0,
    script: Annotated[
        Path | None,
        typer.Option(help="File of lines such as '10s down 20s', '40s reset', '45s refuse 5s'."),
    ] = None,
    spawned: Annotated[
        bool, typer.Option(hidden=True, help="End with standard input; print only the address.")
    ] = False,
) -> None:
    """Pass TCP connections on as a slow, faulty link would, until interrupted."""
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
    cut_bytes = byte_count("--cut-after", cut_after) if cut_after.lower().endswith("b") else 0
    faults = LinkFaults(
        stall=stall,
        stall_seconds=parse_seconds(stall_for),
        cut_after_bytes=cut_bytes,
        cut_after_seconds=parse_seconds(cut_after) if cut_after and not cut_bytes else 0.0,
        reset=reset,
        blackhole=blackhole,
        corrupt=corrupt,
        seed=seed,
        script=read_script(script) if script is not None else (),
    )
    # Not what SIGINT has: a shell that starts us in the background has it ignored.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with LinkShaper(chosen, listen, to, faults) as link:
        limit = f"{chosen.bits_per_second / 1e6:g} Mbit/s" if chosen.bits_per_second else "no limit"
        print(
            link.address
            if spawned
            else f"{link.address} to {to}: {1000 * chosen.round_trip_seconds:g} ms there and back, "
            f"{limit} each way",
            flush=True,
        )
        if spawned:
            for line in sys.stdin:  # the parent's end closes however the parent dies
                link.reshape(parse_link(line.strip()))
        else:
            select.select([], [], [])
