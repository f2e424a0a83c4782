"""Three tiers in one process, of a tiny random model: device, edge servers, cloud."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

from collm.config import Generation
from collm.errors import Unreachable
from collm.limits import Limits
from collm.link.background import BackgroundServer
from collm.link.base import Closing, Link
from collm.link.dialer import Dialer
from collm.link.grpc_client import connect
from collm.link.memory import MemoryCloud
from collm.model.artifact import Artifact
from collm.runtime.stage import Stage
from collm.session.above import Above
from collm.session.cloud import CloudService
from collm.session.edge import Edge
from collm.session.events import Account
from collm.session.relay import RelayService
from collm.session.server_exits import server_exits

LIMITS = Limits(
    connect_seconds=3.0,
    verdict_seconds=5.0,
    linger_seconds=0.2,
    kv_step=16,
    detached_seconds=0.5,
    retry_seconds=0.1,
    work_seconds=0.3,
    resume_seconds=10.0,
    above_seconds=1.0,
)
PROMPT = [5, 17, 42, 99, 7, 250, 31]
LAYERS = range(1, 3)
"""Those of the edge servers, of four."""


class Host:
    """A service that can be reached until it is killed."""

    def __init__(self, service: CloudService, kind: str, workers: int) -> None:
        self.service = service
        self._place: MemoryCloud | BackgroundServer
        if kind == "memory":
            self._place = MemoryCloud(service, service.limits, workers=workers)
        else:
            self._place = BackgroundServer(service, "127.0.0.1:0", service.limits, workers)
        self.is_up = True
        self.links: list[Link] = []

    def connect(self) -> Link:
        if not self.is_up:
            raise Unreachable("killed")
        if isinstance(self._place, MemoryCloud):
            self.links.append(self._place.connect())
        else:
            self.links.append(connect(self._place.address, self.service.limits))
        return self.links[-1]

    def cut(self) -> None:
        """Break every link to it."""
        for link in self.links:
            link.close()
        self.links.clear()

    def kill(self) -> None:
        """Break every link, and answer no more."""
        self.is_up = False
        self.cut()

    def forget(self) -> None:
        """As if it had been started anew: no session is held."""
        self.service.sessions._entries.clear()

    def close(self) -> None:
        self.kill()
        if isinstance(self._place, MemoryCloud):
            self._place.close()
        else:
            self._place.close(grace=0)
        self.service.close()


class Tiers(Closing):
    """Addresses are names: `cloud`, `server0`, `server1`."""

    def __init__(
        self,
        artifact: Artifact,
        kind: str = "memory",
        *,
        servers: int = 1,
        layers: range = LAYERS,
        exits: Sequence[int] = (),
        criterion: str = "confidence:0.1",
        wire: str = "f32",
        limits: Limits = LIMITS,
        server_limits: Limits | None = None,
    ) -> None:
        self.artifact = artifact
        self.limits = limits
        self.hosts: dict[str, Host] = {}
        self._stack = ExitStack()
        depth = artifact.architecture.layers
        cloud = CloudService(Stage(artifact, range(depth), limits=limits), limits)
        self._add("cloud", Host(cloud, kind, 1))
        own = server_limits or limits
        asked = server_exits(artifact, layers, exits, criterion) if exits else None
        for number in range(servers):
            stage = Stage(artifact, layers, exits=exits, limits=own)
            above = Above(stage, own, self.dialer("cloud"), wire)
            self._add(f"server{number}", Host(RelayService(stage, own, above, asked), kind, 8))

    def _add(self, name: str, host: Host) -> None:
        self.hosts[name] = host
        self._stack.callback(host.close)

    def relay(self, number: int = 0) -> RelayService:
        service = self.hosts[f"server{number}"].service
        assert isinstance(service, RelayService)
        return service

    @property
    def cloud(self) -> Host:
        return self.hosts["cloud"]

    def dialer(self, *names: str) -> Dialer:
        return Dialer(names, dial=lambda name: self.hosts[name].connect())

    def edge(
        self, mode: str, placement: int, names: Sequence[str] = ("server0",), **options: object
    ) -> Edge:
        return Edge(self.artifact, mode=mode, placement=placement, limits=self.limits,
                    connect=self.dialer(*names), **options)  # type: ignore[arg-type]  # fmt: skip

    def close(self) -> None:
        """End them all."""
        self._stack.close()


def finish(edge: Edge, generation: Generation) -> Account:
    return edge.answer(PROMPT, replace(generation, mode=edge.mode)).finish()


def whole(artifact: Artifact, generation: Generation) -> list[int]:
    """What the whole model says, in one process."""
    edge = Edge(artifact, mode="verified", placement=artifact.architecture.layers, limits=LIMITS)
    return finish(edge, replace(generation, ahead=None)).token_ids


Build = Callable[..., Tiers]
