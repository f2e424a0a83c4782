"""Coverage-guided fuzzing of both decoders; `make fuzz` runs it. Not a test by itself.

Anything but the protocol's own errors, and anything slower than 50 ms, is a finding: atheris writes
the bytes to a file and stops.
"""

from __future__ import annotations

import sys
import time

import atheris

with atheris.instrument_imports(include=["collm.wire"]):
    from collm.errors import CorruptFrame, ProtocolError
    from collm.limits import Limits
    from collm.wire.encoding import decode_client, decode_cloud
    from collm.wire.seal import sealed

LIMITS = Limits(max_message_bytes=4096, max_rows_per_append=16, max_draft_tokens=16)
FORMATS = ("ids", "f32", "f16", "int8")


def one(data: bytes) -> None:
    """Decode as either side would."""
    if not data:
        return
    frame = sealed(data[1:]) if data[0] & 4 else data[1:]
    started = time.perf_counter()
    for decode in (
        lambda: decode_client(frame, LIMITS, FORMATS[data[0] & 3], 6, sealed=bool(data[0] & 8)),
        lambda: decode_cloud(frame, LIMITS, sealed=bool(data[0] & 8)),
    ):
        try:
            decode()
        except (ProtocolError, CorruptFrame):
            pass
    if time.perf_counter() - started > 0.05:
        raise RuntimeError(f"{len(frame)} bytes took {time.perf_counter() - started:.3f} s")


atheris.Setup(sys.argv, one)
atheris.Fuzz()
