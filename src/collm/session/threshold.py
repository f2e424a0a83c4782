"""`threshold`: CE-CoLLM's own mode (arXiv 2411.02829).

The first exit whose word the criterion takes emits the token; where none is taken the cloud
finishes that one token. Hidden states at the first cut go up in the background from the moment
they exist, each position once. The cloud runs what it was sent when it is asked, in one batch.
An edge server on the way may answer from an exit of its own instead of asking further up.
The text is the exits' and the full model's mixed: what that costs, `collm eval quality` measures.

With a deadline the cloud is asked where it usually answers in time, and no token waits for it
longer than there is time: it is then the best exit's, named `deadline`. An answer that comes
later still tells how long the cloud takes.

While no cloud can be reached the exits write on, shown as previews; the text is made anew from
there when one is back. Where none comes back the rest is the exits', marked provisional.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from functools import partial

from collm.errors import CloudAway, LinkTimeout, Unreachable
from collm.policy.criteria import DEADLINE
from collm.policy.observation import most_confident
from collm.session.client import CloudClient
from collm.session.events import EmittedToken, Preview
from collm.session.modes import FULL_MODEL, SERVER_EXIT, Tokens, answer_of, stage_of
from collm.session.offline import Offline
from collm.session.run import Run
from collm.wire.messages import Verdict

_PROBE_TOKENS = 16
"""A cloud that seems too slow is asked again, without waiting, after so many tokens."""


def threshold(run: Run) -> Tokens:
    """Exit where the criterion says so, ask the cloud for the next token otherwise."""
    first_cut = run.first_cut
    with run.begin(cut=first_cut, stage=stage_of(run), exact=False) as begun:
        session, client = begun.session, begun.client

        def upload(cut: int = first_cut) -> None:
            """Rows at the first cut that have not gone up yet, before layers beyond `cut` run."""
            if cut >= first_cut and client.sent < len(run.ids):
                rows = session.hidden_at(first_cut, client.sent) if first_cut else None
                client.append(run.ids[client.sent :], rows)

        session.append_ids(run.ids[session.position :])
        drafter = run.drafter(session)
        cloud = _Cloud(run, client, upload)
        offline = Offline(run, session, drafter, client.connection)
        with run.at_edge():
            if first_cut <= run.exits[0]:
                upload()
            drafter.read_prompt(run.ids)
            if run.generation.deadline_seconds:
                # The first token's clock starts when the prompt has been run to its end.
                upload()
                for cut in run.exits:
                    session.exit_at(cut)
                cloud.probe()
        run.ready_at = time.perf_counter()
        while run.remaining > 0:
            with run.at_edge():
                guess = drafter.guess(
                    run.ids, due=run.due, cloud_seconds=cloud.seconds, upload=upload
                )
            assert guess.seen is not None  # the edge refuses to start without exits
            made, verdict = guess.decision, None
            if made is None:
                verdict = yield from cloud.finish(partial(offline.previews, guess))
            if verdict is not None:
                if not verdict.exit_cut:
                    drafter.learn(guess, verdict.next_token)
                token = _answered(run, verdict)
            elif made is not None or cloud.is_given_up:
                made = answer_of(guess)
                token = run.emit_reading(made.reading, made.by, provisional=cloud.is_given_up)
            else:
                token = run.emit_reading(most_confident(guess.seen.readings), DEADLINE)
            run.account.degraded += token.by == DEADLINE
            drafter.write(token.token_id, token.confidence or 0.0, guess.seen.last.entropy)
            run.ids.append(token.token_id)
            if run.remaining > 0:
                session.append_ids([token.token_id])
            run.count(client)
            run.account.coherence = drafter.tracker.read()
            yield token
            offline.settled()
            if token.by == DEADLINE:
                cloud.was_too_slow()
        run.count(client)


def _answered(run: Run, verdict: Verdict) -> EmittedToken:
    """The token of whoever answered: the full model, or an exit of a server on the way."""
    probability = min(1.0, math.exp(verdict.logprob))
    is_exit = bool(verdict.exit_cut)
    return run.emit(
        verdict.next_token,
        f"server@{verdict.exit_cut}" if is_exit else "cloud",
        probability,
        SERVER_EXIT if is_exit else FULL_MODEL,
        logprob=verdict.logprob,
        alternatives=verdict.alternatives_at(verdict.accepted),
    )


class _Cloud:
    """Asks the cloud for single tokens, never longer than there is time, and keeps the measure."""

    def __init__(self, run: Run, client: CloudClient, upload: Callable[[], None]) -> None:
        self._run = run
        self._upload = upload
        self._client = client
        self._unasked = 0
        self._asked_at = 0.0
        self._run_to = 0
        """Positions that the cloud has run, or will have with the question under way."""
        self._rows = 0
        """Those that it runs for the last question."""
        self.is_given_up = False
        """Whether no cloud has come back for too long."""

    @property
    def seconds(self) -> float:
        """What asking takes, once the cloud has caught up."""
        self._hear_late()
        return math.inf if self.is_given_up else self._run.costs.cloud.seconds

    def finish(
        self, write_on: Callable[[], Generator[Preview, None, bool]]
    ) -> Generator[Preview, None, Verdict | None]:
        """The full model's next token; None where it does not come in time, or at all.

        write_on: what to do while there is no cloud; says whether it could go on with that.
        """
        self._hear_late()
        self._upload()
        timed, waits = self._run.due < math.inf, False
        while not self.is_given_up:
            if not self._client.outstanding:
                self._ask()
            left = self._run.due - time.perf_counter() - _SLACK_SECONDS
            try:
                verdict = self._client.collect(
                    max(0.0, left) if timed else None, while_up=not timed and not waits
                )
            except LinkTimeout as error:
                if timed:
                    return None
                if not isinstance(error, CloudAway):
                    raise
                waits = not (yield from write_on())
                continue
            except Unreachable:
                self.is_given_up = True
                break
            self._heard(verdict, time.perf_counter() - self._asked_at)
            if verdict.base == self._client.sent - 1:
                return verdict  # else it is the answer to an earlier question, given up then
        return None

    def was_too_slow(self) -> None:
        """A token did without the cloud; now and then see whether it has become faster."""
        self._unasked += 1
        if self._unasked >= _PROBE_TOKENS:
            self.probe()

    def probe(self) -> None:
        """Ask without waiting."""
        self._unasked = 0
        if not self._client.outstanding:
            self._upload()
            self._ask()

    def _ask(self) -> None:
        self._run.account.rounds += 1
        self._rows, self._run_to = self._client.sent - self._run_to, self._client.sent
        self._asked_at = time.perf_counter()
        self._client.ask(self._run.generation.sampling, may_exit=True)

    def _hear_late(self) -> None:
        if self.is_given_up:
            return
        try:
            late = self._client.late()
        except Unreachable:
            self.is_given_up = True
            return
        for verdict, seconds in late:
            self._heard(verdict, seconds)

    def _heard(self, verdict: Verdict, seconds: float) -> None:
        self._run.account.cloud_seconds += verdict.cloud_seconds
        self._run.costs.cloud.took(seconds, verdict.cloud_seconds, self._rows)


_SLACK_SECONDS = 0.004
"""Left for what comes after a wait that ran out."""
