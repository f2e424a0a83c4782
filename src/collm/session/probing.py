"""What a link and the cloud behind it are like, measured with heartbeats.

Round trips of small frames; rates from padded frames that grow until one takes long enough to be
timed, never longer than a budget; and what the cloud says of itself. An older cloud answers with
the bare nonce: then the rate down and the cloud's own figures stay unknown.

`probe` measures once, `Prober` goes on in the background of an edge that runs, for about a
hundredth of the link. `look` asks only who is there, and above. Heartbeats need no session, but
pass the same guard as sessions do.

Not covered: links whose rate changes within a second; losses (seen as jitter).
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from collm.config import Sampling
from collm.errors import LinkError, LinkTimeout, ProtocolError, Refused
from collm.limits import DEFAULT_LIMITS, Limits
from collm.link.base import Closing, Link
from collm.link.dialer import Dialer
from collm.policy.profiles import CloudProfile, LinkProfile, RowCost
from collm.session.client import CloudClient
from collm.wire.encoding import decode_cloud, encode
from collm.wire.messages import Figures, Heartbeat, Pong, Refusal
from collm.wire.tiers import Tier, met

_BUDGET_SECONDS = 2.0
_LONG_SECONDS = 0.12
"""A padded frame that takes so much longer than a bare one is timed well enough."""
_FIRST_PADDING = 2048
_PATIENCE_SECONDS = 1.5
"""For a cloud that is measuring; an edge server has nothing to tell."""
_GROWTH = 4
_GENERATED = 24
_ASKED = 6
_TIERS = Heartbeat(nonce=0, wants_tiers=True)


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What was found out, and when, by `time.monotonic`."""

    link: LinkProfile
    cloud: CloudProfile
    at: float
    is_new: bool = True
    """Whether the rate up was measured this time, and is not an older one."""
    unknown: tuple[str, ...] = ()
    """What an older cloud did not tell."""


