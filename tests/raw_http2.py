"""HTTP/2 by hand (RFC 9113), for peers that no library would make."""

from __future__ import annotations

from collections.abc import Sequence

from collm.link.grpc_options import PATH

SETTINGS_HEAD = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def call_that_takes_nothing(frames: Sequence[bytes]) -> bytes:
    """What opens a session and sends these frames, with a window of 0 bytes for the answers."""
    headers = {":method": "POST", ":scheme": "http", ":path": PATH, ":authority": "x",
               "content-type": "application/grpc", "te": "trailers"}  # fmt: skip
    literal = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in headers.items()
    )
    no_window = b"\0\x04\0\0\0\0"  # SETTINGS_INITIAL_WINDOW_SIZE 0
    return (
        SETTINGS_HEAD
        + _frame(4, no_window)
        + _frame(1, literal, stream=1, flags=4)
        + b"".join(
            _frame(0, b"\0" + len(frame).to_bytes(4, "big") + frame, stream=1) for frame in frames
        )
    )


def _frame(kind: int, body: bytes, *, stream: int = 0, flags: int = 0) -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body
