"""The modes: each a loop that yields tokens as they become certain.

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

from collm.policy.sampling import choose, log_probability
from collm.runtime.stage import Stage, StageSession
from collm.session.client import CloudClient
from collm.session.drafter import Drafter, Guess
from collm.session.events import EmittedToken
from collm.session.run import Run

Tokens: TypeAlias = Generator[EmittedToken, None, None]


def verified(run: Run) -> Tokens:
    """Draft until unsure, verify, crop, go on."""
    stage = _stage(run)
    cut = stage.layers.stop
    session = stage.open()
    drafter = Drafter(session, run.exits, run.rule, run.generation.sampling)
    with run.client(cut) as client:

        def upload() -> None:
            """Rows at the cut for every position not sent yet; they travel in the background."""
            with run.at_edge():
                rows = session.hidden_at(cut, client.sent)
            client.append(run.ids[client.sent :], rows if cut else None)

        session.append_ids(run.ids)
        while run.remaining > 0:
            known, room = len(run.ids), run.remaining
            draft: list[Guess] = []
            while run.rule.goes_on(len(draft), room):
                with run.at_edge():
                    guess = drafter.guess(run.ids)
                if guess is None or not guess.taken or guess.token_id in run.stop_ids:
                    break
                if guess.cut == cut:
                    upload()  # the row is there: let it travel while the next one is made
                draft.append(guess)
                run.ids.append(guess.token_id)
                session.append_ids([guess.token_id])
            upload()
            verdict = client.verify([g.token_id for g in draft], run.generation.sampling)
            _count(run, client)
            run.account.rounds += 1
            run.account.drafted += len(draft)
            run.account.cloud_seconds += verdict.cloud_seconds
            del run.ids[known + verdict.accepted :]
            session.crop(len(run.ids))
            run.ids.append(verdict.next_token)
            for guess in draft[: verdict.accepted]:
                yield _emit(run, guess.token_id, f"exit@{guess.cut}", guess.confidence)
            yield _emit(run, verdict.next_token, "cloud", math.exp(verdict.logprob))
            if run.remaining > 0:
                session.append_ids([verdict.next_token])
    _count(run, client)


def cloud(run: Run) -> Tokens:
    """The cloud generates and streams; the edge only has the tokenizer."""
    with run.client(0) as client:
        client.append(run.ids, None)
        stop = sorted(run.stop_ids)
        run.account.rounds = 1
        for token in client.generate(run.remaining, stop, run.generation.sampling):
            run.account.cloud_seconds += token.cloud_seconds
            _count(run, client)
            run.ids.append(token.token_id)
            yield _emit(run, token.token_id, "cloud", math.exp(token.logprob))


def standalone(run: Run) -> Tokens:
    """The first confident exit answers, for want of one the deepest, or the model's own head."""
    stage = _stage(run)
    session = stage.open(exact=False)
    cuts = [cut for cut in run.exits if cut < stage.architecture.layers]
    drafter = Drafter(session, cuts, run.rule, run.generation.sampling)
    session.append_ids(run.ids)
    while run.remaining > 0:
        with run.at_edge():
            guess = drafter.guess(run.ids)
            if stage.is_last and (guess is None or not guess.taken):
                token_id, confidence, source = *_full_depth(run, session), "edge"
            else:
                assert guess is not None  # the edge refuses to start without exits
                token_id, confidence, source = guess.token_id, guess.confidence, f"exit@{guess.cut}"
            run.ids.append(token_id)
            if run.remaining > 0:
                session.append_ids([token_id])
        yield _emit(run, token_id, source, confidence)


def whole(run: Run) -> Tokens:
    """Every layer here, one token at a time, in exact mode."""
    session = _stage(run).open()
    session.append_ids(run.ids)
    while run.remaining > 0:
        with run.at_edge():
            token_id, confidence = _full_depth(run, session)
            run.ids.append(token_id)
            if run.remaining > 0:
                session.append_ids([token_id])
        yield _emit(run, token_id, "edge", confidence)


def _full_depth(run: Run, session: StageSession) -> tuple[int, float]:
    logits = session.logits(session.position - 1)[-1]
    token_id = choose(logits, run.generation.sampling, len(run.ids), run.ids)
    return token_id, math.exp(log_probability(logits, token_id))


def _emit(run: Run, token_id: int, source: str, confidence: float) -> EmittedToken:
    run.emitted += 1
    return EmittedToken(token_id=token_id, source=source, confidence=confidence)


def _stage(run: Run) -> Stage:
    assert run.stage is not None  # the edge loads one for every mode but `cloud`
    return run.stage


def _count(run: Run, client: CloudClient) -> None:
    run.account.bytes_up, run.account.bytes_down = client.bytes_up, client.bytes_down
