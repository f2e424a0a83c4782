"""The checksum at a frame's end: field 15 of `Envelope`, CRC-32 of all bytes before it.

Older peers pass over a field they do not know; from `messages.ATTACH_MINOR` on it must be there.
"""

from __future__ import annotations

import zlib
from typing import Final

from collm.errors import CorruptFrame

_TAG: Final = bytes([15 << 3 | 5])
"""Field 15, four bytes."""
_LENGTH: Final = 5


def sealed(body: bytes) -> bytes:
    """The frame of a serialized message."""
    return body + _TAG + zlib.crc32(body).to_bytes(4, "little")


def has_seal(frame: bytes) -> bool:
    """Whether the frame ends as one with a checksum does; an older peer's may, by chance."""
    return frame[-_LENGTH : 1 - _LENGTH] == _TAG


def check_seal(frame: bytes, *, required: bool) -> None:
    """Raise `CorruptFrame` where the checksum is wrong, or missing though `required`."""
    if has_seal(frame):
        body = memoryview(frame)[:-_LENGTH]
        if zlib.crc32(body).to_bytes(4, "little") == frame[1 - _LENGTH :]:
            return
        if not required:
            return
        raise CorruptFrame(f"a frame of {len(frame)} bytes whose checksum is wrong")
    if required:
        raise CorruptFrame(f"a frame of {len(frame)} bytes without a checksum")
