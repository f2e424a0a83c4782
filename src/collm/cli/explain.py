"""What mode `auto` did, and what it knows: for people."""

from __future__ import annotations

import math

import typer

from collm.cli.show import plain_table, wide_console
from collm.session.edge import Edge
from collm.session.events import Account
from collm.session.steering import Steering, describe

_SHOWN = 6


def explain_ways(account: Account, edge: Edge) -> None:
    """The changes of an answer, and the cheapest ways by what is known now."""
    if edge.steering is None:
        typer.echo(f"mode {account.mode}, wire {edge.wire}: nothing was left to measurements")
        return
    for change in account.changes:
        typer.echo(f"from token {change.index + 1}: {describe(change.way)}: {change.reason}")
    wide_console(120).print(_table(edge.steering))


def _table(steering: Steering) -> object:
    link = steering.forecaster.link
    rate = link.bits_per_second
    about = f"round trip {_ms(link.round_trip)}, " + (
        f"{rate / 1e6:.1f} Mbit/s up" if rate < math.inf else "rate not felt yet"
    )
    columns = ["way", "ms/token", "forecast", "accepted", "bytes up", "cloud ms/token"]
    table = plain_table(f"The cheapest ways ({about})", columns)
    for way, forecast, expected in steering.controller.table()[:_SHOWN]:
        table.add_row(
            describe(way),
            _ms(expected),
            _ms(forecast.seconds),
            f"{forecast.accepted:.2f}" if way.mode == "verified" else "",
            f"{forecast.bytes_up:,.0f}",
            _ms(forecast.cloud_seconds),
        )
    return table


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f}" if seconds == seconds else "?"
