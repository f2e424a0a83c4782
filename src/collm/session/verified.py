"""Mode `verified`: the exits draft, the cloud verifies; the text is exactly the full model's.

The prompt goes up in pieces, so that the cloud runs one while the edge runs the next. Then there
are two ways to share the time. One waits: draft until unsure, ask, go on from the verdict. The
other drafts ahead: it asks as soon as the cloud is idle, and while a verdict is awaited goes on
from its own guess, unsure or not. Where the guess was wrong only the edge has worked in vain: the
cloud does not run what was drafted on it.

While no cloud can be reached the exits go on alone. What they write is shown as a preview, and is
an ordinary draft for the cloud that comes back: the text is the full model's again from the first
difference on. Where none comes back the answer's rest is the exits', marked provisional.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Generator
from dataclasses import dataclass, field, replace

from collm.config import Way
from collm.errors import LinkError, Unreachable, UsageError
from collm.policy.observation import Decision, Reading
from collm.runtime.stage import StageSession
from collm.session.client import CloudClient
from collm.session.drafter import Drafter, Guess
from collm.session.events import EmittedToken, Preview
from collm.session.modes import (
    FULL_MODEL,
    Tokens,
    answer_of,
    exits_alone,
    stage_of,
    the_rest,
)
from collm.session.offline import preview
from collm.session.run import Begun, Run
from collm.wire.messages import Verdict

logger = logging.getLogger(__name__)

_PIECE = 32
"""Rows of a prompt that go up at a time: few enough to overlap, enough to be run well."""
_PAIR = 2
"""Rows worth asking about when the cloud is idle: one alone would cost it as much."""
_MOST_ASKED = 4
_LONGEST = 64
"""Tokens of one draft, where many were written without a cloud."""
_MOST_OFFLINE = 1024
"""Tokens written without a cloud; all their drafts may be out at a time."""


def verified(run: Run) -> Tokens:
    """Draft, verify, crop, go on."""
    stage = stage_of(run)
    cut = run.upload_cut
    with run.begin(cut=cut, stage=stage) as begun:
        session, client = begun.session, begun.client
        for start in range(session.position, len(run.ids), _PIECE):
            run.check()
            piece, is_last = run.ids[start : start + _PIECE], start + _PIECE >= len(run.ids)
            with run.at_edge():
                session.append_ids(piece)
                rows = session.hidden_at(cut, client.sent) if cut else None
            before = client.bytes_up
            client.append(piece, rows, settled=not is_last)
            if not is_last:
                run.pacer.sends(client.bytes_up - before)
        draft = _Draft(run=run, begun=begun, client=client, drafter=run.drafter(session))
        while draft.room > 0:
            if draft.wanted is not None and not client.outstanding:
                yield from draft.go_another_way(draft.wanted)
                continue
            if client.connection.is_down and draft.write_offline():
                yield from draft.previews()
            elif not draft.is_stuck:
                draft.extend()
            waits = draft.is_stuck and not (client.connection.is_down and draft.goes_on_offline)
            try:
                verdict = client.poll(wait=waits, while_up=draft.goes_on_offline)
            except Unreachable:
                if not draft.drafter.has_exits:
                    raise
                yield from draft.give_in()
                break
            if verdict is not None:
                yield from draft.settle(verdict)
        run.account.coherence = draft.drafter.tracker.read()
        run.count(client)


@dataclass(kw_only=True)
class _Draft:
    """The end of `run.ids`, which the full model has not spoken on yet."""

    run: Run
    begun: Begun
    client: CloudClient
    drafter: Drafter
    settled: int = 0
    """Positions whose tokens are the full model's."""
    asked: int = 0
    """The next draft to be judged begins here."""
    stuck_at: int = 0
    """Nothing is drafted for this position: it has to be heard from the cloud."""
    guesses: dict[int, Guess] = field(default_factory=dict)
    """What was seen of each position."""
    taken: dict[int, Decision] = field(default_factory=dict)
    """Guesses that the criterion took."""
    shown: int = 0
    """Positions before this one were shown, as previews at least."""
    ended: bool = False
    """Whether the exits have said a stop token."""
    wanted: Way | None = None
    """How to go on once no question is out."""

    def __post_init__(self) -> None:
        run = self.run
        self.settled = self.asked = len(run.ids)
        if run.generation.ahead is not None:
            self._ask()  # the first token need not wait for the exits to read the prompt
        with run.at_edge():
            self.drafter.read_prompt(run.ids)

    @property
    def session(self) -> StageSession:
        """The edge's."""
        return self.begun.session

    @property
    def room(self) -> int:
        """Tokens that may still be emitted."""
        run = self.run
        left = run.generation.max_tokens - run.emitted
        return min(left, run.max_positions - self.settled)

    @property
    def is_stuck(self) -> bool:
        """Whether there is nothing to do but to wait for a verdict."""
        if self.wanted is not None:
            return True
        return self.stuck_at == len(self.run.ids) or self.client.outstanding >= _MOST_ASKED

    def extend(self) -> None:
        """Draft one token more, and ask the cloud where that is due."""
        run, ids, ahead = self.run, self.run.ids, self.run.generation.ahead
        is_long = len(ids) - self.asked >= run.generation.draft
        if is_long and ahead is not None:
            self._ask()
            return
        guess = None
        if not is_long and len(ids) - self.settled < self.room - 1:
            with run.at_edge():
                guess = self.guesses[len(ids)] = self.drafter.guess(ids)
            run.account.guessed += 1
        made = guess.decision if guess is not None else None
        if made is not None and made.reading.token_id not in run.stop_ids:
            self.taken[len(ids)] = made
            run.account.drafted += 1
            self._write(made.reading)
            if ahead is not None and self._is_worth_asking:
                self._ask()
            return
        unsure = guess.seen.last if guess is not None and guess.seen is not None else None
        if not self.client.outstanding or len(ids) > self.asked:
            self._ask()
        if (
            made is None
            and unsure is not None
            and unsure.confidence >= (math.inf if ahead is None else ahead)
            and unsure.token_id not in run.stop_ids
        ):
            self._write(unsure)
        else:
            self.stuck_at = len(ids)

    @property
    def goes_on_offline(self) -> bool:
        """Whether the exits could write on without the cloud."""
        return self.drafter.has_exits and self._may_write(self.room - 1)  # a verdict has one more

    def _may_write(self, most: int) -> bool:
        return not self.ended and len(self.run.ids) - self.settled < min(most, _MOST_OFFLINE)

    def write_offline(self) -> bool:
        """Go on with what the exits say, sure or not; whether there was anything to say."""
        if not self.goes_on_offline:
            return False
        self._write_one()
        return True

    def _write_one(self) -> None:
        run, ids = self.run, self.run.ids
        with run.at_edge():
            guess = self.guesses.pop(len(ids), None) or self.drafter.guess(ids)
        self.guesses[len(ids)] = guess
        if guess.decision is not None:
            self.taken[len(ids)] = guess.decision
        reading = answer_of(guess).reading
        if reading.token_id in run.stop_ids:
            self.taken.pop(len(ids), None)
            self.ended = True
            return
        run.account.drafted += 1
        run.account.guessed += 1
        self._write(reading, upload=False)

    def previews(self) -> Generator[Preview, None, None]:
        """What is written and was not shown yet."""
        for position in range(max(self.shown, self.settled), len(self.run.ids)):
            made = self._answer_at(position)
            self.shown = position + 1
            yield preview(self.run, position, made)

    def give_in(self) -> Generator[EmittedToken, None, None]:
        """The answer's end without the cloud: what is written, and what comes after it."""
        while True:
            for position in range(self.settled, len(self.run.ids)):
                made = self._answer_at(position)
                self.settled = position + 1
                yield self.run.emit_reading(made.reading, made.by, provisional=True)
            if not self._may_write(self.room):
                break
            self._write_one()
        if self.ended:
            made = self._answer_at(len(self.run.ids))
            yield self.run.emit_reading(made.reading, made.by, provisional=True)

    def _answer_at(self, position: int) -> Decision:
        return self.taken.get(position) or answer_of(self.guesses[position])

    def settle(self, verdict: Verdict) -> Generator[EmittedToken, None, None]:
        """Take a verdict in; the tokens that have become certain."""
        run, ids, account = self.run, self.run.ids, self.run.account
        run.count(self.client)
        account.rounds += 1
        account.cloud_seconds += verdict.cloud_seconds
        first, probability = verdict.base + 1, math.exp(verdict.logprob)
        end = first + verdict.accepted
        certain = [*ids[first:end], verdict.next_token]
        for position, token_id in enumerate(certain, first):
            if position in self.guesses:
                guess = self.guesses.pop(position)
                self.drafter.learn(guess, token_id)
                if run.steer is not None:
                    run.steer.judged(guess, token_id)
        goes_on = ids[end : end + 1] == [verdict.next_token]
        if not goes_on:
            self._go_back(end)
            ids.append(verdict.next_token)
            self.drafter.write(verdict.next_token, probability, math.nan)
        self.asked = max(self.asked, end + 1)
        new = range(self.settled, end + 1)
        self.settled = end + 1
        self.shown, self.ended = self.settled, False
        for position in new:
            made = self.taken.pop(position, None)
            logprob = verdict.logprob_at(position - first)
            told = verdict.alternatives_at(position - first)
            if made is not None:
                yield run.emit_reading(made.reading, made.by, judged=(logprob, told))
                continue
            confidence = probability if logprob is None else math.exp(logprob)
            yield run.emit(
                ids[position],
                "cloud",
                confidence,
                FULL_MODEL,
                logprob=logprob,
                alternatives=told,
            )
        if not goes_on and self.room > 0:
            self.session.append_ids([verdict.next_token])
        if run.steer is not None and self.wanted is None:
            self.wanted = run.steer.way(run, self.client, verdict)

    def go_another_way(self, way: Way) -> Generator[EmittedToken, None, None]:
        """Change cut, wire format and drafting where all is settled; the text stays exact."""
        run, client = self.run, self.client
        self.wanted = None
        self._go_back(self.settled)
        cuts = client.connection.cuts
        begins = 0 if way.mode == "cloud" or way.wire == "ids" else way.placement
        if cuts and begins not in cuts:
            assert run.steer is not None
            run.steer.unusable(way)
            return
        if way.mode == "cloud":
            client.recut(0, "ids")
            self.begun.leave_to_cloud()
            try:
                yield from the_rest(run, client, self.room)
            except Unreachable:
                if not self.drafter.has_exits:
                    raise
                yield from exits_alone(run)
            self.settled = run.max_positions  # there is nothing more to come
            return
        exits = run.exits if way.exits is None else way.exits
        if (way.placement, exits) != (stage_of(run).layers.stop, run.exits):
            assert run.place is not None and run.steer is not None  # whoever steers can place
            try:
                stage = run.place(way.placement, way.exits)
            except (UsageError, LinkError) as error:  # its blocks are not here, nor to be had
                logger.warning("%d layers cannot be loaded: %s", way.placement, error)
                run.steer.unusable(way)
                return
            with run.at_edge():
                run.stage = stage
                run.exits = tuple(run.stage.exits)
                self.begun.move(stage, stage.open())
                self.session.append_ids(run.ids)
                self.drafter.move(self.session, run.exits)
        run.wire = way.wire
        client.recut(run.upload_cut, way.wire)
        if run.criterion_at is not None:
            self.drafter.criterion = run.criterion_at(way.threshold)
        run.generation = replace(
            run.generation, threshold=way.threshold, draft=way.draft, ahead=way.ahead
        )
        self.asked, self.stuck_at = self.settled, 0
        self.guesses.clear()

    @property
    def _is_worth_asking(self) -> bool:
        return not self.client.outstanding and len(self.run.ids) - self.asked >= _PAIR

    def _write(self, reading: Reading, *, upload: bool = True) -> None:
        """Go on with this token."""
        run, sent = self.run, self.client.sent
        if upload and reading.cut == run.upload_cut and len(run.ids) - sent >= run.generation.batch:
            self._upload()  # the rows are there: let them travel while the next one is made
        self.run.ids.append(reading.token_id)
        self.drafter.write(reading.token_id, reading.confidence, reading.entropy)
        self.session.append_ids([reading.token_id])

    def _ask(self) -> None:
        """Ask about all that is written, in drafts that a cloud takes."""
        ids = self.run.ids
        while True:
            end = min(len(ids), max(self.asked + _LONGEST, self.client.sent))
            self._upload(end)
            self.client.submit(ids[self.asked : end], self.run.generation.sampling)
            self.asked = end
            if end == len(ids):
                return

    def _upload(self, end: int | None = None) -> None:
        """Rows at the cut for every position not sent yet; they travel in the background."""
        run, client = self.run, self.client
        cut = run.upload_cut
        new = run.ids[client.sent : end]
        if not new:
            return
        with run.at_edge():
            rows = self.session.hidden_at(cut, client.sent)[: len(new)] if cut else None
        client.append(new, rows)

    def _go_back(self, position: int) -> None:
        """Forget every position from `position` on."""
        del self.run.ids[position:]
        self.session.crop(position)
        self.drafter.crop(position)
        if self.client.sent > position:
            self.client.crop(position)
        self.asked, self.stuck_at = min(self.asked, position), 0
        for seen in (self.guesses, self.taken):
            for gone in [at for at in seen if at >= position]:
                del seen[gone]
