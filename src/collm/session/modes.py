"""Modes as loops that yield tokens as they become certain; others have files.

`cloud`      the cloud generates alone: the baseline and the fallback
`standalone` the edge alone: fast kernels, the exits' word is final
`whole`      the edge holds the whole model: the reference that `verified` equals

Ends (end-of-text tokens, stop strings) are the caller's to notice: it stops iterating.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator
from typing import TypeAlias

from collm.policy.observation import Decision
from collm.policy.sampling import make
from collm.runtime.stage import Stage, StageSession
from collm.session.client import CloudClient
from collm.session.drafter import Guess
from collm.session.events import EmittedToken, Preview
from collm.session.run import Run

Tokens: TypeAlias = Generator[EmittedToken | Preview, None, None]

FULL_MODEL = "full model"
DEEPEST_EXIT = "deepest exit"
SERVER_EXIT = "edge server"
"""Its criterion is its own."""


def cloud(run: Run) -> Tokens:
    """The cloud generates and streams; the edge only has the tokenizer."""
    with run.begin(cut=0) as begun:
        yield from the_rest(run, begun.client, run.remaining)


def the_rest(run: Run, client: CloudClient, most: int) -> Generator[EmittedToken, None, None]:
    """At most so many tokens from the cloud alone, whose session begins at layer 0."""
    if client.sent < len(run.ids):
        client.append(run.ids[client.sent :], None)
    run.account.rounds += 1
    coming = client.generate(most, sorted(run.stop_ids), run.generation.sampling)
    for token in coming:
        run.account.cloud_seconds += token.cloud_seconds
        run.count(client)
        if run.steer is not None:
            run.steer.token(run, client, token.cloud_seconds)
        run.ids.append(token.token_id)
        if token.token_id in run.stop_ids:
            deque(coming, maxlen=0)  # the end of the request, so that the session can go on
        yield run.emit(
            token.token_id,
            "cloud",
            math.exp(token.logprob),
            FULL_MODEL,
            logprob=token.logprob,
            alternatives=token.alternatives,
        )


def standalone(run: Run) -> Tokens:
    """The first exit that is taken answers, for want of one the deepest, or the model's head."""
    stage = stage_of(run)
    with run.begin(stage=stage, exact=False) as begun:
        session = begun.session
        session.append_ids(run.ids[session.position :])
        cuts = exits_before_the_end(run)
        drafter = run.drafter(session, cuts)
        with run.at_edge():
            drafter.read_prompt(run.ids)
        while run.remaining > 0:
            with run.at_edge():
                guess = drafter.guess(run.ids)
                if stage.is_last and guess.decision is None:
                    token = _full_depth(run, session)
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


def exits_alone(run: Run) -> Generator[EmittedToken, None, None]:
    """The answer's end where the cloud that made it has gone: provisional."""
    session = stage_of(run).open(exact=False)
    session.append_ids(run.ids)
    drafter = run.drafter(session, exits_before_the_end(run))
    with run.at_edge():
        drafter.read_prompt(run.ids)
    while run.remaining > 0:
        with run.at_edge():
            made = answer_of(drafter.guess(run.ids))
        token = run.emit_reading(made.reading, made.by, provisional=True)
        drafter.write(token.token_id, token.confidence or 0.0, made.reading.entropy)
        run.ids.append(token.token_id)
        if run.remaining > 0:
            session.append_ids([token.token_id])
        yield token


def whole(run: Run) -> Tokens:
    """Every layer here, one token at a time, in exact mode."""
    stage = stage_of(run)
    with run.begin(stage=stage) as begun:
        session = begun.session
        session.append_ids(run.ids[session.position :])
        while run.remaining > 0:
            with run.at_edge():
                token = _full_depth(run, session)
                run.ids.append(token.token_id)
                if run.remaining > 0:
                    session.append_ids([token.token_id])
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


def _full_depth(run: Run, session: StageSession) -> EmittedToken:
    logits = session.logits(session.position - 1)[-1]
    allowed = run.allows.allowed(run.ids) if run.allows is not None else None
    made = make(logits, run.generation.sampling, len(run.ids), run.ids, allowed)
    return run.emit(
        made.token,
        "edge",
        math.exp(made.logprob),
        FULL_MODEL,
        logprob=made.logprob,
        alternatives=made.alternatives,
    )
