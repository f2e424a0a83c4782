"""Modes as loops that yield tokens as they become certain; `threshold` and `refine` have files.

`verified`   draft at the exits, the cloud verifies: exactly the full model's text
`cloud`      the cloud generates alone: the baseline and the fallback
`standalone` the edge alone: fast kernels, the exits' word is final
`whole`      the edge holds the whole model: the reference that `verified` equals

Ends (end-of-text tokens, stop strings) are the caller's to notice: it stops iterating.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import TypeAlias

from collm.policy.observation import Decision
from collm.policy.sampling import choose, log_probability
from collm.runtime.stage import Stage, StageSession
from collm.session.drafter import Guess
from collm.session.events import EmittedToken
from collm.session.run import Run

Tokens: TypeAlias = Generator[EmittedToken, None, None]

FULL_MODEL = "full model"
DEEPEST_EXIT = "deepest exit"


def verified(run: Run) -> Tokens:
    """Draft until unsure, verify, crop, go on."""
    stage = stage_of(run)
    cut = stage.layers.stop
    session = stage.open()
    with run.client(cut) as client:
        drafter = run.drafter(session)
        with run.at_edge():
            drafter.read_prompt(run.ids)

        def upload() -> None:
            """Rows at the cut for every position not sent yet; they travel in the background."""
            with run.at_edge():
                rows = session.hidden_at(cut, client.sent)
            client.append(run.ids[client.sent :], rows if cut else None)

        while run.remaining > 0:
            known, room = len(run.ids), run.remaining
            guesses: list[Guess] = []
            draft: list[Decision] = []
            while len(draft) < min(run.generation.draft, room - 1):
                with run.at_edge():
                    guess = drafter.guess(run.ids)
                guesses.append(guess)
                if guess.decision is None or guess.decision.reading.token_id in run.stop_ids:
                    break
                reading = guess.decision.reading
                if reading.cut == cut:
                    upload()  # the row is there: let it travel while the next one is made
                draft.append(guess.decision)
                run.ids.append(reading.token_id)
                drafter.write(reading.token_id, reading.confidence, reading.entropy)
                session.append_ids([reading.token_id])
            upload()
            drafted = [made.reading.token_id for made in draft]
            verdict = client.verify(drafted, run.generation.sampling)
            run.count(client)
            run.account.rounds += 1
            run.account.drafted += len(draft)
            run.account.cloud_seconds += verdict.cloud_seconds
            accepted = drafted[: verdict.accepted]
            for guess, token_id in zip(guesses, [*accepted, verdict.next_token], strict=False):
                drafter.learn(guess, token_id)
            del run.ids[known + verdict.accepted :]
            session.crop(len(run.ids))
            drafter.crop(len(run.ids))
            run.ids.append(verdict.next_token)
            probability = math.exp(verdict.logprob)
            drafter.write(verdict.next_token, probability, math.nan)
            for made in draft[: verdict.accepted]:
                yield run.emit_reading(made.reading, made.by)
            yield run.emit(verdict.next_token, "cloud", probability, FULL_MODEL)
            if run.remaining > 0:
                session.append_ids([verdict.next_token])
        run.account.coherence = drafter.tracker.read()
    run.count(client)


def cloud(run: Run) -> Tokens:
    """The cloud generates and streams; the edge only has the tokenizer."""
    with run.client(0) as client:
        client.append(run.ids, None)
        stop = sorted(run.stop_ids)
        run.account.rounds = 1
        for token in client.generate(run.remaining, stop, run.generation.sampling):
            run.account.cloud_seconds += token.cloud_seconds
            run.count(client)
            run.ids.append(token.token_id)
            yield run.emit(token.token_id, "cloud", math.exp(token.logprob), FULL_MODEL)


def standalone(run: Run) -> Tokens:
    """The first exit that is taken answers, for want of one the deepest, or the model's head."""
    stage = stage_of(run)
    session = stage.open(exact=False)
    drafter = run.drafter(session, exits_before_the_end(run))
    with run.at_edge():
        drafter.read_prompt(run.ids)
    while run.remaining > 0:
        with run.at_edge():
            guess = drafter.guess(run.ids)
            if stage.is_last and guess.decision is None:
                token_id, probability = _full_depth(run, session)
                token = run.emit(token_id, "edge", probability, FULL_MODEL)
            else:
                made = answer_of(guess)
                token = run.emit_reading(made.reading, made.by)
            entropy = guess.seen.last.entropy if guess.seen is not None else math.nan
            drafter.write(token.token_id, token.confidence or 0.0, entropy)
            run.ids.append(token.token_id)
            if run.remaining > 0:
                session.append_ids([token.token_id])
        run.account.coherence = drafter.tracker.read()
        yield token


def whole(run: Run) -> Tokens:
    """Every layer here, one token at a time, in exact mode."""
    session = stage_of(run).open()
    session.append_ids(run.ids)
    while run.remaining > 0:
        with run.at_edge():
            token_id, probability = _full_depth(run, session)
            run.ids.append(token_id)
            token = run.emit(token_id, "edge", probability, FULL_MODEL)
            if run.remaining > 0:
                session.append_ids([token_id])
        yield token


def answer_of(guess: Guess) -> Decision:
    """What the edge says when it has to say something: the deepest exit where none is taken."""
    if guess.decision is not None:
        return guess.decision
    assert guess.seen is not None  # the edge refuses to start without exits
    return Decision(guess.seen.last, DEEPEST_EXIT)


def stage_of(run: Run) -> Stage:
    """The edge's layers."""
    assert run.stage is not None  # the edge loads one for every mode but `cloud`
    return run.stage


def exits_before_the_end(run: Run) -> tuple[int, ...]:
    """The exits in use, without the whole model's own head."""
    return tuple(cut for cut in run.exits if cut < stage_of(run).architecture.layers)


def _full_depth(run: Run, session: StageSession) -> tuple[int, float]:
    logits = session.logits(session.position - 1)[-1]
    token_id = choose(logits, run.generation.sampling, len(run.ids), run.ids)
    return token_id, math.exp(log_probability(logits, token_id))
