"""Sessions of real edges, recorded once and replayed by many clients at a time.

One machine cannot run the edges of many users. It can replay what they did: a recording holds
every frame that an edge sent, the time its device took before each, the replies it waited for, and
when its user saw tokens. A client that replays it takes that time, sends those frames, and waits
for real replies of a real cloud, so each client is as fast as if it had a device of its own.

The cloud's replies depend on nothing but the frames (the two-row rule), so those of a replay have
to be the recorded ones, bit for bit, apart from clocks and the session's name. Others are an error.

Not covered: deadlines, which make what an edge sends depend on when replies come.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from collm.bench.quality_settings import Setting
from collm.errors import CollmError, LinkTimeout, PromptError, ProtocolError
from collm.limits import DEFAULT_LIMITS, Limits
from collm.link.base import Closing, Link
from collm.model.artifact import Artifact
from collm.session.edge import Edge
from collm.wire.decoding import decode_cloud
from collm.wire.messages import CloudMessage, Scored, Token, Verdict, Welcome

SEND, RECEIVE, SHOW = "send", "receive", "show"
_WARM_UP_TOKENS = 8
_POLL_SECONDS = 0.25
"""A client that waits for a reply looks this often whether it is to stop."""
_TOGETHER = ("verified", "refine")
"""Modes in which a reply of the cloud lets several tokens out at once."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that an edge did."""

    kind: str
    """SEND, RECEIVE or SHOW."""
    after: float
    """Seconds that the device took since the step before; what waiting took is not in here."""
    frame: bytes = b""
    tokens: int = 0
    """SHOW: how many the user saw at once."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One answer."""

    steps: tuple[Step, ...]
    token_ids: tuple[int, ...]
    seconds: float
    """How long it took."""


