"""What of CoLLM runs on this machine, for this user: a small file for each process.

::

    RUNTIME/processes/PID-RANDOM.json     what it is; gone when it ends
    RUNTIME/processes/PID-RANDOM.sock     its /metrics, for this user alone

A server says `with registered(kind="cloud", address=…, artifact=…):`; `collm ps` and `collm top`
read. A file whose process is gone (by number and start time) is removed by whoever reads; one that
cannot be read, such as another version's, stays as long as a process of its number lives.

Not covered: processes of other users, and in other containers.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import stat
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from platformdirs import user_runtime_path

from collm import __version__
from collm.errors import LinkError, one_line

if TYPE_CHECKING:  # who only reads needs no models
    from collm.model.artifact import Artifact

logger = logging.getLogger(__name__)

_MOST_BYTES = 16_384
_MOST_FILES = 4096
_SAME_START_SECONDS = 0.02
_LONGEST_SOCKET = 100
"""Bytes of a path that every system binds a socket to."""


@dataclass(frozen=True, kw_only=True)
class Running:
    """A process of CoLLM."""

    pid: int
    started: float
    """Seconds since 1970, as the system has it."""
    kind: str
    """`cloud`, `edge server` or `serve`."""
    address: str
    """Where it is called: HOST:PORT, or a URL."""
    version: str = ""
    artifact: str = ""
    """Its folder."""
    model: str = ""
    fingerprint: str = ""
    first: int = 0
    last: int = 0
    """It runs the layers [first, last) …"""
    layers: int = 0
    """… of so many."""
    mode: str = ""
    cloud: str = ""
    """Who runs what it does not."""
    metrics: str = ""
    """Where /metrics is: HOST:PORT or a URL; empty: nowhere over TCP."""
    socket: str = ""
    """A Unix socket with /metrics."""

    def process(self) -> psutil.Process | None:
        """The process, while it lives."""
        with suppress(psutil.Error, OSError, ValueError):
            found = psutil.Process(self.pid)
            if abs(found.create_time() - self.started) < _SAME_START_SECONDS:
                return found if found.status() != psutil.STATUS_ZOMBIE else None
        return None


def registry_folder() -> Path:
    """Where the files are: of this user, whose system removes them when it starts again."""
    with warnings.catch_warnings():  # of a fallback, where there is no folder for sessions
        warnings.simplefilter("ignore")
        return user_runtime_path("collm") / "processes"


@contextmanager
def registered(
    *,
    kind: str,
    address: str,
    artifact: Artifact | None = None,
    layers: range | None = None,
    mode: str = "",
    cloud: str = "",
    metrics: str = "",
) -> Iterator[None]:
    """Let `collm ps` and `collm top` know of this process meanwhile.

    layers: those that run here, None for all. cloud: who runs the others. metrics: where /metrics
    is read over TCP, if anywhere. A machine that has no place for the file is a line in the log,
    never an error.
    """
    from collm.serve.metrics import socket_metrics

    started = psutil.Process().create_time()
    with ExitStack() as stack:
        try:
            folder = _own_folder()
            path = folder / f"{os.getpid()}-{secrets.token_hex(3)}.json"
            socket = path.with_suffix(".sock")
            if len(os.fsencode(socket)) <= _LONGEST_SOCKET:
                stack.enter_context(socket_metrics(socket))
            run = layers
            if run is None and artifact is not None:
                run = range(artifact.architecture.layers)
            about = Running(
                pid=os.getpid(),
                started=started,
                kind=kind,
                address=address,
                version=__version__,
                artifact=str(artifact.folder.absolute()) if artifact is not None else "",
                model=artifact.manifest.name if artifact is not None else "",
                fingerprint=artifact.fingerprint if artifact is not None else "",
                first=run.start if run is not None else 0,
                last=run.stop if run is not None else 0,
                layers=artifact.architecture.layers if artifact is not None else 0,
                mode=mode,
                cloud=cloud,
                metrics=metrics,
                socket=str(socket) if socket.exists() else "",
            )
            _write(path, json.dumps(asdict(about)))
            stack.callback(path.unlink, missing_ok=True)
        except (OSError, LinkError) as error:
            logger.warning("collm ps will not know of this process: %s", error)
        yield


def running() -> list[Running]:
    """The processes that are registered and alive, the oldest first."""
    found = []
    try:
        paths = sorted(_checked(registry_folder()).glob("*.json"))[:_MOST_FILES]
    except OSError:
        return []
    for path in paths:
        one = _read(path)
        if one is not None and one.process() is not None:
            found.append(one)
            continue
        if one is None and not _is_of_the_dead(path):
            continue
        for left in (path, path.with_suffix(".sock")):
            with suppress(OSError):
                left.unlink()
    return sorted(found, key=lambda one: one.started)


def _is_of_the_dead(path: Path) -> bool:
    """By the number in the file's name, as nothing in it counts."""
    number = path.name.partition("-")[0]
    return number.isascii() and number.isdigit() and not psutil.pid_exists(int(number))


def _read(path: Path) -> Running | None:
    """None for what cannot be read, or has been written by something else.

    Fields that this version does not know are let be: another version's process is listed, too.
    """
    names = {field.name for field in fields(Running)}
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(_MOST_BYTES))
        known = Running(**{name: value for name, value in data.items() if name in names})
        same = {name: type(value) for name, value in asdict(known).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    fits = all(
        one in (int, float) if name in ("started", "pid", "first", "last", "layers") else one is str
        for name, one in same.items()
    )
    # A terminal obeys none of it.
    return known if fits and all(one_line(text, 500) == text for text in _texts(known)) else None


def _texts(one: Running) -> list[str]:
    return [value for value in asdict(one).values() if isinstance(value, str)]


def _own_folder() -> Path:
    """Made if it is missing. Raises OSError, also where somebody else could put files there."""
    folder = registry_folder()
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.mkdir(exist_ok=True, mode=0o700)
    return _checked(folder)


def _checked(folder: Path) -> Path:
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
        raise PermissionError(f"{folder}: not a folder of this user's")
    if about.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    scratch.chmod(0o600)
    os.replace(scratch, path)
