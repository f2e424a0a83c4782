"""Bounds of single fields; every one raises `ProtocolError` with one line.

Text from the other side ends up in logs and terminals, so it must be printable: no control
characters, no line breaks.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from collm.errors import ProtocolError
from collm.limits import Limits


def bounded(name: str, value: int, most: int) -> int:
    """`value` if it is 0 to `most`."""
    if not 0 <= value <= most:
        raise ProtocolError(f"{name} is {value}; it must be 0 to {most}")
    return value


def counted(name: str, count: int, most: int) -> None:
    """Check a number of items before they are read."""
    if count > most:
        raise ProtocolError(f"{count} {name}; at most {most}")


def token_ids(name: str, values: Sequence[int], limits: Limits) -> tuple[int, ...]:
    """`values` if each is a possible token id; their number is checked by the caller."""
    ids = tuple(values)
    if ids:
        bounded(name, max(ids), limits.max_token_id)
    return ids


def finite(name: str, value: float) -> float:
    """`value` if it is neither NaN nor infinite."""
    if not math.isfinite(value):
        raise ProtocolError(f"{name} is {value}; it must be finite")
    return value


def logprob(value: float) -> float:
    """`value` if it is a possible log-probability (rounding may put it just above 0)."""
    if finite("logprob", value) > 1e-3:
        raise ProtocolError(f"logprob is {value}; it must not be above 0")
    return value


def seconds(name: str, value: float) -> float:
    """`value` if it is a possible duration."""
    if finite(name, value) < 0:
        raise ProtocolError(f"{name} is {value}; it must not be negative")
    return value


def text(name: str, value: str, limits: Limits, most: int | None = None) -> str:
    """`value` if it is short enough and printable. most: bytes; None: as much as any string."""
    most = limits.max_text_bytes if most is None else most
    # Characters first: encoding takes memory of its own.
    if len(value) > most or len(value.encode()) > most:
        raise ProtocolError(f"{name} is longer than {most} bytes")
    if not value.isprintable():
        raise ProtocolError(f"{name} has characters that cannot be printed")
    return value


def one_of(name: str, value: str, allowed: Collection[str]) -> str:
    """`value` if it is one of `allowed`."""
    if value not in allowed:
        raise ProtocolError(f"{name} {value[:40]!r} is none of {', '.join(sorted(allowed))}")
    return value
