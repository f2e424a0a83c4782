"""Many answers at once from one device's share of the model: what the server, chat and API run on.

::

    engine = Engine(artifact, EngineSettings(placement=15), connect)
    reply = engine.start(prompt_ids, Generation())
    for piece in reply:          # or: async for piece in reply
        print(piece.text)

Every answer has a thread of its own, as most of its time it waits for the cloud. What is computed
here takes turns, in the order in which it was asked for, so that nobody starves. Each mode asked
for has an `Edge`; they share the blocks. Caches are kept for the next turn of a conversation.
An answer that nobody wants any more ends soon: in the queue at once, in a long prompt after the
part under way, in a wait for the cloud within a second or so.

Not covered: breaking off while a cloud is dialled (`limits.connect_seconds` at most).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from collm import metrics
from collm.config import MODES, Generation
from collm.errors import PlacementError, PromptError, Refused
from collm.limits import DEFAULT_LIMITS, Limits
from collm.link.base import Closing, Link
from collm.model.artifact import Artifact
from collm.runtime.stage import Stage
from collm.serve.cloud_health import CloudHealth, HealthWatch
from collm.serve.reply import Reply
from collm.session.edge import Edge, Shared
from collm.session.keeping import Keeper
from collm.session.placed import exits_in_use
from collm.session.turnstile import Turnstile

_ALONE = ("standalone",)
"""Modes that need no cloud."""
_MEASURED = ("auto", "verified")
"""Modes that can leave the wire format to measurements."""
_EXPIRE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How much of the model is here, and how much is done at once."""

    mode: str = "verified"
    """What a request gets that names none."""
    placement: int = 0
    """Layers on this device."""
    exits: tuple[int, ...] | None = None
    """Exits in use; None: all at or below the placement."""
    threads: int = 1
    wire: str = "f32"
    begin_offline: bool = True
    """Where no cloud answers at first, begin with the exits."""
    most_active: int = 64
    """Answers under way at once."""
    most_waiting: int = 64
    """Requests that wait for one of them to end."""
    most_kept: int = 16
    """Conversations whose caches are kept for their next turn."""
    kept_bytes: int = 512 * 2**20
    kept_seconds: float = 300.0


@dataclass(frozen=True, kw_only=True)
class EngineStatus:
    """What is going on."""

    active: int
    waiting: int
    kept: int
    kept_bytes: int
    answers: int
    """Ended so far."""
    tokens: int
    """Of them."""
    uptime_seconds: float
    cloud: CloudHealth | None
    """None where no cloud was named."""


