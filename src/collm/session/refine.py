"""`refine`: the edge writes a segment, the full model scores it, what does not stand is rewritten.

Stage 1: the edge writes up to `Refinement.segment` tokens from its exits. Stage 2: one batched
pass of the full model scores every one of them. Tokens that stand (rank, log-probability gap,
coherence: `policy.refinement`) stay; the first that does not is replaced by the full model's own
choice, and the edge writes the rest of the segment anew. After `Refinement.passes` corrections the
segment stays as it is. Only what changed is scored again.

While no cloud can be reached the segment is shown as a preview; where none comes back the rest is
the exits', marked provisional.

Tokens appear a segment at a time. The text is near the full model's, not equal to it: a bad token
is mended where it stands, a token that is merely different is left alone. Where nothing but the
full model's own choice stands (rank 1) and passes do not run out, the text is the full model's,
bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

from collm.errors import CloudAway, Unreachable
from collm.policy.refinement import ScoredToken, first_fallen
from collm.runtime.stage import StageSession
from collm.session.client import CloudClient
from collm.session.drafter import Drafter
from collm.session.events import EmittedToken, Pass, Preview
from collm.session.modes import FULL_MODEL, Tokens, answer_of, stage_of
from collm.session.run import LEAST, Run
from collm.wire.messages import Scored


@dataclass(slots=True)
class _Written:
    """A token of the segment under way."""

    token: EmittedToken
    repetition: float
    logprob: float = math.nan

    @property
    def told_logprob(self) -> float:
        """The full model's, or the exit's where no cloud has seen it."""
        if not math.isnan(self.logprob):
            return self.logprob
        return math.log(max(self.token.confidence or 0.0, LEAST))


def refine(run: Run) -> Tokens:
    """Segment by segment: write, score, mend."""
    cut = run.upload_cut
    with run.begin(cut=cut, stage=stage_of(run)) as begun:
        session, client = begun.session, begun.client
        session.append_ids(run.ids[session.position :])
        drafter = run.drafter(session)
        with run.at_edge():
            drafter.read_prompt(run.ids)
        segment = _Segment(run, session, client, drafter, cut)
        first_logprobs: list[float] = []
        logprobs: list[float] = []
        while run.remaining > 0:
            written = yield from segment.write_and_mend(first_logprobs)
            logprobs += [one.logprob for one in written if not one.token.provisional]
            run.count(client)
            account = run.account
            account.coherence = drafter.tracker.read()
            account.logprob_before, account.logprob_after = _mean(first_logprobs), _mean(logprobs)
            for one in written:
                run.emitted += 1
                yield replace(one.token, logprob=one.told_logprob)
        run.count(client)


class _Segment:
    """Writes and mends one segment after the other."""

    def __init__(
        self, run: Run, session: StageSession, client: CloudClient, drafter: Drafter, cut: int
    ) -> None:
        self._run = run
        self._session = session
        self._client = client
        self._drafter = drafter
        self._cut = cut
        self._is_given_up = False
        """Whether no cloud has come back for too long."""

    def write_and_mend(
        self, first_logprobs: list[float]
    ) -> Generator[Preview, None, list[_Written]]:
        """The next segment; adds the log-probabilities of what was written first."""
        run, rules = self._run, self._run.generation.refinement
        length = min(rules.segment, run.remaining)
        start, index = len(run.ids), len(run.account.tokens)
        written: list[_Written] = []
        fixed = 0  # tokens of the segment that are settled
        for turn in range(rules.passes + 1):
            self._write(written, length)
            fresh = written[fixed:]
            scored = yield from self._score(start, fixed, [one.token for one in written])
            if scored is None:
                for one in fresh:
                    one.token = replace(one.token, provisional=True)
                break
            for one, logprob in zip(fresh, scored.logprobs, strict=True):
                one.logprob = logprob
            for one, told in zip(fresh, scored.alternatives, strict=False):
                one.token = replace(one.token, alternatives=told)
            if turn == 0:
                first_logprobs += scored.logprobs
            fallen = first_fallen(_tokens(fresh, scored), rules) if turn < rules.passes else None
            kept = len(fresh) if fallen is None else fallen
            rejected = None if fallen is None else fresh[fallen].token.token_id
            replacement = None if fallen is None else scored.best_ids[fallen]
            run.account.passes.append(
                Pass(
                    first=index + fixed,
                    scored=len(fresh),
                    kept=kept,
                    mean_logprob=_mean(scored.logprobs) or 0.0,
                    rejected=rejected,
                    replacement=replacement,
                )
            )
            if fallen is None or replacement is None:
                break
            fixed += fallen
            del written[fixed:]
            self._replace(start + fixed, replacement)
            logprob = scored.best_logprobs[fallen]
            token = EmittedToken(
                token_id=replacement,
                source="cloud",
                confidence=math.exp(logprob),
                by=FULL_MODEL,
                alternatives=scored.alternatives[fallen] if scored.alternatives else (),
            )
            written.append(_Written(token, 0.0, logprob))
            fixed += 1
            if fixed == length or replacement in run.stop_ids:
                break
        return written

    def _write(self, written: list[_Written], length: int) -> None:
        """Fill the segment up from the exits."""
        run, drafter = self._run, self._drafter
        with run.at_edge():
            while len(written) < length:
                guess = drafter.guess(run.ids)
                made = answer_of(guess)
                reading = made.reading
                self._append(reading.token_id, reading.confidence, reading.entropy)
                token = EmittedToken(
                    token_id=reading.token_id,
                    source=reading.source,
                    confidence=reading.confidence,
                    by=made.by,
                )
                written.append(_Written(token, drafter.tracker.read().repetition))
                if reading.token_id in run.stop_ids:
                    return

    def _score(
        self, start: int, fixed: int, tokens: Sequence[EmittedToken]
    ) -> Generator[Preview, None, Scored | None]:
        """One pass of the full model over the segment of these tokens but the first, `fixed` ones.

        start: the segment's first position. None where there is no cloud any more.
        """
        run, client, scored, is_shown = self._run, self._client, None, False
        first = start + fixed
        if self._is_given_up:
            return None
        with run.at_edge():
            rows = self._session.hidden_at(self._cut, client.sent) if self._cut else None
        client.append(run.ids[client.sent :], rows)
        while scored is None:
            try:
                sampling = run.generation.sampling
                scored = client.score(run.ids[first:], sampling, while_up=not is_shown)
            except CloudAway:
                is_shown = True
                for index, token in enumerate(tokens, start - run.account.prompt_tokens):
                    yield Preview(replace(token, provisional=True), index)
            except Unreachable:
                self._is_given_up = True
                return None
        run.account.rounds += 1
        run.account.drafted += len(run.ids) - first
        run.account.cloud_seconds += scored.cloud_seconds
        return scored

    def _replace(self, position: int, token_id: int) -> None:
        """The text ends before `position` and goes on with `token_id`."""
        self._client.crop(position)
        self._session.crop(position)
        self._drafter.crop(position)
        del self._run.ids[position:]
        self._append(token_id, 1.0, math.nan)

    def _append(self, token_id: int, confidence: float, entropy: float) -> None:
        self._run.ids.append(token_id)
        self._drafter.write(token_id, confidence, entropy)
        self._session.append_ids([token_id])


def _tokens(written: Sequence[_Written], scored: Scored) -> list[ScoredToken]:
    return [
        ScoredToken(
            token_id=one.token.token_id,
            logprob=scored.logprobs[i],
            rank=scored.ranks[i],
            best_id=scored.best_ids[i],
            best_logprob=scored.best_logprobs[i],
            repetition=one.repetition,
        )
        for i, one in enumerate(written)
    ]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