class RecordingLink(Closing):
    """A link that writes down what goes over it. See `base.Link`; for one thread."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._since = time.perf_counter()
        self.steps: list[Step] = []

    def send(self, frame: bytes) -> None:
        after = time.perf_counter() - self._since
        self._link.send(frame)
        self._add(Step(SEND, after, frame))

    def receive(self, timeout: float) -> bytes:
        after = time.perf_counter() - self._since
        frame = self._link.receive(timeout)
        self._add(Step(RECEIVE, after, frame))
        return frame

    def show(self, *, with_the_last: bool) -> None:
        """The user sees a token, perhaps together with those before it."""
        if with_the_last:
            index = max(i for i, step in enumerate(self.steps) if step.kind == SHOW)
            before = self.steps[index]
            self.steps[index] = replace(before, tokens=before.tokens + 1)
        else:
            self._add(Step(SHOW, time.perf_counter() - self._since, tokens=1))

    def close(self) -> None:
        self._link.close()

    @property
    def bytes_up(self) -> int:
        return self._link.bytes_up

    @property
    def bytes_down(self) -> int:
        return self._link.bytes_down

    def _add(self, step: Step) -> None:
        self.steps.append(step)
        self._since = time.perf_counter()


def record(
    artifact: Artifact,
    setting: Setting,
    prompts: Sequence[Sequence[int]],
    connect: Callable[[], Link],
    *,
    tokens: int,
    own: Sequence[Sequence[int]] = (),
    limits: Limits = DEFAULT_LIMITS,
) -> list[Recording]:
    """Answer every prompt with a real edge; `own`: the full model's answers, for an oracle.

    Raises PromptError for settings that use no cloud or have a deadline, and what `Edge` raises.
    """
    is_alone = setting.mode == "standalone" or setting.placement == artifact.architecture.layers
    if is_alone or setting.deadline:
        raise PromptError(
            f"{setting.label!r} cannot be replayed: expected a setting that asks the cloud and "
            "has no deadline"
        )
    links: list[RecordingLink] = []

    def dial() -> Link:
        links.append(RecordingLink(connect()))
        return links[-1]

    edge = Edge(
        artifact,
        mode=setting.mode,
        placement=setting.placement,
        exits=setting.exits,
        connect=dial,
        wire=setting.wire,
        first_cut=setting.first_cut,
        limits=limits,
    )
    made = []
    for number, prompt in enumerate(prompts):
        oracle = setting.oracle(own[number] if own else ())
        for most in (_WARM_UP_TOKENS, tokens) if number == 0 else (tokens,):
            links.clear()
            started = time.perf_counter()
            generation = replace(setting.generation(most), ignore_eos=True)
            answer = edge.answer(prompt, generation, oracle)
            account, shown_rounds, shown = answer.account, -1, 0
            for _ in answer:
                if len(account.tokens) > shown:  # not the rest of a character
                    together = setting.mode in _TOGETHER and account.rounds == shown_rounds
                    links[0].show(with_the_last=together)
                    shown_rounds, shown = account.rounds, len(account.tokens)
        made.append(
            Recording(
                steps=tuple(links[0].steps),
                token_ids=tuple(account.token_ids),
                seconds=time.perf_counter() - started,
            )
        )
    return made


@dataclass(frozen=True, slots=True)
class Shown:
    """Tokens that a user saw at once."""

    at: float
    """By `time.perf_counter`."""
    waited: float
    """Seconds since the tokens before, or since the question."""
    tokens: int
    is_first: bool
    """Whether the answer began with them."""


class Client(threading.Thread):
    """A user who asks again and again: replays the recordings in turn until told to stop."""

    def __init__(
        self,
        recordings: Sequence[Recording],
        connect: Callable[[], Link],
        *,
        number: int,
        delay: float,
        stop: threading.Event,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        super().__init__(name=f"collm-replay-{number}", daemon=True)
        self._recordings = recordings
        self._connect = connect
        self._number = number
        self._delay = delay
        self._stop_asked = stop
        self._limits = limits
        self._waits_since = 0.0
        self.shown: list[Shown] = []
        """Grows while the client runs."""
        self.error: BaseException | None = None
        """What ended it."""

    @property
    def waits_since(self) -> float:
        """When the user saw the last tokens of the answer under way, or asked for it."""
        return self._waits_since

    def run(self) -> None:
        """Begin with another recording than the client before, after the delay."""
        turn = self._number
        try:
            if self._is_stopped_before(time.perf_counter() + self._delay):
                return
            while not self._stop_asked.is_set():
                self._play(turn % len(self._recordings))
                turn += 1
        except BaseException as error:  # noqa: BLE001 - whoever waits for the thread raises it
            self.error = error
            self._stop_asked.set()

    def _play(self, index: int) -> None:
        self._waits_since = due = time.perf_counter()
        is_first, replies = True, 0
        with self._connect() as link:
            # From the connection on, as recorded; the device's time adds up to what it was then,
            # however late a sleep ends.
            due = time.perf_counter()
            for step in self._recordings[index].steps:
                due += step.after
                if step.kind == RECEIVE:
                    reply = self._receive(link)
                    if reply is None:
                        return
                    due = max(due, time.perf_counter())
                    replies += 1
                    self._check(reply, step.frame, f"recording {index}, reply {replies}")
                    continue
                if self._is_stopped_before(due):
                    return
                if step.kind == SEND:
                    link.send(step.frame)
                else:
                    now = time.perf_counter()
                    waited = now - self._waits_since
                    self.shown.append(Shown(now, waited, step.tokens, is_first))
                    self._waits_since, is_first = now, False

    def _receive(self, link: Link) -> bytes | None:
        """The next reply; None when the client is to stop."""
        given_up_at = time.monotonic() + self._limits.verdict_seconds
        while not self._stop_asked.is_set():
            try:
                return link.receive(_POLL_SECONDS)
            except LinkTimeout:
                if time.monotonic() > given_up_at:
                    raise
        return None

    def _check(self, reply: bytes, recorded: bytes, where: str) -> None:
        if not same_reply(reply, recorded, self._limits):
            got, wanted = (_told(frame, self._limits) for frame in (reply, recorded))
            raise ProtocolError(
                f"client {self._number}, {where}: the cloud said {got} where it had said {wanted} "
                "when recorded; its answers are not deterministic here, so nothing was measured"
            )

    def _is_stopped_before(self, due: float) -> bool:
        """Wait until `due`; true when the client is to stop."""
        left = due - time.perf_counter()
        return self._stop_asked.wait(left) if left > 0 else self._stop_asked.is_set()


def same_reply(one: bytes, other: bytes, limits: Limits = DEFAULT_LIMITS) -> bool:
    """Whether two frames of a cloud say the same, apart from its clock and the session's name."""
    return one == other or _timeless(one, limits) == _timeless(other, limits)


def _timeless(frame: bytes, limits: Limits) -> CloudMessage:
    message = decode_cloud(frame, limits)
    if isinstance(message, Welcome):
        return replace(message, session_id="")
    if isinstance(message, Verdict | Scored | Token):
        return replace(message, cloud_seconds=0.0)
    return message


def _told(frame: bytes, limits: Limits) -> str:
    try:
        return str(_timeless(frame, limits))[:160]
    except CollmError as error:
        return str(error)
