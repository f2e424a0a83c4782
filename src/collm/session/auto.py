"""Mode `auto`: begins the way that is expected to be the fastest, and changes where that is wrong.

A `Course` is one answer's: it measures every round, tells the edge's `Steering`, and asks it how to
go on. Rounds that say nothing of a way are left out: the first one, one after a change (blocks were
loaded and the text was run again), and those in which the link broke.

Where no cloud is reached at first, and that is allowed, the exits begin. Where the cloud was left
alone with an answer and stays away, the exits finish it, provisionally.

Not covered: going back from the plain cloud in mid-answer, which would have to interrupt it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Generator
from dataclasses import replace
from typing import Final

from collm import metrics
from collm.config import Way
from collm.errors import LinkError, Refused, Unreachable, UsageError
from collm.policy.controller import BASELINE, Decision
from collm.session.client import CloudClient
from collm.session.drafter import Guess
from collm.session.events import Change, EmittedToken, Preview
from collm.session.modes import exits_alone, exits_before_the_end, stage_of, the_rest
from collm.session.run import Run
from collm.session.steering import Steering, describe
from collm.session.verified import verified
from collm.wire.codec import LOSSLESS
from collm.wire.messages import Verdict

logger = logging.getLogger(__name__)

_MEASURED: Final = 6
"""Tokens that an edge drafts for itself to know how long one takes."""
_QUICK_BITS: Final = 50e6
_CAREFUL_BITS: Final = 100e6
"""A link is taken to be no faster than this."""
_PROMPT_SECONDS: Final = 0.005
_ODD: Final = 8.0
"""A token that took so many times as long as usual says nothing of the cloud alone."""


class Course:
    """One answer's way under `steering`; see `run.Steer`."""

    def __init__(self, steering: Steering) -> None:
        self._steering = steering
        self._now: Way | None = None
        self._before: Way | None = None
        self._intended: Way | None = None
        self._counts = False
        """Whether the round under way says something of its way."""
        self._is_greeted = False
        self._at = 0.0
        self._emitted = self._guessed = self._bytes = self._rows = self._reconnects = 0
        self._edge = 0.0

    def begin(self, run: Run) -> Way:
        """How the answer begins."""
        steering = self._steering
        if run.stage is not None and run.stage.layers.stop not in steering.forecaster.edge:
            self._measure(run)
        steering.look()
        decision = steering.controller.first()
        self._take(run, decision)
        return decision.way

    def begin_here(self, run: Run) -> Way | None:
        """How it begins where there is no cloud; None where there is no way without one."""
        controller = self._steering.controller
        usable = [way for way in controller.ways if way.placement <= controller.allowed]
        if usable:
            reason = "no cloud answers: the exits begin"
            self._take(run, Decision(way=usable[0], seconds=math.nan, reason=reason))
            return usable[0]
        return None

    def spare_prompt(self, run: Run, way: Way) -> Way:
        """How the prompt travels: as ids where its hidden states would keep the link busy.

        They would for long on links whose rate is low, or was never felt.
        """
        forecaster = self._steering.forecaster
        bits = 8 * len(run.ids) * forecaster.row_bytes(way.wire)
        rate = min(forecaster.link.bits_per_second, _CAREFUL_BITS)
        spares = any(one.wire == "ids" for one in self._steering.controller.ways)
        if not spares or way.wire not in LOSSLESS or bits / rate < _PROMPT_SECONDS:
            return way
        self._intended, self._now = way, replace(way, wire="ids")
        return self._now

    def way(self, run: Run, client: CloudClient, verdict: Verdict) -> Way | None:
        """See `run.Steer`."""
        steering = self._steering
        self._note_round(run, client, verdict)
        steering.look()
        run.pacer.bits_per_second = rate = steering.forecaster.link.bits_per_second
        # Where a row leaves in no time a message for each is only work.
        batch = run.generation.draft if rate > _QUICK_BITS else 1
        run.generation = replace(run.generation, batch=batch)
        intended, self._intended = self._intended, None
        if intended is not None and intended.placement <= steering.controller.allowed:
            self._before, self._now, self._counts = self._now, intended, False
            return intended
        return self._take(run, steering.controller.decide(self._now))

    def unusable(self, way: Way) -> None:
        """See `run.Steer`."""
        self._steering.without(way)
        self._now, self._counts = self._before, False

    def has_others(self, way: Way) -> bool:
        """Whether there is anything to go on with, without this one."""
        controller = self._steering.controller
        ways = [o for o in controller.ways if (o.placement, o.wire) != (way.placement, way.wire)]
        return bool(ways) or (way.mode != "cloud" and controller.with_baseline)

    def judged(self, guess: Guess, token_id: int) -> None:
        """See `run.Steer`."""
        for reading in guess.seen.readings if guess.seen is not None else ():
            if reading.cut:
                record = self._steering.forecaster.exit(reading.cut)
                record.add(reading.confidence, reading.token_id == token_id)

    def token(self, run: Run, client: CloudClient, cloud_seconds: float) -> None:
        """See `run.Steer`."""
        steering, now = self._steering, self._steering.clock()
        forecaster, seconds = steering.forecaster, now - self._at
        usual = forecaster.cloud_token.value
        is_odd = client.connection.reconnects != self._reconnects or seconds > _ODD * usual
        if self._counts and not is_odd:
            forecaster.cloud.add(1, 1.0, cloud_seconds)
            steering.controller.note(BASELINE, 1, seconds)
        self._greet(client)
        self._counts, self._at = True, now
        self._reconnects = client.connection.reconnects
        steering.look()
        self.shed(run)

    def shed(self, run: Run) -> None:
        """Give up blocks that memory is short for, where the cloud goes on without them."""
        most = self._steering.controller.allowed
        if run.stage is None or run.place is None or run.stage.layers.stop <= most:
            return
        try:
            run.stage = run.place(most, None)
            run.exits = tuple(run.stage.exits)
        except (UsageError, LinkError) as error:
            logger.warning("%d layers cannot be loaded: %s", most, error)

    def _note_round(self, run: Run, client: CloudClient, verdict: Verdict) -> None:
        now, forecaster = self._steering.clock(), self._steering.forecaster
        account, way = run.account, self._now
        emitted, guessed = run.emitted - self._emitted, account.guessed - self._guessed
        byte_count, rows = client.bytes_up - self._bytes, client.rows_run - self._rows
        edge_seconds, seconds = account.edge_seconds - self._edge, now - self._at
        is_steady = client.connection.reconnects == self._reconnects
        if self._counts and way is not None and is_steady:
            begins = 0 if way.wire == "ids" else way.placement
            share = (forecaster.layers - begins) / forecaster.layers
            forecaster.cloud.add(max(1, rows), share, verdict.cloud_seconds)
            forecaster.link.add(now, client.answered_in - verdict.cloud_seconds, byte_count)
            if guessed and way.placement:
                forecaster.edge_at(way.placement).add(edge_seconds / guessed)
            self._steering.controller.note(way, emitted, seconds)
        self._greet(client)
        self._counts, self._at = True, now
        self._emitted, self._guessed = run.emitted, account.guessed
        self._bytes, self._rows = client.bytes_up, client.rows_run
        self._edge, self._reconnects = account.edge_seconds, client.connection.reconnects

    def _greet(self, client: CloudClient) -> None:
        """The Welcome has told the round trip, once."""
        seconds = client.connection.greeted_in
        if not self._is_greeted and seconds > 0:
            self._steering.forecaster.link.add(self._steering.clock(), seconds, 0)
        self._is_greeted = True

    def _take(self, run: Run, decision: Decision) -> Way | None:
        """Note a change; what is to be changed to."""
        if decision.way == self._now:
            return None
        way, index = decision.way, len(run.account.tokens)
        run.account.changes.append(Change(index=index, way=way, reason=decision.reason))
        metrics.WAYS.labels(way.mode, way.wire if way.mode == "verified" else "ids").inc()
        logger.info("token %d: %s: %s", index, describe(way), decision.reason)
        self._before, self._now, self._counts = self._now, way, False
        return way

    def _measure(self, run: Run) -> None:
        """What a drafted token takes here; some milliseconds, once."""
        stage, cuts = stage_of(run), exits_before_the_end(run)[-1:]
        if not cuts:
            return
        clock, session, took = self._steering.clock, stage.open(), list[float]()
        session.append_ids(run.ids[: 2 * _MEASURED] * 2)
        session.exit_at(cuts[0])
        for _ in range(_MEASURED):
            started = clock()
            session.append_ids(run.ids[-1:])
            session.hidden_at(stage.layers.stop, session.position - 1)
            session.exit_at(cuts[0])
            took.append(clock() - started)
        self._steering.forecaster.edge_at(stage.layers.stop).add(sorted(took)[_MEASURED // 2])
        session.close()


def auto(run: Run) -> Generator[EmittedToken | Preview, None, None]:
    """The way that is expected to be the fastest, and another one where that turns out wrong."""
    course = run.steer
    assert isinstance(course, Course)  # the edge makes one for this mode
    while True:
        way = course.begin(run)
        try:
            if way.mode == "cloud":
                other = yield from _cloud(run, course)
                if other is None:
                    return
                way = other
            way = course.spare_prompt(run, way)
            if _is_prepared(run, way):
                yield from verified(run)
                return
        except Refused as error:
            # An edge server, say, does not begin at layer 0.
            if error.code != "placement" or run.emitted or not course.has_others(way):
                raise
        course.unusable(way)


def _cloud(run: Run, course: Course) -> Generator[EmittedToken, None, Way | None]:
    """The cloud alone; another way where there is none yet, and the answer may begin."""
    course.shed(run)
    with run.begin(cut=0) as begun:
        client = begun.client
        if client.connection.is_down and (way := course.begin_here(run)) is not None:
            return way
        try:
            yield from the_rest(run, client, run.remaining)
        except Unreachable:
            if not run.exits:
                raise
            yield from exits_alone(run)
    return None


def _is_prepared(run: Run, way: Way) -> bool:
    """Load what the way needs, and set it; False where its blocks are not to be had."""
    assert run.place is not None
    if (way.placement, way.exits) != (stage_of(run).layers.stop, run.exits):
        try:
            run.stage = run.place(way.placement, way.exits)
        except (UsageError, LinkError) as error:
            logger.warning("%d layers cannot be loaded: %s", way.placement, error)
            return False
        run.exits = tuple(run.stage.exits)
    run.wire = way.wire
    if run.criterion_at is not None:
        run.criterion = run.criterion_at(way.threshold)
    run.generation = replace(
        run.generation, threshold=way.threshold, draft=way.draft, ahead=way.ahead
    )
    return True