class Engine(Closing):
    """See the module. Safe to use from several threads.

    connect: makes a link to the cloud, None where there is none. Raises PlacementError,
    ArtifactError and PromptError for settings that the artifact cannot have.
    """

    def __init__(
        self,
        artifact: Artifact,
        settings: EngineSettings,
        connect: Callable[[], Link] | None = None,
        *,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.artifact = artifact
        self.settings = settings
        self._connect = connect
        self._limits = limits
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._replies: set[Reply] = set()
        self._waiting = self._answers = self._tokens = 0
        self._is_closed = threading.Event()
        self._turn = Turnstile()
        self._keeper = Keeper(
            most=settings.most_kept,
            most_bytes=settings.kept_bytes,
            most_seconds=settings.kept_seconds,
        )
        self._edges: dict[str, Edge] = {}
        self.modes = self._usable_modes()
        edge = self._edge(settings.mode)
        self.tokenizer = edge.tokenizer
        self.exits = edge.exits
        self.health = None if connect is None else HealthWatch(connect, limits)
        self._pool = ThreadPoolExecutor(settings.most_active, "collm-answer")
        self._sweeper = threading.Thread(target=self._sweep, name="collm-sweeper", daemon=True)
        self._sweeper.start()

    def start(self, prompt_ids: Sequence[int], generation: Generation, owner: str = "") -> Reply:
        """Begin an answer. Raises Refused (busy) where too many wait, and what an edge's does.

        owner: whose it is; what is kept of it serves only their next turn.
        """
        self._check_room()
        answer = self._edge(generation.mode).answer(prompt_ids, generation, owner=owner)
        reply = Reply(answer, self._ended)
        with self._lock:
            self._refuse_beyond()
            try:
                future = self._pool.submit(self._run, reply)
            except RuntimeError:  # closed just now
                raise self._shutting_down() from None
            self._replies.add(reply)
            self._waiting += 1
        reply.on_cancel = partial(self._withdraw, reply, future)
        return reply

    def _withdraw(self, reply: Reply, future: Future[None]) -> None:
        """Give up the place in the queue of an answer that has not begun."""
        if future.cancel():
            with self._lock:
                if reply in self._replies:
                    self._replies.discard(reply)
                    self._waiting -= 1

    def _check_room(self) -> None:
        """Before work is done for it."""
        with self._lock:
            self._refuse_beyond()

    def _refuse_beyond(self) -> None:
        settings = self.settings
        if self._is_closed.is_set():
            raise self._shutting_down()
        if len(self._replies) >= settings.most_active + settings.most_waiting:
            raise Refused(
                "busy",
                f"{settings.most_active} answers are under way and {settings.most_waiting} "
                "requests wait; try again",
                self._limits.retry_seconds,
            )

    def _shutting_down(self) -> Refused:
        return Refused("busy", "this server is shutting down", self._limits.retry_seconds)

    def status(self) -> EngineStatus:
        """What is going on; never waits for the cloud."""
        with self._lock:
            active = len(self._replies) - self._waiting
            waiting, answers, tokens = self._waiting, self._answers, self._tokens
        return EngineStatus(
            active=active,
            waiting=waiting,
            kept=len(self._keeper),
            kept_bytes=self._keeper.bytes,
            answers=answers,
            tokens=tokens,
            uptime_seconds=time.monotonic() - self._started,
            cloud=self.health.latest if self.health is not None else None,
        )

    def close(self) -> None:
        """Break off what is under way, and give everything back. Idempotent."""
        self._is_closed.set()
        with self._lock:
            replies = list(self._replies)
        for reply in replies:
            reply.cancel()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._sweeper.join()
        if self.health is not None:
            self.health.close()
        self._keeper.close()
        for edge in self._edges.values():
            edge.close()

    def _run(self, reply: Reply) -> None:
        with self._lock:
            self._waiting -= 1
        metrics.ACTIVE.inc()
        try:
            reply.run()
        finally:
            metrics.ACTIVE.dec()

    def _ended(self, reply: Reply) -> None:
        with self._lock:
            self._replies.discard(reply)
            self._answers += 1
            self._tokens += len(reply.account.tokens)

    def _sweep(self) -> None:
        while not self._is_closed.wait(_EXPIRE_SECONDS):
            self._keeper.expire()

    def _usable_modes(self) -> tuple[str, ...]:
        """Those that this placement and these exits allow."""
        settings, manifest = self.settings, self.artifact.manifest
        is_whole = settings.placement == self.artifact.architecture.layers
        usable = []
        for mode in MODES:
            needs_cloud = mode not in _ALONE and not (is_whole and mode in ("verified", "auto"))
            if needs_cloud and self._connect is None:
                continue
            if is_whole and mode in ("threshold", "refine"):
                continue
            try:
                exits_in_use(manifest, mode, settings.placement, settings.exits)
            except (PlacementError, PromptError):
                continue
            usable.append(mode)
        return tuple(usable)

    def _edge(self, mode: str) -> Edge:
        """The edge of a mode, which is loaded where it was not asked for before."""
        if mode not in self.modes:
            if mode not in MODES:
                raise PromptError(f"mode {mode!r}: expected one of {', '.join(self.modes)}")
            why = "there is no cloud" if self._connect is None else "its exits or layers do not fit"
            raise PromptError(
                f"mode {mode} is not to be had here, as {why}; expected one of "
                f"{', '.join(self.modes) or 'none'}"
            )
        with self._loading:
            edge = self._edges.get(mode)
            if edge is None:
                edge = self._edges[mode] = self._load(mode)
            return edge

    def _load(self, mode: str) -> Edge:
        settings = self.settings
        stages = [edge.stage for edge in self._edges.values() if type(edge.stage) is Stage]
        return Edge(
            self.artifact,
            mode=mode,
            placement=settings.placement,
            exits=settings.exits,
            threads=settings.threads,
            connect=self._connect,
            wire=settings.wire
            if settings.wire != "auto" or mode in ("auto", "verified")
            else "f32",
            begin_offline=settings.begin_offline,
            limits=self._limits,
            probe=True,
            shared=Shared(
                stage=stages[0] if stages else None, keeper=self._keeper, turn=self._turn
            ),
        )
