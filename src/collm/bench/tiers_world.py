"""The processes of `collm bench tiers`: a cloud, edge servers, and the shaped links between them.

::

    device ─ link ─ link ─────────────── cloud      two tiers: both links, one after the other
    device ─ link ─ edge server ─ link ─ cloud      three tiers
"""

from __future__ import annotations

import os
import signal
import socket
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from collm.bench.cores import settled_cpu_seconds
from collm.limits import DEFAULT_LIMITS
from collm.link.shapes import LinkShape
from collm.serve.spawn import Spawned, spawned_cloud, spawned_link

TWO, THREE = "two tiers", "three tiers"


@dataclass(frozen=True, kw_only=True)
class Used:
    """What a process has used so far."""

    cpu_seconds: float
    positions: float
    """Received from below."""
    bytes_up: float
    bytes_down: float

    def since(self, before: Used) -> Used:
        """The difference."""
        return Used(
            cpu_seconds=self.cpu_seconds - before.cpu_seconds,
            positions=self.positions - before.positions,
            bytes_up=self.bytes_up - before.bytes_up,
            bytes_down=self.bytes_down - before.bytes_down,
        )


class Tier:
    """A cloud process, or an edge server's, whose metrics can be read."""

    def __init__(self, stack: ExitStack, folder: Path, threads: int, words: Sequence[str]) -> None:
        self._metrics = f"127.0.0.1:{_free_port()}"
        arguments = [*words, "--metrics", self._metrics]
        made = spawned_cloud(folder, threads=threads, limits=DEFAULT_LIMITS, arguments=arguments)
        self._process: Spawned = stack.enter_context(made)

    @property
    def address(self) -> str:
        """Where it listens."""
        return self._process.address

    def used(self) -> Used:
        """CPU time once it rests, and its own counters."""
        seconds = settled_cpu_seconds(self._process.pid)
        with urllib.request.urlopen(f"http://{self._metrics}/metrics", timeout=5) as reply:
            lines = reply.read().decode().splitlines()
        return Used(
            cpu_seconds=seconds,
            positions=_sum(lines, "collm_positions_total"),
            bytes_up=_sum(lines, "collm_received_bytes_total"),
            bytes_down=_sum(lines, "collm_sent_bytes_total"),
        )

    def kill(self) -> None:
        """As a machine that loses its power."""
        os.kill(self._process.pid, signal.SIGKILL)


class TiersWorld:
    """Everything that answers are made with, started; ends with the `with` block.

    near: the link of device and edge server. far: that of edge server and cloud. server: more
    words for the edge servers' `collm cloud`.
    """

    def __init__(
        self, folder: Path, *, near: LinkShape, far: LinkShape, server: Sequence[str], threads: int
    ) -> None:
        self._folder = folder
        self._near, self._far = near, far
        self._words = server
        self._threads = threads
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self.cloud = Tier(self._stack, self._folder, self._threads, ())
            both = self._link(self._far, self.cloud.address)
            self.server, address = self.serve()
            self.addresses = {TWO: self._link(self._near, both), THREE: address}
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def serve(self) -> tuple[Tier, str]:
        """One more edge server; where a device reaches it over the near link."""
        above = self._link(self._far, self.cloud.address)
        words = [*self._words, "--upstream", above]
        server = Tier(self._stack, self._folder, self._threads, words)
        return server, self._link(self._near, server.address)

    def _link(self, shape: LinkShape, to: str) -> str:
        return self._stack.enter_context(spawned_link(shape, to)).address


def _sum(lines: Sequence[str], name: str) -> float:
    """Over the labels of a counter."""
    return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split()[0] == name)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
