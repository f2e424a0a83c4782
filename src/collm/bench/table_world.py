"""The processes of `collm bench table`: clouds on their core, and a shaped link to each.

Each is started when it is first needed, and ends with the world. A link is dialled before it is
asked for, so that an answer begins on a connection that stands.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from collm.bench.cores import Cores, pin
from collm.limits import DEFAULT_LIMITS
from collm.link.base import Closing, Link
from collm.link.grpc_client import connect
from collm.link.shapes import LinkShape
from collm.serve.spawn import spawned_cloud, spawned_link


class World(Protocol):
    """Where answers are made."""

    def dial(self, shape: LinkShape, arguments: tuple[str, ...]) -> Link:
        """A link of this shape to the cloud with these arguments."""
        ...

    def cloud_pid(self, arguments: tuple[str, ...]) -> int:
        """The process of that cloud."""
        ...


class Processes(Closing):
    """Real ones, on this machine."""

    def __init__(self, folder: Path, *, threads: int, cores: Cores) -> None:
        self._folder = folder
        self._threads = threads
        self._cores = cores
        self._clouds: dict[tuple[str, ...], tuple[str, int]] = {}
        self._links: dict[tuple[str, tuple[str, ...]], str] = {}
        self._stack = ExitStack()

    def dial(self, shape: LinkShape, arguments: tuple[str, ...]) -> Link:
        """A link of this shape to the cloud with these arguments."""
        return connect(self._address(shape, arguments), DEFAULT_LIMITS)

    def cloud_pid(self, arguments: tuple[str, ...]) -> int:
        """The process of that cloud."""
        return self._cloud(arguments)[1]

    def _cloud(self, arguments: tuple[str, ...]) -> tuple[str, int]:
        if arguments not in self._clouds:
            made = self._stack.enter_context(
                spawned_cloud(
                    self._folder, threads=self._threads, limits=DEFAULT_LIMITS, arguments=arguments
                )
            )
            pin(made.pid, self._cores.cloud)
            self._clouds[arguments] = made.address, made.pid
        return self._clouds[arguments]

    def _address(self, shape: LinkShape, arguments: tuple[str, ...]) -> str:
        cloud, _ = self._cloud(arguments)
        if is_plain(shape):
            return cloud
        key = shape.name, arguments
        if key not in self._links:
            made = self._stack.enter_context(spawned_link(shape, cloud))
            pin(made.pid, self._cores.link)
            self._links[key] = made.address
        return self._links[key]

    def close(self) -> None:
        """End them all."""
        self._stack.close()


def is_plain(shape: LinkShape) -> bool:
    """Whether there is nothing to shape."""
    return not (shape.delay_seconds or shape.jitter_seconds or shape.bits_per_second)


class Connector:
    """What edges call for a link; the runner lays one ready before each answer."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._target: tuple[LinkShape, tuple[str, ...]] | None = None
        self._ready: list[Link] = []

    def aim(self, shape: LinkShape, arguments: tuple[str, ...]) -> None:
        """Where the next answers' links lead; one is dialled now."""
        self.drop()
        self._target = shape, arguments
        self._ready.append(self._world.dial(shape, arguments))

    def __call__(self) -> Link:
        assert self._target is not None  # the runner aims before anybody answers
        return self._ready.pop() if self._ready else self._world.dial(*self._target)

    @property
    def link(self) -> str:
        """The name of the link that they lead over."""
        return "" if self._target is None else self._target[0].name

    def drop(self) -> None:
        """Close what nobody took."""
        while self._ready:
            self._ready.pop().close()
