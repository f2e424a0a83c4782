"""Locks between processes and threads: a lock goes with whoever holds it, however that dies.

Not covered: file systems without `flock`, and Windows.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from collm.errors import UsageError

_LOOK_SECONDS = 0.02


class LockedFile:
    """A file opened for writing, which nobody else has locked; closing it gives the lock back."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def close(self) -> None:
        """Give the lock back."""
        os.close(self._descriptor)

    def unlink(self) -> None:
        """Remove the file, still locked: no other holder of the lock can be at it."""
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> LockedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def try_lock(path: Path, *, create: bool = True) -> LockedFile | None:
    """The file `path`, locked; None where somebody else has it, or it is not there to be locked.

    create: make an empty one where there is none. Raises OSError.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o644)
        except FileNotFoundError:
            if create:
                raise
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.fstat(descriptor)
            with suppress(FileNotFoundError):
                if os.path.samestat(held, os.stat(path)):
                    return LockedFile(path, descriptor)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # it was renamed or removed while we got the lock: another one is due


@contextmanager
def locked(path: Path, seconds: float) -> Iterator[None]:
    """Hold the lock of `path` meanwhile. Raises UsageError where it is not free after `seconds`."""
    deadline = time.monotonic() + seconds
    while (held := try_lock(path)) is None:
        if time.monotonic() > deadline:
            raise UsageError(f"{path}: locked by another collm for {seconds:g} s; try again later")
        time.sleep(_LOOK_SECONDS)
    with held:
        yield
