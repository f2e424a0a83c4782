"""Who may talk to whom, and how a no is put into words."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from collm.errors import CollmError, ContextFull, CorruptFrame, PromptError, ProtocolError, Refused
from collm.wire.messages import (
    HELLO_MINOR,
    PROTOCOL_MAJOR,
    PROTOCOL_MINOR,
    REFUSAL_CODES,
    Hello,
    Refusal,
)

_MOST_REASON_BYTES: Final = 1024


def hello_of(software: str, fingerprint: str, cut: int, wire_format: str) -> Hello:
    """What a client of this software says first."""
    return Hello(
        protocol_major=PROTOCOL_MAJOR,
        protocol_minor=HELLO_MINOR,
        fingerprint=fingerprint,
        cut=cut,
        wire_format=wire_format,
        software=software,
    )


def check_hello(
    hello: Hello, *, fingerprint: str, cuts: Collection[int], wire_formats: Collection[str]
) -> None:
    """Accept a client by returning; `cuts` are the first layers this cloud can start at.

    The major version must be equal and the minor version not above this side's: a newer
    client may send messages that are unknown here. Raises `Refused` with code `version`,
    `fingerprint`, `wire_format` or `placement`.
    """
    given = (hello.protocol_major, hello.protocol_minor)
    if hello.protocol_major != PROTOCOL_MAJOR or hello.protocol_minor > PROTOCOL_MINOR:
        raise Refused(
            "version",
            f"the client speaks protocol {given[0]}.{given[1]}, this cloud "
            f"{PROTOCOL_MAJOR}.{PROTOCOL_MINOR}; update the older of the two",
        )
    if hello.fingerprint != fingerprint:
        raise Refused(
            "fingerprint",
            f"the client's model is {_short(hello.fingerprint)}, this cloud serves "
            f"{_short(fingerprint)}; both must run the same artifact",
        )
    if hello.wire_format not in wire_formats:
        served = ", ".join(sorted(wire_formats))
        raise Refused(
            "wire_format",
            f"the client sends {_short(hello.wire_format)}, this cloud takes {served}",
        )
    if hello.cut not in cuts:
        raise Refused(
            "placement",
            f"the client wants the cloud to start at layer {hello.cut}, this cloud can start "
            f"at {', '.join(str(cut) for cut in sorted(cuts))}",
        )
    if (hello.cut == 0) != (hello.wire_format == "ids"):
        raise Refused(
            "placement",
            f"cut {hello.cut} does not go with wire format {hello.wire_format}: ids go with "
            "cut 0, hidden states with a cut above it",
        )


def refusal_for(error: CollmError) -> Refusal:
    """The message that tells a client why its session ended, always fit to be encoded.

    A `Refused` keeps its code; `CorruptFrame` becomes `corrupt`, `ProtocolError` `protocol`,
    `ContextFull` and `PromptError` `limits`, everything else `internal`.
    """
    match error:
        case Refused():
            code = error.code if error.code in REFUSAL_CODES else "internal"
        case CorruptFrame():
            code = "corrupt"
        case ProtocolError():
            code = "protocol"
        case ContextFull() | PromptError():  # a constraint that takes too much, or cannot be kept
            code = "limits"
        case _:
            code = "internal"
    later = error.retry_seconds if isinstance(error, Refused) else 0.0
    return Refusal(code=code, reason=_one_line(str(error)), retry_seconds=later)


def _short(text: str) -> str:
    return repr(text) if len(text) <= 40 else repr(text[:16] + "…" + text[-8:])


def _one_line(text: str) -> str:
    words = " ".join(text.split())
    printable = "".join(char if char.isprintable() else "?" for char in words)
    return printable.encode()[:_MOST_REASON_BYTES].decode(errors="ignore")
