"""HTTP/2 by hand (RFC 9113), for peers that no library would make."""

from __future__ import annotations

from collections.abc import Sequence

from collm.link.grpc_options import PATH

SETTINGS_HEAD = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def call_that_takes_nothing(frames: Sequence[bytes]) -> bytes:
    """What opens a session and sends these frames, with a window of 0 bytes for the answers."""
    no_window = b"\0\x04\0\0\0\0"  # SETTINGS_INITIAL_WINDOW_SIZE 0
    return (
        SETTINGS_HEAD
        + _frame(4, no_window)
        + _headers(PATH.encode())
        + b"".join(
            _frame(0, b"\0" + len(frame).to_bytes(4, "big") + frame, stream=1) for frame in frames
        )
    )


def call_to(path: bytes) -> bytes:
    """What opens a call of whatever name."""
    return SETTINGS_HEAD + _frame(4, b"") + _headers(path)


def _headers(path: bytes) -> bytes:
    headers = {b":method": b"POST", b":scheme": b"http", b":path": path, b":authority": b"x",
               b"content-type": b"application/grpc", b"te": b"trailers"}  # fmt: skip
    literal = b"".join(
        b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value
        for name, value in headers.items()
    )
    return _frame(1, literal, stream=1, flags=4)


def _frame(kind: int, body: bytes, *, stream: int = 0, flags: int = 0) -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body
