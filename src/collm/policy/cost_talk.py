"""Answers in which edge and cloud talk, played with measured times: see `cost_model`.

The loops follow `collm.session.threshold` and `collm.session.verified` step by step; what they are
called there they are called here.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from collm.policy.edge_clock import Layers
from collm.policy.profiles import LinkProfile, RowCost

PIECE: Final = 32
"""As in `session.verified`: rows of a prompt that go up at a time; also of a cloud's turn."""
_MOST_ASKED: Final = 4
_PAIR: Final = 2


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way of answering."""

    mode: str
    """`cloud`, `verified`, `threshold` or `standalone`."""
    placement: int = 0
    """Layers on the edge; all of them in mode verified: no cloud is asked."""
    exits: tuple[int, ...] = ()
    wire: str = "ids"
    threshold: float = 0.6
    draft: int = 8
    ahead: float | None = None
    threads: int = 1
    draft_path: str = ""
    """In mode verified with none of the layers: what drafts; token ids go up."""


@dataclass(frozen=True, kw_only=True)
class FrameBytes:
    """Bytes of frames, as `collm.wire` makes them, and what a link adds to each."""

    append: int = 40
    """Without its ids and rows."""
    ask: int = 20
    verdict: int = 50
    token: int = 45
    session: int = 400
    """Hello, Welcome, Generate and Bye together."""
    per_id: int = 4
    overhead: int = 14
    """HTTP/2 and gRPC; counted as time on the link, not among the bytes."""
    rows: Mapping[str, int] = field(default_factory=lambda: {"ids": 0})
    """Of a row in each wire format."""


@dataclass(slots=True)
class Told:
    """What one text cost."""

    seconds: float = 0.0
    first: float = 0.0
    up: int = 0
    down: int = 0
    cloud: float = 0.0
    edge: float = 0.0
    rounds: int = 0
    right: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Says:
    """What the exits in use say at every row of a text, under a threshold."""

    asked: list[int]
    """Exits asked at a row."""
    taken: list[bool]
    right: list[bool]
    """Of the exit asked last."""
    sure: list[float]
    """Its confidence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """One text, one candidate, and what both sides take for it."""

    how: Candidate
    edge: Layers
    says: Says
    prompt: int
    """Positions before the answer."""
    tokens: int
    link: LinkProfile
    frames: FrameBytes
    rows: list[float]
    """Seconds of the cloud for 0, 1, 2, … rows from `first_cut` on, without the head."""
    head: RowCost
    step_seconds: float


def first_cut(how: Candidate) -> int:
    """Where the cloud begins."""
    if how.mode == "cloud" or how.wire == "ids":
        return 0
    return how.exits[0] if how.mode == "threshold" else how.placement


def way(link: LinkProfile, size: int, bits: float) -> float:
    """Seconds of a frame's way one way, on a free link."""
    return link.round_trip / 2 + (8 * size / bits if bits else 0.0)


class _Talk:
    """An edge, its link up, and its cloud, in the midst of an answer."""

    def __init__(self, scene: Scene) -> None:
        self.how, self.edge, self.clock, self.says = (
            scene.how, scene.edge, scene.edge.clock, scene.says,
        )  # fmt: skip
        self.prompt, self.tokens, self.step = scene.prompt, scene.tokens, scene.step_seconds
        self.link, self.frames = scene.link, scene.frames
        self.rows, self.head = scene.rows, scene.head
        self.cut = first_cut(scene.how)
        self.row_bytes = scene.frames.rows[scene.how.wire] + scene.frames.per_id
        self.told = Told(tokens=scene.tokens)
        self.held = 0
        """Bytes of ids that go up with the next question."""
        self.sent = self.run = 0
        """Positions that went up; positions that the cloud has run."""
        self.up_free = self.cloud_free = 0.0
        """When the link up, and the cloud, have done all that they were given."""
        self.told.up = self.told.down = scene.frames.session // 2
        self.clock.wait_for(self.link.connect + self.link.round_trip)

    def send(self, size: int) -> float:
        """A frame goes up in the background; when it is in the cloud."""
        self.told.up += size
        self.clock.spend(self.link.trip_cpu / 2)
        bits = self.link.up_bits
        takes = 8 * (size + self.frames.overhead) / bits if bits else 0.0
        self.up_free = max(self.up_free, self.clock.now) + takes
        return self.up_free + self.link.round_trip / 2

    def append(self, end: int, *, settled: bool = False) -> float:
        """Rows up to position `end`, made where they have not been; when they are in the cloud.

        Ids that may still be taken back go with the question.
        """
        if end <= self.sent:
            return 0.0
        if self.cut:
            self.edge.run(self.cut, end)
        rows, self.sent = end - self.sent, end
        if not (self.cut or settled):
            self.held += rows * self.row_bytes
            return 0.0
        return self.send(self.frames.append + rows * self.row_bytes)

    def ask(self) -> float:
        """A question goes up; when it is in the cloud."""
        held, self.held = self.held, 0
        return self.send(self.frames.ask + held)

    def judge(self, arrival: float, heads: int) -> float:
        """The cloud runs what it was sent and says its word; when that is here."""
        seconds = self.rows[self.sent - self.run] + self.head.at(max(2, heads))
        self.run = self.sent
        self.told.cloud += seconds
        self.told.rounds += 1
        self.told.down += self.frames.verdict
        self.cloud_free = max(self.cloud_free, arrival) + seconds
        size = self.frames.verdict + self.frames.overhead
        beside = self.link.round_seconds
        return self.cloud_free + way(self.link, size, self.link.down_bits) + beside

    def done(self) -> Told:
        """The account."""
        self.told.seconds, self.told.edge = self.clock.now, self.clock.busy
        return self.told


