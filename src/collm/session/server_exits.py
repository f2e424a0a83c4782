"""Exits of an edge server: what the device could not answer may be answered here.

A server sees what it is asked about, not who wrote the rest of the text or how sure they were.
Criteria that look at the text so far see it from the first question on; what the server did not
say itself counts as certain there, and there is no drift.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from collm.config import Sampling
from collm.errors import PlacementError
from collm.model.artifact import Artifact
from collm.policy.coherence import CoherenceTracker, sentence_boundary
from collm.policy.observation import Criterion
from collm.policy.sampling import Allows
from collm.runtime.stage import Stage, StageSession
from collm.session.costs import Costs
from collm.session.drafter import Drafter, Guess
from collm.session.policies import load_criterion


@dataclass(frozen=True, kw_only=True)
class ServerExits:
    """Which exits a server asks, and what lets their word pass; its sessions share one."""

    cuts: tuple[int, ...]
    criterion: Criterion
    is_boundary: Callable[[int], bool]
    """Whether a token ends a sentence."""
    costs: Costs = field(default_factory=Costs)


def server_exits(
    artifact: Artifact, layers: range, cuts: Sequence[int], criterion: str
) -> ServerExits:
    """Raises PlacementError for exits that are not a server's of these layers to ask, PromptError
    and ArtifactError for criteria that are unknown or that the artifact cannot have."""
    offered = askable(artifact, layers)
    for cut in cuts:
        if cut not in offered:
            entry = artifact.manifest.exit_at(cut)
            reads = [read for read in (entry.feed if entry else ()) if read < layers.start]
            why = f"; this one also reads the states at {_words(reads)}" if reads else ""
            raise PlacementError(
                f"exit {cut}: of the artifact's exits a server of layers {layers.start} to "
                f"{layers.stop} can ask {_words(offered)}{why}"
            )
    tokenizer = artifact.tokenizer()
    return ServerExits(
        cuts=tuple(sorted(set(cuts))),
        criterion=load_criterion(criterion, artifact),
        is_boundary=sentence_boundary(lambda token: tokenizer.decode([token])),
    )


def askable(artifact: Artifact, layers: range) -> list[int]:
    """The exits that a server of these layers can ask, with all that they read."""
    return [
        entry.cut
        for entry in artifact.manifest.exits
        if layers.start < entry.cut <= layers.stop
        and all(read >= layers.start for read in entry.feed)
    ]


def _words(cuts: Sequence[int]) -> str:
    return ", ".join(map(str, cuts)) or "none"


class SessionExits:
    """A server's exits in one session, which begins at layer `start` of its stage."""

    def __init__(self, stage: Stage, session: StageSession, start: int, how: ServerExits) -> None:
        self._session = session
        self._how = how
        self._cuts = tuple(
            cut
            for cut in how.cuts
            if cut > start and all(read >= start for read in stage.exits[cut].entry.feed)
        )
        self._tracker = CoherenceTracker(is_boundary=how.is_boundary)
        self._start: int | None = None
        """The text's length when first asked."""
        self._seen = 0
        """Positions that the tracker knows, those before the first question included."""
        self._said: dict[int, tuple[int, float, float]] = {}
        """Token, confidence and entropy of what was said for a position."""

    def guess(
        self, ids: Sequence[int], sampling: Sampling, allows: Allows | None = None
    ) -> Guess | None:
        """The next token after `ids`, which the session holds; None where there is no exit."""
        if not self._cuts:
            return None
        self._catch_up(ids)
        how = self._how
        drafter = Drafter(
            self._session,
            self._cuts,
            how.criterion,
            sampling,
            tracker=self._tracker,
            costs=how.costs,
            allows=allows,
            alternatives=sampling.top_logprobs,
        )
        guess = drafter.guess(ids)
        if guess.decision is not None:
            made = guess.decision.reading
            self._said[len(ids)] = made.token_id, made.confidence, made.entropy
        return guess

    def learn(self, guess: Guess, token_id: int) -> None:
        """The full model's choice where `guess` was made has become known."""
        if guess.seen is not None:
            self._how.criterion.learn(guess.seen, token_id)

    def crop(self, position: int) -> None:
        """Forget the text from `position` on."""
        if self._start is None or position >= self._seen:
            return
        self._start = min(self._start, position)
        self._tracker.crop(position - self._start)
        self._seen = position
        self._said = {at: said for at, said in self._said.items() if at < position}

    def _catch_up(self, ids: Sequence[int]) -> None:
        if self._start is None:
            self._start = self._seen = len(ids)
        for position in range(self._seen, len(ids)):
            said = self._said.pop(position, None)
            if said is None or said[0] != ids[position]:
                said = ids[position], 1.0, math.nan
            self._tracker.push(*said)
        self._seen = len(ids)
