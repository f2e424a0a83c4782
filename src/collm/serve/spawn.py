"""A cloud process of our own on this machine: started, waited for, ended."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from collm.errors import LinkError
from collm.limits import Limits


@contextmanager
def spawned_cloud(folder: Path, *, threads: int, limits: Limits) -> Iterator[str]:
    """The address of a fresh cloud process for the artifact `folder`, ended on leaving.

    It listens on a free loopback port, and also ends when this process dies.
    Raises LinkError when it does not come up within `limits.spawn_seconds`.
    """
    command = [sys.executable, "-m", "collm", "cloud", str(folder), "--listen", "127.0.0.1:0"]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [*command, "--threads", str(threads), "--spawned"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,  # a file: a pipe that nobody reads would block the process one day
            # Ctrl-C in the terminal is the parent's to handle; it then closes the pipe.
            start_new_session=True,
        )
        try:
            yield _address(process, said, limits)
        finally:
            _end(process, limits)


def _address(process: subprocess.Popen[bytes], said: IO[bytes], limits: Limits) -> str:
    """The line that the process prints when it takes sessions."""
    assert process.stdout is not None
    deadline = time.monotonic() + limits.spawn_seconds
    line = b""
    while not line.endswith(b"\n") and len(line) < 1024:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
            raise LinkError(f"the cloud process did not come up in {limits.spawn_seconds:g} s")
        more = os.read(process.stdout.fileno(), 1024)
        if not more:
            process.wait(limits.shutdown_seconds)
            said.seek(0)
            lines = said.read(65536).decode(errors="replace").strip().splitlines()
            raise LinkError(f"the cloud process ended: {lines[-1] if lines else 'it said nothing'}")
        line += more
    return line.decode(errors="replace").strip()


def _end(process: subprocess.Popen[bytes], limits: Limits) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(limits.shutdown_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