def probe(
    connect: Callable[[], Link],
    *,
    count: int = 8,
    budget: float = _BUDGET_SECONDS,
    tokens: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> Probed:
    """Measure over a link of its own, for about `budget` seconds at most.

    count: round trips. tokens: also let the cloud write a few tokens, in a session of its own.
    Raises LinkError and ProtocolError as links and clients do.
    """
    started = time.perf_counter()
    with connect() as link:
        connected = time.perf_counter() - started
        beats = _Heartbeats(link, limits)
        found = beats.measure(count, budget)
        found = replace(found, link=replace(found.link, connect=connected))
        if not (tokens and found.cloud.fingerprint):
            return found
        try:
            seconds, beside = session_seconds(connect, found, limits)
        except Refused:
            return found  # busy, or not for everybody: its own figures have to do
        # What it wrote has told it how fast it is at the moment.
        cloud = replace(cloud_profile(beats.figures()), token_seconds=seconds)
    return replace(found, cloud=cloud, link=replace(found.link, round_seconds=beside))


def look(connect: Callable[[], Link], limits: Limits, *, count: int = 3) -> tuple[Tier, ...]:
    """Who is there, and above it as that one saw it last; the median of so many round trips.

    A cloud of before 1.6 tells of itself alone. Raises as `probe` does, for the nearest only.
    """
    address, link = connect.dial(None) if isinstance(connect, Dialer) else ("", connect())
    with link:
        beats = _Heartbeats(link, limits)
        _, pong = beats.ask(_TIERS)  # the first one of a link waits for more than the others
        trip = statistics.median(beats.ask(_TIERS)[0] for _ in range(count))
        tiers = pong.tiers
        if not tiers:
            figures = beats.ask(Heartbeat(nonce=0, wants_figures=True))[1].figures
            tiers = (
                Tier()
                if figures is None
                else Tier(last=figures.model_layers, sessions=figures.sessions),
            )
    return met(tiers, address, trip)


def session_seconds(
    connect: Callable[[], Link], found: Probed, limits: Limits = DEFAULT_LIMITS
) -> tuple[float, float]:
    """From token to token where the cloud answers alone; what a question takes beside trip and
    computing. Raises as `probe` does."""
    client = CloudClient(
        connect(),
        fingerprint=found.cloud.fingerprint,
        cut=0,
        vocabulary=limits.max_token_id,
        limits=limits,
    )
    with client:
        client.append([1] * 8, None)
        came: list[float] = []
        for _ in client.generate(_GENERATED, (), Sampling()):
            came.append(time.perf_counter())  # noqa: PERF401 - it is when it comes
        beside: list[float] = []
        for _ in range(_ASKED):
            client.append([1], None)
            started = time.perf_counter()
            verdict = client.verify((), Sampling())
            took = time.perf_counter() - started
            beside.append(took - verdict.cloud_seconds - found.link.round_trip)
    each = (came[-1] - came[0]) / (len(came) - 1) if len(came) > 1 else 0.0
    return each, max(0.0, statistics.median(beside[1:]))


class Prober(Closing):
    """Probes every `every` seconds in the background; `latest` never waits.

    It takes at most `share` of the measured rate. While nobody answers `latest` stays what it was.
    """

    def __init__(
        self,
        connect: Callable[[], Link],
        *,
        every: float = 5.0,
        share: float = 0.01,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._connect = connect
        self._every = every
        self._share = share
        self._limits = limits
        self._latest: Probed | None = None
        self.felt_bits = 0.0
        """The rate that an edge's own traffic has felt; 0: none yet."""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="collm-prober", daemon=True)
        self._thread.start()

    @property
    def latest(self) -> Probed | None:
        """The last result; None before the first."""
        return self._latest

    def close(self) -> None:
        """End; waits for a probe under way as long as one may take. Idempotent."""
        self._done.set()
        self._thread.join(self._limits.probe_seconds + self._limits.shutdown_seconds)

    def _run(self) -> None:
        while not self._done.is_set():
            try:
                with self._connect() as link:  # a new one each time: an idle one takes a place
                    self._look(_Heartbeats(link, self._limits, self._done))
            except (LinkError, ProtocolError):
                pass  # tried again below; nobody waits for it
            self._done.wait(self._every)

    def _look(self, beats: _Heartbeats) -> None:
        latest = self._latest
        if latest is None:
            self._keep(beats.measure(3, budget=0.0))
            return
        link = latest.link
        rates = [one for one in (link.up_bits, link.down_bits, self.felt_bits) if one]
        # Half of the share for each way; a link without a known rate is not loaded at all.
        room = self._share * self._every * min(rates, default=0.0) / 8 / 2
        self._keep(beats.measure(2, budget=0.5, most=int(room)))

    def _keep(self, found: Probed) -> None:
        """Rates that were not measured this time stay what they were."""
        if (before := self._latest) is not None:
            link = replace(
                found.link,
                round_trip=(found.link.round_trip + before.link.round_trip) / 2,
                up_bits=found.link.up_bits or before.link.up_bits,
                down_bits=found.link.down_bits or before.link.down_bits,
                connect=before.link.connect,
            )
            cloud = found.cloud if found.cloud.costs else before.cloud
            found = replace(found, link=link, cloud=cloud, is_new=found.link.up_bits > 0)
        self._latest = found


class _Heartbeats:
    """Heartbeats over one link."""

    def __init__(self, link: Link, limits: Limits, done: threading.Event | None = None) -> None:
        self._link = link
        self._limits = limits
        self._nonce = 0
        self._done = done or threading.Event()
        """Nobody wants to know any more."""

    def measure(self, count: int, budget: float, most: int | None = None) -> Probed:
        """Trips, rates and figures. most: bytes that one way may be loaded with; None: any."""
        until = time.perf_counter() + budget
        self.ask()  # the first one of a link waits for more than the others
        cpu, trips = time.process_time(), []
        for _ in range(max(1, count)):
            trips.append(self.ask()[0])
            if len(trips) >= 3 and time.perf_counter() > until - budget / 2:
                break
        cpu = (time.process_time() - cpu) / len(trips)
        trip = statistics.median(trips)
        jitter = statistics.fmean(abs(one - trip) for one in trips)
        most = self._limits.max_padding_bytes if most is None else most
        now = time.perf_counter()
        up = self._rate(trip, now + (until - now) / 2, most, up=True)
        down = self._rate(trip, until, most, up=False)
        figures = self.figures()
        unknown = () if figures is not None else ("rate down", "the cloud's own figures")
        link = LinkProfile(round_trip=trip, jitter=jitter, up_bits=up, down_bits=down, trip_cpu=cpu)
        return Probed(link=link, cloud=cloud_profile(figures), at=time.monotonic(), unknown=unknown)

    def _rate(self, trip: float, until: float, most: int, *, up: bool) -> float:
        """Bits a second one way; 0 where no frame was large enough to tell."""
        size, rate = _FIRST_PADDING, 0.0
        most = min(most, self._limits.max_padding_bytes)
        while size <= most:
            # 1 Mbit/s is taken for granted before anything is known.
            if time.perf_counter() + trip + 8 * size / (rate or 1e6) > until:
                break
            if up:
                seconds, _ = self.ask(Heartbeat(nonce=0, padding=bytes(size)))
            else:
                seconds, pong = self.ask(Heartbeat(nonce=0, reply_bytes=size))
                if len(pong.padding) != size:
                    return 0.0  # an older cloud
            more = seconds - trip
            if more > 0:
                rate = 8 * size / more
            if more > _LONG_SECONDS:
                break
            size *= _GROWTH
        return rate

    def figures(self) -> Figures | None:
        """What the cloud says; where somebody else makes it measure, a little later."""
        deadline = time.perf_counter() + min(_PATIENCE_SECONDS, self._limits.probe_seconds)
        while True:
            _, pong = self.ask(Heartbeat(nonce=0, wants_figures=True))
            is_told = pong.figures is None or pong.figures.costs
            if is_told or time.perf_counter() + 0.2 > deadline or self._done.wait(0.2):
                return pong.figures

    def ask(self, heartbeat: Heartbeat | None = None) -> tuple[float, Pong]:
        """Seconds until the answer, and the answer."""
        self._nonce += 1
        frame = encode(replace(heartbeat or Heartbeat(nonce=0), nonce=self._nonce))
        started = time.perf_counter()
        self._link.send(frame)
        deadline = started + self._limits.probe_seconds
        while True:
            left = deadline - time.perf_counter()
            if left <= 0:
                raise LinkTimeout(f"no answer to a heartbeat in {self._limits.probe_seconds:g} s")
            reply = decode_cloud(self._link.receive(left), self._limits)
            if isinstance(reply, Refusal):
                raise Refused(reply.code, reply.reason, reply.retry_seconds)
            if not isinstance(reply, Pong):
                raise ProtocolError(f"{type(reply).__name__} in answer to a heartbeat")
            if reply.nonce == self._nonce:
                return time.perf_counter() - started, reply


def cloud_profile(figures: Figures | None) -> CloudProfile:
    """What the cloud said, as plans take it; figures that make no sense are left out."""
    if figures is None:
        return CloudProfile()
    points: dict[int, dict[int, float]] = {}
    for one in figures.costs:
        if one.rows:
            points.setdefault(one.cut, {})[one.rows] = one.seconds
    try:
        costs = {
            cut: RowCost(rows=tuple(sorted(at)), seconds=tuple(at[rows] for rows in sorted(at)))
            for cut, at in points.items()
        }
    except ValueError:
        costs = {}
    if not {0, figures.model_layers} <= costs.keys():
        costs = {}
    return CloudProfile(
        fingerprint=figures.fingerprint,
        layers=figures.model_layers,
        costs=costs,
        sessions=figures.sessions,
        at_work=figures.at_work,
    )
