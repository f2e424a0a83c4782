"""Processes of our own on this machine: started, waited for, ended."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from collm.errors import LinkError
from collm.limits import DEFAULT_LIMITS, Limits
from collm.link.shapes import LinkShape

_COLLM = (sys.executable, "-m", "collm", "--no-config")
"""What the user's configuration says of clouds is not meant for those of our own."""
_ANYWHERE = "127.0.0.1:0"


@dataclass(frozen=True, kw_only=True)
class Spawned:
    """A process of our own that takes connections."""

    address: str
    pid: int
    say: Callable[[str], None]
    """A line for it: a link takes another shape, in the words of `parse_link`."""


@contextmanager
def spawned_cloud(
    folder: Path,
    *,
    threads: int,
    limits: Limits,
    arguments: Sequence[str] = (),
    listen: str = _ANYWHERE,
) -> Iterator[Spawned]:
    """A fresh cloud process for the artifact `folder`, ended on leaving.

    It listens on a free loopback port unless told where, and also ends when this process dies.
    arguments: more of `collm cloud`'s. Raises LinkError when it does not come up within
    `limits.spawn_seconds`.
    """
    words = ["cloud", str(folder), "--threads", str(threads), *arguments]
    with _spawned(words, limits, "cloud", listen) as spawned:
        yield spawned


@contextmanager
def spawned_link(
    shape: LinkShape, to: str, *, limits: Limits = DEFAULT_LIMITS
) -> Iterator[Spawned]:
    """A link shaper in a process of its own, in front of the address `to`; as `spawned_cloud`."""
    words = ["link", "--to", to, "--delay", f"{1e6 * shape.delay_seconds:.0f}us"]
    words += ["--jitter", f"{1e6 * shape.jitter_seconds:.0f}us"]
    if shape.bits_per_second:
        words += ["--rate", f"{shape.bits_per_second / 1e3:.3f}kbit"]
    with _spawned(words, limits, "link") as spawned:
        yield spawned


@contextmanager
def spawned_serve(
    folder: Path, *, limits: Limits = DEFAULT_LIMITS, arguments: Sequence[str] = ()
) -> Iterator[Spawned]:
    """`collm serve` on a free loopback port, ended on leaving; its address is a URL.

    arguments: more of its own. Raises LinkError as `spawned_cloud` does.
    """
    command = [*_COLLM, "serve", str(folder), "--port", "0", *arguments]
    with _process(command, limits, "serve") as (process, line):
        found = re.search(r"https?://[^ ]+", line)
        if found is None:
            raise LinkError(f"the serve process said {line[:200]!r}; expected its address")
        try:
            yield Spawned(address=found[0], pid=process.pid, say=partial(_say, process))
        finally:
            process.terminate()


@contextmanager
def spawned_python(
    module: str, *arguments: str, limits: Limits = DEFAULT_LIMITS
) -> Iterator[Spawned]:
    """A module of ours as a program, that says its address in a line; as `spawned_serve`."""
    command = [sys.executable, "-m", module, *arguments]
    with _process(command, limits, module) as (process, line):
        try:
            yield Spawned(address=line, pid=process.pid, say=partial(_say, process))
        finally:
            process.terminate()


@contextmanager
def _spawned(
    words: Sequence[str], limits: Limits, name: str, listen: str = _ANYWHERE
) -> Iterator[Spawned]:
    """`collm WORDS --listen … --spawned`, which says its address in a line."""
    command = [*_COLLM, *words, "--listen", listen, "--spawned"]
    with _process(command, limits, name) as (process, address):
        yield Spawned(address=address, pid=process.pid, say=partial(_say, process))


@contextmanager
def _process(
    command: Sequence[str], limits: Limits, name: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A process, and the line that it prints when it takes connections."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,  # a file: a pipe that nobody reads would block the process one day
            # Ctrl-C in the terminal is the parent's to handle; it then closes the pipe.
            start_new_session=True,
        )
        try:
            yield process, _address(process, said, limits, name)
        finally:
            _end(process, limits)


def _address(process: subprocess.Popen[bytes], said: IO[bytes], limits: Limits, name: str) -> str:
    """The line that the process prints when it takes sessions."""
    assert process.stdout is not None
    deadline = time.monotonic() + limits.spawn_seconds
    line = b""
    while not line.endswith(b"\n") and len(line) < 1024:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
            raise LinkError(f"the {name} process did not come up in {limits.spawn_seconds:g} s")
        more = os.read(process.stdout.fileno(), 1024)
        if not more:
            process.wait(limits.shutdown_seconds)
            said.seek(0)
            lines = said.read(65536).decode(errors="replace").strip().splitlines()
            raise LinkError(
                f"the {name} process ended: {lines[-1] if lines else 'it said nothing'}"
            )
        line += more
    return line.decode(errors="replace").strip()


def _say(process: subprocess.Popen[bytes], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line.encode() + b"\n")
    process.stdin.flush()


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
