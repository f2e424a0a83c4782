"""Asking the exits, shallowest first, until the criterion takes what one of them says."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from collm.config import Sampling
from collm.policy.coherence import CoherenceTracker
from collm.policy.lookup import PromptLookup
from collm.policy.observation import Criterion, Decision, Observation, Reading
from collm.policy.sampling import Allows, Bool, choose, likeliest, only
from collm.runtime.stage import StageSession
from collm.session.costs import Costs
from collm.session.oracle import ORACLE, OracleReading

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Guess:
    """What was seen of the next position, and what the criterion made of it."""

    seen: Observation | None
    """None where there was nobody to ask, or an oracle spoke."""
    decision: Decision | None
    lookup: Reading | None = None
    """What was looked up for this position, whatever became of it."""


class Drafter:
    """The exits of one session, and the text they are judged by.

    A shallow exit that is taken spares the deeper layers. `write` and `crop` keep the text so
    far in step; `learn` says what the full model chose where guesses were made. An oracle, told
    a position of the answer, is heard instead of lookup, exits and criterion.
    allows: the answer's constraint, which exits and lookup keep to; their confidences are then
    among the tokens allowed. alternatives: so many of an exit's likeliest tokens are told.
    """

    def __init__(
        self,
        session: StageSession,
        cuts: Sequence[int],
        criterion: Criterion,
        sampling: Sampling,
        *,
        tracker: CoherenceTracker,
        costs: Costs,
        lookup: PromptLookup | None = None,
        oracle: Callable[[int], int | None] | None = None,
        allows: Allows | None = None,
        alternatives: int = 0,
    ) -> None:
        self._session = session
        self._cuts = tuple(cuts)
        self.criterion = criterion
        is_plain = sampling.temperature == 0.0 and sampling.repetition_penalty == 1.0
        self._greedy = is_plain and allows is None
        self._allows = allows
        self._alternatives = alternatives
        self._sampling = sampling
        self._costs = costs
        self._lookup = lookup
        self._oracle = oracle
        self._prompt = 0
        self.tracker = tracker

    @property
    def has_exits(self) -> bool:
        """Whether there is an exit that always has something to say."""
        return bool(self._cuts) and self._oracle is None

    def read_prompt(self, ids: Sequence[int]) -> None:
        """Run the prompt, which the session holds, to the first exit."""
        self._prompt = len(ids)
        if self._cuts:
            self.tracker.read_prompt(ids, self._session.hidden_at(self._cuts[0], 0))

    def move(self, session: StageSession, cuts: Sequence[int]) -> None:
        """Go on with the exits of another session, which holds the same text."""
        is_other = tuple(cuts[:1]) != self._cuts[:1]
        self._session, self._cuts = session, tuple(cuts)
        if self._cuts and is_other:
            self.tracker.rebase(session.hidden_at(self._cuts[0], 0), self._prompt)

    def guess(
        self,
        ids: Sequence[int],
        *,
        due: float = math.inf,
        cloud_seconds: float = math.inf,
        upload: Callable[[int], None] | None = None,
    ) -> Guess:
        """The next token after `ids`, which the session holds.

        due: when it has to be there, by `time.perf_counter`. cloud_seconds: what asking the
        cloud would take. upload: called with the cut before any layer beyond it runs.
        """
        if self._oracle is not None:
            return Guess(None, self._foretold(self._oracle(len(ids) - self._prompt), ids))
        looked_up = self._lookup.propose() if self._lookup is not None else None
        if looked_up is not None and self._allows is not None:
            looked_up = looked_up if self._allows.allowed(ids)[looked_up.token_id] else None
        seen: Observation | None = None
        if looked_up is not None:
            seen = Observation((looked_up,), self.tracker.read())
            decision = self.criterion.decide(seen)
            if decision is not None:
                return Guess(seen, decision, looked_up)
        readings: list[Reading] = []
        for index, cut in enumerate(self._cuts):
            if upload is not None:
                upload(cut)
            if index == 0 and len(ids) > self._prompt:
                self.tracker.note_state(self._session.state_at(cut))
            readings.append(self._ask(cut, ids))
            left, further = due - time.perf_counter(), self._seconds_to(index + 1)
            if further > left >= cloud_seconds:
                further = math.inf  # no time for the next exit, but for the cloud
            seen = Observation(tuple(readings), self.tracker.read(), left, further, cloud_seconds)
            decision = self.criterion.decide(seen)
            if decision is not None:
                return Guess(seen, decision, looked_up)
            if further == math.inf:
                break
        return Guess(seen, None, looked_up)

    def write(self, token_id: int, confidence: float, entropy: float) -> None:
        """The text goes on with this token."""
        self.tracker.push(token_id, confidence, entropy)
        if self._lookup is not None:
            self._lookup.extend(token_id)

    def crop(self, position: int) -> None:
        """Take the text back to this many positions, prompt included."""
        self.tracker.crop(position - self._prompt)
        if self._lookup is not None:
            self._lookup.crop(position)

    def learn(self, guess: Guess, token_id: int) -> None:
        """The full model's choice where `guess` was made has become known."""
        if guess.seen is not None and guess.seen.last.cut:
            self.criterion.learn(guess.seen, token_id)
        if guess.lookup is not None and self._lookup is not None:
            self._lookup.learn(guess.lookup, token_id)

    def _foretold(self, token_id: int | None, ids: Sequence[int]) -> Decision | None:
        """An oracle's word in place of the deepest exit's, which is run all the same."""
        if token_id is None:
            return None
        cut = self._cuts[-1] if self._cuts else 0
        if cut:
            self._ask(cut, ids)
        return Decision(OracleReading(cut, token_id, 1.0), ORACLE)

    def _seconds_to(self, index: int) -> float:
        if index == len(self._cuts):
            return math.inf
        cut = self._cuts[index]
        return self._costs.exit_seconds(cut, self._session.pending_at(cut))

    def _ask(self, cut: int, ids: Sequence[int]) -> Reading:
        rows, started = self._session.pending_at(cut), time.perf_counter()
        if self._greedy:
            made = self._session.exit_at(cut)
            reading = Reading(
                cut, made.token_id, made.confidence, made.runner_up_confidence, made.entropy
            )
        else:
            reading = self._read(cut, ids)
        if self._alternatives:
            told = likeliest(self._session.exit_logits(cut), self._alternatives)
            reading = replace(reading, alternatives=told)
        self._costs.exit_took(cut, time.perf_counter() - started, rows)
        return reading

    def _read(self, cut: int, ids: Sequence[int]) -> Reading:
        """What the exit says by the cloud's rules: a draft is right when the distributions agree

        enough, as the noise is the same and what the constraint allows is too.
        """
        logits = self._session.exit_logits(cut)
        if self._allows is not None:
            allowed = self._allows.allowed(ids)
            logits = only(logits, allowed)
            if logits.max() == -np.inf:
                return _at_a_loss(cut, allowed)
        return _reading(cut, logits, choose(logits, self._sampling, len(ids), ids))


def _at_a_loss(cut: int, allowed: Bool) -> Reading:
    """Where the exit knows none of the tokens allowed: sure if there is but one, else not at all.

    Tokens with low ids are the common ones, if one has to be named.
    """
    count = int(np.count_nonzero(allowed))
    confidence = 1.0 if count == 1 else 0.0
    return Reading(cut, int(allowed.argmax()), confidence, 0.0, math.log(count))


def _reading(cut: int, logits: F32, token_id: int) -> Reading:
    """What an exit's calibrated logits, float32 [vocabulary], say of a token that was sampled."""
    below = logits - logits.max()
    share = np.exp(below)
    total = float(share.sum())
    known = share > 0
    entropy = math.log(total) - float((share[known] * below[known]).sum()) / total
    confidence = float(share[token_id]) / total
    share[token_id] = 0
    return Reading(cut, token_id, confidence, float(share.max()) / total, entropy)
