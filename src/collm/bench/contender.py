"""What takes part in `collm bench table`: an entry with a name, and something that answers."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from collm.bench.quality_settings import Setting
from collm.link.base import Link
from collm.model.artifact import Artifact
from collm.session.edge import Edge

BASELINE, STRAW_MAN, OURS, CEILING = "baseline", "straw man", "ours", "ceiling"


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What all contenders of a run are given."""

    artifact: Artifact
    placement: int
    """Layers on the edge."""
    threads: int
    connect: Callable[[], Link]
    """Makes a link to the cloud of the moment, shaped as the link of the moment."""
    seed: int = 0
    edges: dict[tuple[object, ...], Edge] = field(default_factory=dict)
    """Loaded so far: contenders that differ in their criterion only share one."""


@dataclass(kw_only=True)
class Reply:
    """One answer as it came."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    arrivals: list[float] = field(default_factory=list)
    """When the user saw each token, in seconds since the question."""
    edge_seconds: float = 0.0
    cloud_seconds: float = 0.0
    cloud_rows: int = 0
    cloud_heads: int = 0
    requests: int = 0
    bytes_up: int = 0
    bytes_down: int = 0


class Answerer(Protocol):
    """A contender at work."""

    placement: int
    cloud_first_layer: int

    def answer(self, prompt_ids: Sequence[int], tokens: int, own: Sequence[int]) -> Reply:
        """So many tokens, greedily. own: the full model's answer, for ceilings only."""
        ...


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A row of the table."""

    name: str
    kind: str
    """BASELINE, STRAW_MAN, OURS or CEILING."""
    note: str
    """One line: what it is."""
    mode: str
    """What `--modes` knows it by."""
    start: Callable[[Surroundings], Answerer]
    """Loads what it needs. Raises UsageError where the artifact does not have it."""
    cloud_arguments: Callable[[Surroundings], tuple[str, ...]] = lambda _: ()
    """More of `collm cloud`'s; each set of them has a cloud process of its own."""
    is_short: bool = False
    """Too slow for whole answers: gives `--naive-tokens` only."""

    @property
    def key(self) -> str:
        """What `--contenders` knows it by."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower()).strip("-")


class SettingAnswerer:
    """Answers as `collm run` does with this setting."""

    def __init__(self, around: Surroundings, setting: Setting) -> None:
        self._setting = setting
        self.seed = around.seed
        edge = around.edges.get(setting.edge_key)
        if edge is None:
            edge = Edge(
                around.artifact,
                mode=setting.mode,
                placement=setting.placement,
                exits=setting.exits,
                threads=around.threads,
                connect=around.connect,
                wire=setting.wire,
                first_cut=setting.first_cut,
            )
            around.edges[setting.edge_key] = edge
        edge.criterion(setting.generation(1))  # one that is wrong: say so now
        self._edge = edge
        self.placement = setting.placement
        self.cloud_first_layer = setting.placement
        if setting.mode == "threshold":
            self.cloud_first_layer = edge.first_cut

    def answer(self, prompt_ids: Sequence[int], tokens: int, own: Sequence[int]) -> Reply:
        """Time stamps of the pieces as a user gets them; never ends early."""
        generation = replace(self._setting.generation(tokens), ignore_eos=True)
        reply = Reply()
        more = self.extras(own)
        started = time.perf_counter()
        answer = self._edge.answer(prompt_ids, generation, **more)
        for _ in answer:
            if len(answer.account.tokens) > len(reply.arrivals):  # not the rest of a character
                reply.arrivals.append(time.perf_counter() - started)
        account = answer.account
        reply.token_ids, reply.text = account.token_ids, account.text
        reply.edge_seconds, reply.cloud_seconds = account.edge_seconds, account.cloud_seconds
        reply.cloud_rows, reply.cloud_heads = account.cloud_rows, account.cloud_heads
        reply.requests = account.rounds
        reply.bytes_up, reply.bytes_down = account.bytes_up, account.bytes_down
        return reply

    def extras(self, own: Sequence[int]) -> dict[str, Any]:
        """More arguments of `Edge.answer`; ceilings look at the full model's answer."""
        return {}


def answering(
    make: Callable[[Surroundings], Setting],
) -> Callable[[Surroundings], SettingAnswerer]:
    """A `Contender.start` for a setting that depends on artifact and placement alone."""
    return lambda around: SettingAnswerer(around, make(around))
