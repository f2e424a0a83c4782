"""Mode `auto`: measures while answers are made, and says how to go on.

What is measured on the way, without a byte of its own: the link's round trip and rate and the
cloud's time from every verdict, the edge's time from every draft, how far each exit can be trusted
from every token that the full model has spoken on. `policy.forecast` makes prices of it,
`policy.controller` the choice. All of it outlives an answer: the next one begins where this one
ended.

Not covered: going back from the plain cloud in mid-answer, which would have to interrupt it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Final

from collm import metrics
from collm.config import Way
from collm.model.artifact import Artifact
from collm.policy.controller import BASELINE, Controller, Decision, Rules
from collm.policy.forecast import Forecaster
from collm.session.client import CloudClient
from collm.session.drafter import Guess
from collm.session.events import Change, EmittedToken, Preview
from collm.session.modes import cloud, exits_before_the_end, stage_of
from collm.session.probing import Prober
from collm.session.run import Run
from collm.session.verified import verified
from collm.wire.codec import row_bytes
from collm.wire.messages import Verdict

logger = logging.getLogger(__name__)

LOSSLESS: Final = ("f32", "ids")
"""Formats that leave the text the full model's."""
_THRESHOLDS: Final = (0.4, 0.6, 0.8)
_DRAFTS: Final = (4, 8)
_AHEAD: Final = 0.3
_MEASURED: Final = 6
"""Tokens that an edge drafts for itself to know how long one takes."""
_QUICK_BITS: Final = 50e6
_CAREFUL_BITS: Final = 100e6
"""A link is taken to be no faster than this."""
_PROMPT_SECONDS: Final = 0.005
_AGREEMENT: Final = 0.35
"""Of an exit that says nothing of itself."""


def ways_of(
    artifact: Artifact, placements: Sequence[int], wires: Sequence[str] = LOSSLESS
) -> list[Way]:
    """The collaborative ways for these placements: each with its deepest exit alone."""
    made = []
    for placement in placements:
        cuts = [entry.cut for entry in artifact.exits(None, placement)][-1:]
        if not cuts:
            continue
        for wire in wires:
            made += [
                Way(
                    placement=placement,
                    exits=tuple(cuts),
                    wire=wire,
                    threshold=threshold,
                    draft=draft,
                    ahead=ahead,
                )
                for threshold in _THRESHOLDS
                for draft in _DRAFTS
                for ahead in (None, _AHEAD)
            ]
    return made