class Threshold(_Talk):
    """`session.threshold`, without a deadline."""

    def play(self) -> Told:
        """To the end of the text."""
        exits, says = self.how.exits, self.says
        for i in range(self.tokens):
            n = self.prompt + i
            for cut in exits[: says.asked[i]]:
                if cut >= self.cut:
                    self.append(n)
                self.edge.ask(cut, n)
            if not says.taken[i]:
                self.append(n)
                arrival = self.ask()
                self.clock.wait_for(self.judge(arrival, 1))
            self.clock.compute(self.step)
            if not i:
                self.told.first = self.clock.now
        return self.done()


class Verified(_Talk):
    """`session.verified`: draft, verify, crop, go on. Rows and answers count from the prompt's end.

    written: tokens of the text, drafts included; wrong: the first of them that is not the full
    model's.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.written = self.settled = self.asked = 0
        self.stuck_at = -1
        self.wrong: int | None = None
        self.questions: deque[tuple[int, int, float]] = deque()
        """First drafted position, the end of the draft, when the verdict is here."""

    def play(self) -> Told:
        """To the end of the text."""
        for end in range(PIECE, self.prompt + PIECE, PIECE):
            arrival = self.append(min(end, self.prompt), settled=end < self.prompt)
            if end < self.prompt:  # settled: the cloud runs it at once
                seconds = self.rows[self.sent - self.run]
                self.cloud_free = max(self.cloud_free, arrival) + seconds
                self.told.cloud += seconds
                self.run = self.sent
        if self.how.ahead is not None:
            self._ask()
        if self.how.exits:
            self.edge.run(self.how.exits[0], self.prompt)
        while self.settled < self.tokens:
            if not self._is_stuck:
                self._extend()
            if self._is_stuck:
                self.clock.wait_for(self.questions[0][2])
            if self.questions and self.questions[0][2] <= self.clock.now:
                self._settle()
        return self.done()

    @property
    def _is_stuck(self) -> bool:
        return self.stuck_at == self.written or len(self.questions) >= _MOST_ASKED

    def _extend(self) -> None:
        how, says, at = self.how, self.says, self.written
        is_long = at - self.asked >= how.draft
        if is_long and how.ahead is not None:
            self._ask()
            return
        guessed = not is_long and bool(how.exits) and at < self.tokens - 1
        if guessed:
            for cut in how.exits[: says.asked[at]]:
                self.edge.ask(cut, self.prompt + at)
            self.clock.compute(self.step)
            if says.taken[at]:
                if how.exits[says.asked[at] - 1] == self.cut:
                    self.append(self.prompt + at)
                self._write()
                asks = not self.questions and self.written - self.asked >= _PAIR
                if how.ahead is not None and asks:
                    self._ask()
                return
        if not self.questions or at > self.asked:
            self._ask()
        if guessed and how.ahead is not None and says.sure[at] >= how.ahead:
            self._write()
        else:
            self.stuck_at = at

    def _write(self) -> None:
        if self.wrong is None and not self.says.right[self.written]:
            self.wrong = self.written
        self.written += 1

    def _ask(self) -> None:
        """Everything written; a draft after a wrong one is never run."""
        first, end, self.asked = self.asked, self.written, self.written
        self.append(self.prompt + end)
        arrival = self.ask()
        void = bool(self.questions) and self.wrong is not None and self.wrong <= first
        here = math.inf if void else self.judge(arrival, end - first + 1)
        self.questions.append((first, end, here))

    def _settle(self) -> None:
        _, end, _ = self.questions.popleft()
        stands = end if self.wrong is None else min(end, self.wrong)
        goes_on = self.written > end and (self.wrong is None or self.wrong > end)
        if not goes_on:
            self.written, self.wrong = stands + 1, None
            position = self.prompt + stands
            self.edge.crop(position)
            self.sent, self.run = min(self.sent, position), min(self.run, position)
            self.asked, self.stuck_at = min(self.asked, stands), -1
            self.questions.clear()
        self.asked = max(self.asked, stands + 1)
        if not self.settled:
            self.told.first = self.clock.now
        self.settled = stands + 1
