"""A cloud that answers alone: token by token, or drafting with its own exits.

Self-speculation (Zhang et al. 2023, arXiv 2309.08168; LayerSkip, Elhoushi et al. 2024, arXiv
2404.16710), all in one session of the whole stage: a drafted token runs to its exit's cut only,
and judging the draft runs the deeper layers for all of it in one batch. By the two-row rule that
gives what one token at a time gives, bit for bit; one at a time is a draft of nothing.

The first token is never drafted for: it streams as early as without exits.

Not covered: drafts looked up in the text, a draft length that follows how often drafts are right.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from collm.errors import ContextFull, PlacementError
from collm.model.artifact import Artifact
from collm.policy.coherence import CoherenceTracker, sentence_boundary
from collm.policy.observation import Criterion
from collm.policy.sampling import Allows, Made
from collm.runtime.stage import StageSession
from collm.session.costs import Costs
from collm.session.drafter import Drafter, Guess
from collm.session.judging import judge
from collm.session.policies import load_criterion
from collm.wire.messages import Finished, Generate, Token


@dataclass(frozen=True, kw_only=True)
class SelfDraft:
    """How a cloud drafts; its sessions share one, and what its criterion learns."""

    cuts: tuple[int, ...]
    """Of the exits that its stage has loaded for this."""
    criterion: Criterion
    draft: int
    """Most tokens drafted before they are judged."""
    is_boundary: Callable[[int], bool]
    """Whether a token ends a sentence."""
    costs: Costs = field(default_factory=Costs)


def self_draft(
    artifact: Artifact, exits: Sequence[int], *, criterion: str, draft: int
) -> SelfDraft:
    """Raises PlacementError for exits that the artifact lacks, PromptError and ArtifactError for
    criteria that are unknown or that it cannot have."""
    layers = artifact.architecture.layers
    offered = [entry.cut for entry in artifact.manifest.exits if entry.cut < layers]
    for cut in exits:
        if cut not in offered:
            raise PlacementError(
                f"exit {cut}: this cloud can draft with the artifact's exits below layer "
                f"{layers}, at {', '.join(map(str, offered)) or 'none'}"
            )
    tokenizer = artifact.tokenizer()
    return SelfDraft(
        cuts=tuple(sorted(set(exits))),
        criterion=load_criterion(criterion, artifact),
        draft=draft,
        is_boundary=sentence_boundary(lambda token: tokenizer.decode([token])),
    )


def generate(
    session: StageSession,
    ids: list[int],
    message: Generate,
    how: SelfDraft | None,
    spent: float = 0.0,
    allows: Allows | None = None,
) -> Iterator[Token | Finished]:
    """Answer a Generate, with drafts if told how.

    ids: those of the session's positions; both go on with the text. Between replies they hold
    nothing that may still be taken back, and the rows from the last position on may be asked for.
    Drafting needs a session that keeps the rows at the first exit. spent: seconds that the text
    before the answer has taken already; the first token tells of them. allows: what the answer is
    constrained to.
    """
    drafts = _Drafts(session, ids, message, how, allows) if how is not None else None
    seen = set(ids)
    left = message.max_tokens
    while left:
        started = time.perf_counter()
        known = len(ids)
        draft = drafts.propose(min(left - 1, session.max_positions - known)) if drafts else []
        logits = session.logits(known - 1)
        made = judge(logits, draft, message.sampling, known, seen, ids, allows)
        rejected = len(draft) + 1 - len(made)
        if rejected:
            session.crop(session.position - rejected)
            del ids[session.position :]
        if drafts:
            drafts.settle(made)
        seconds, spent = spent + time.perf_counter() - started, 0.0
        for position, (token, logprob, alternatives) in enumerate(made, known):
            yield Token(
                epoch=message.epoch,
                position=position,
                token_id=token,
                logprob=logprob,
                cloud_seconds=seconds,
                rejected=rejected,
                alternatives=alternatives,
            )
            seconds, rejected = 0.0, 0  # the first token tells of the whole round
        left -= len(made)
        if token in message.stop_ids:
            yield Finished(epoch=message.epoch, reason="stop")
            return
        if left:
            try:
                session.append_ids([token])
            except ContextFull:
                yield Finished(epoch=message.epoch, reason="context")
                return
            ids.append(token)
    yield Finished(epoch=message.epoch, reason="length")


class _Drafts:
    """The drafts of one answer."""

    def __init__(
        self,
        session: StageSession,
        ids: list[int],
        message: Generate,
        how: SelfDraft,
        allows: Allows | None,
    ) -> None:
        self._session = session
        self._ids = ids
        self._stop_ids = message.stop_ids
        self._most = how.draft
        self._prompt = len(ids)
        self._guesses: list[Guess] = []
        self._drafter = Drafter(
            session,
            how.cuts,
            how.criterion,
            message.sampling,
            tracker=CoherenceTracker(is_boundary=how.is_boundary),
            costs=how.costs,
            allows=allows,
        )
        self._drafter.read_prompt(ids)

    def propose(self, room: int) -> list[int]:
        """Go on with the text until the exits are unsure, by `room` tokens at most."""
        self._guesses, draft = [], list[int]()
        most = min(self._most, room) if len(self._ids) > self._prompt else 0
        while len(draft) < most:
            guess = self._drafter.guess(self._ids)
            self._guesses.append(guess)
            if guess.decision is None or guess.decision.reading.token_id in self._stop_ids:
                break
            reading = guess.decision.reading
            draft.append(reading.token_id)
            self._ids.append(reading.token_id)
            self._drafter.write(reading.token_id, reading.confidence, reading.entropy)
            self._session.append_ids([reading.token_id])
        return draft

    def settle(self, made: Sequence[Made]) -> None:
        """The full model says so; the text is back at what it accepted, without the last one."""
        for guess, one in zip(self._guesses, made, strict=False):
            self._drafter.learn(guess, one.token)
        self._drafter.crop(len(self._ids))
        self._drafter.write(made[-1].token, math.exp(made[-1].logprob), math.nan)