class Steering:
    """One edge's; `run.Steer`.

    ways: the ones to choose from beside the plain cloud. pressure: says, now and then, how many
    layers fit. with_cloud: the plain cloud may be chosen too.
    """

    def __init__(
        self,
        artifact: Artifact,
        ways: Sequence[Way],
        *,
        rules: Rules | None = None,
        with_cloud: bool = True,
        pressure: Callable[[], int | None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        hidden = artifact.architecture.hidden_size
        agreements = {e.cut: e.agreement for e in artifact.manifest.exits}
        self.forecaster = Forecaster(
            layers=artifact.architecture.layers,
            row_bytes=lambda wire: row_bytes(wire, hidden),
            agreement=lambda cut: agreements.get(cut) or _AGREEMENT,
        )
        self.controller = Controller(ways, self.forecaster, rules, with_baseline=with_cloud)
        self._pressure = pressure
        self.prober: Prober | None = None
        """Looks at the link while answers do not, where the edge has one."""
        self._probed_at = 0.0
        self._clock = clock
        self._now: Way | None = None
        self._at = 0.0
        self._emitted = self._guessed = self._bytes = self._rows = 0
        self._edge = 0.0
        self._is_first = True
        self._intended: Way | None = None

    def begin(self, run: Run) -> Way:
        """How the answer begins."""
        if run.stage is not None and run.stage.layers.stop not in self.forecaster.edge:
            self._measure(run)
        self._look_at_memory()
        self._hear_probe()
        decision = self.controller.first()
        self._is_first, self._now = True, None
        self._take(run, decision)
        return decision.way

    def way(self, run: Run, client: CloudClient, verdict: Verdict) -> Way | None:
        """See `run.Steer`."""
        self._note_round(run, client, verdict)
        self._look_at_memory()
        self._hear_probe()
        run.pacer.bits_per_second = rate = self.forecaster.link.bits_per_second
        # Where a row leaves in no time a message for each is only work.
        batch = run.generation.draft if rate > _QUICK_BITS else 1
        run.generation = replace(run.generation, batch=batch)
        intended, self._intended = self._intended, None
        if intended is not None and intended.placement <= self.controller.allowed:
            self._now = intended
            return intended
        return self._take(run, self.controller.decide(self._now))

    def spare_prompt(self, run: Run, way: Way) -> Way:
        """How the prompt travels: as ids where its hidden states would keep the link busy.

        They would for long on links whose rate is low, or was never felt.
        """
        bits = 8 * len(run.ids) * self.forecaster.row_bytes(way.wire)
        rate = min(self.forecaster.link.bits_per_second, _CAREFUL_BITS)
        if way.wire not in LOSSLESS or bits / rate < _PROMPT_SECONDS:
            return way
        self._intended = way
        self._now = replace(way, wire="ids")
        return self._now

    def unusable(self, way: Way) -> None:
        """See `run.Steer`."""
        ways = self.controller.ways
        self.controller.ways = [one for one in ways if one.placement != way.placement]
        self._now = None

    def judged(self, guess: Guess, token_id: int) -> None:
        """See `run.Steer`."""
        for reading in guess.seen.readings if guess.seen is not None else ():
            if reading.cut:
                record = self.forecaster.exit(reading.cut)
                record.add(reading.confidence, reading.token_id == token_id)

    def token(self, run: Run, client: CloudClient, cloud_seconds: float) -> None:
        """See `run.Steer`."""
        now, forecaster = self._clock(), self.forecaster
        if not self._is_first:
            self.controller.note(BASELINE, 1, now - self._at)
            forecaster.cloud.add(1, 1.0, cloud_seconds)
        elif client.connection.greeted_in > 0:
            forecaster.link.add(now, client.connection.greeted_in, 0)
        self._is_first, self._at = False, now

    def _note_round(self, run: Run, client: CloudClient, verdict: Verdict) -> None:
        now, forecaster = self._clock(), self.forecaster
        account, way = run.account, self._now
        emitted, guessed = run.emitted, account.guessed - self._guessed
        byte_count, rows = client.bytes_up - self._bytes, client.rows_run - self._rows
        edge_seconds = account.edge_seconds - self._edge
        # The first verdict is about the prompt.
        if not self._is_first and way is not None:
            begins = 0 if way.wire == "ids" else way.placement
            share = (forecaster.layers - begins) / forecaster.layers
            forecaster.cloud.add(max(1, rows), share, verdict.cloud_seconds)
            forecaster.link.add(now, client.answered_in - verdict.cloud_seconds, byte_count)
            if guessed and way.placement:
                record = forecaster.edge_at(way.placement)
                record.add(edge_seconds / guessed)
            self.controller.note(way, emitted - self._emitted, now - self._at)
        elif client.connection.greeted_in > 0:
            forecaster.link.add(now, client.connection.greeted_in, 0)
        self._is_first, self._at = False, now
        self._emitted, self._guessed = emitted, account.guessed
        self._bytes, self._rows = client.bytes_up, client.rows_run
        self._edge = account.edge_seconds

    def _take(self, run: Run, decision: Decision) -> Way | None:
        """Note a change; what is to be changed to."""
        if decision.way == self._now:
            return None
        way, index = decision.way, len(run.account.tokens)
        run.account.changes.append(Change(index=index, way=way, reason=decision.reason))
        metrics.WAYS.labels(way.mode, way.wire if way.mode == "verified" else "ids").inc()
        logger.info("token %d: %s: %s", index, describe(way), decision.reason)
        self._now = way
        return way

    def _look_at_memory(self) -> None:
        if self._pressure is not None and (most := self._pressure()) is not None:
            self.controller.allowed = most

    def _hear_probe(self) -> None:
        """What has been probed since; the cloud's own figures count while nothing better does."""
        if self.prober is None:
            return
        link = self.forecaster.link
        self.prober.felt_bits = link.bits_per_second if link.bits_per_second < math.inf else 0.0
        found = self.prober.latest
        if found is None or found.at == self._probed_at:
            return
        self._probed_at = found.at
        rate = found.link.up_bits or link.bits_per_second
        link.probed(self._clock(), found.link.round_trip, rate)
        if not self.forecaster.cloud_token.is_known:
            layers = self.forecaster.layers
            for cut, cost in found.cloud.costs.items():
                for rows, seconds in zip(cost.rows, cost.seconds, strict=True):
                    if cut < layers:
                        head = found.cloud.costs[layers].at(rows)
                        share = (layers - cut) / layers
                        self.forecaster.cloud.add(rows, share, seconds + head)

    def _measure(self, run: Run) -> None:
        """What a drafted token takes here; some milliseconds, once."""
        stage, cuts = stage_of(run), exits_before_the_end(run)[-1:]
        if not cuts:
            return
        session = stage.open()
        session.append_ids(run.ids[: 2 * _MEASURED] * 2)
        record = self.forecaster.edge_at(stage.layers.stop)
        session.exit_at(cuts[0])
        best = []
        for _ in range(_MEASURED):
            started = self._clock()
            session.append_ids(run.ids[-1:])
            session.hidden_at(stage.layers.stop, session.position - 1)
            session.exit_at(cuts[0])
            best.append(self._clock() - started)
        record.add(sorted(best)[_MEASURED // 2])
        session.close()


def auto(run: Run) -> Generator[EmittedToken | Preview, None, None]:
    """The way that is expected to be the fastest, and another one where that turns out wrong."""
    steering = run.steer
    assert isinstance(steering, Steering)  # the edge makes one for this mode
    way = steering.begin(run)
    if way.mode == "cloud":
        yield from cloud(run)
        return
    way = steering.spare_prompt(run, way)
    assert run.place is not None
    stage = stage_of(run)
    if (way.placement, way.exits) != (stage.layers.stop, run.exits):
        run.stage = stage = run.place(way.placement, way.exits)
        run.exits = tuple(stage.exits)
    run.wire = way.wire
    if run.criterion_at is not None:
        run.criterion = run.criterion_at(way.threshold)
    run.generation = replace(
        run.generation, threshold=way.threshold, draft=way.draft, ahead=way.ahead
    )
    yield from verified(run)


def describe(way: Way) -> str:
    """In a few words."""
    if way.mode == "cloud":
        return "the cloud alone"
    ahead = ", ahead" if way.ahead is not None else ""
    exits = ", ".join(map(str, way.exits or ()))
    return (
        f"{way.placement} layers here, exit {exits or 'none'} from {way.threshold:g}, drafts of "
        f"{way.draft}{ahead}, {way.wire} up"
    )
