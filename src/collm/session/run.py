"""What the modes of one answer share: ids, settings, clocks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from collm import metrics
from collm.config import Generation, Way
from collm.errors import PromptError
from collm.policy.coherence import CoherenceTracker
from collm.policy.lookup import PromptLookup
from collm.policy.observation import Criterion, Reading
from collm.policy.sampling import Allows, Alternatives
from collm.runtime.constraints import Masks
from collm.runtime.stage import Stage, StageSession
from collm.session.client import CloudClient
from collm.session.costs import Costs
from collm.session.drafter import Drafter, Guess
from collm.session.events import Account, EmittedToken
from collm.session.pacing import Pacer
from collm.wire.messages import Verdict

LEAST: Final = 1e-12
"""A confidence whose logarithm is still finite."""


class Steer(Protocol):
    """Looks on, and says how to go on."""

    def way(self, run: Run, client: CloudClient, verdict: Verdict) -> Way | None:
        """How tokens are to be made from here on; None: as they are."""
        ...

    def judged(self, guess: Guess, token_id: int) -> None:
        """The full model has said `token_id` where the exits said `guess`."""
        ...

    def unusable(self, way: Way) -> None:
        """That way could not be gone: its blocks could not be loaded."""
        ...

    def token(self, run: Run, client: CloudClient, cloud_seconds: float) -> None:
        """The cloud, alone, has made a token."""
        ...


@dataclass(kw_only=True)
class Run:
    """One answer under way."""

    generation: Generation
    stop_ids: frozenset[int]
    """Tokens that end the answer."""
    ids: list[int]
    """Prompt, then what was emitted (and, at its end, the draft under way)."""
    account: Account
    stage: Stage | None
    exits: tuple[int, ...]
    criterion: Criterion
    costs: Costs
    is_boundary: Callable[[int], bool]
    """Whether a token ends a sentence."""
    first_cut: int
    """Where the cloud begins: hidden states at this cut go up."""
    open_client: Callable[[int, str], CloudClient] | None
    """Opens a session with the cloud that begins at the given layer, in a wire format."""
    max_positions: int
    wire: str = "f32"
    """How positions travel."""
    pacer: Pacer = field(default_factory=Pacer)
    """Keeps bulk back."""
    steer: Steer | None = None
    """Says how to go on, at every verify boundary."""
    place: Callable[[int, tuple[int, ...] | None], Stage] | None = None
    """Loads so many layers with these exits in the stage's place."""
    criterion_at: Callable[[float], Criterion] | None = None
    """The criterion of another threshold; None: it is not a threshold's to change."""
    oracle: Callable[[int], int | None] | None = None
    """Says what to draft at a position of the answer, instead of lookup, exits and criterion."""
    emitted: int = 0
    asked_at: float = -math.inf
    """When the caller asked for the next token, by `time.perf_counter`."""
    ready_at: float = -math.inf
    """When the prompt had been run."""

    allows: Allows | None = field(default=None, init=False)
    """What the answer is constrained to."""

    def __post_init__(self) -> None:
        sampling = self.generation.sampling
        if sampling.constraint is None:
            return
        constraint = replace(sampling.constraint, start=len(self.ids))
        sampling = replace(sampling, constraint=constraint)
        self.generation = replace(self.generation, sampling=sampling)
        if self.stage is not None:
            self.allows = Masks(self.stage.artifact, constraint)

    @property
    def is_final(self) -> bool:
        """Whether what the exits say needs nobody's consent."""
        return self.generation.mode in ("standalone", "threshold")

    @property
    def upload_cut(self) -> int:
        """Where the cloud takes over from the edge's last layer, or the first where ids travel."""
        return 0 if self.wire == "ids" or self.stage is None else self.stage.layers.stop

    @property
    def remaining(self) -> int:
        """Tokens that may still be emitted."""
        return min(self.generation.max_tokens - self.emitted, self.max_positions - len(self.ids))

    @property
    def due(self) -> float:
        """When the next token has to be there; infinity without a deadline."""
        seconds = self.generation.deadline_seconds
        return max(self.asked_at, self.ready_at) + seconds if seconds else math.inf

    def client(self, cut: int) -> CloudClient:
        """A session with the cloud. Raises PromptError where there is none to ask."""
        if self.open_client is None:
            raise PromptError(
                f"mode {self.generation.mode} needs a cloud; add --cloud HOST:PORT or "
                "--cloud spawn, or use --mode standalone"
            )
        return self.open_client(cut, self.wire)

    def drafter(self, session: StageSession, cuts: tuple[int, ...] | None = None) -> Drafter:
        """The exits of `session`, which holds the prompt, under this answer's criterion."""
        return Drafter(
            session,
            self.exits if cuts is None else cuts,
            self.criterion,
            self.generation.sampling,
            tracker=CoherenceTracker(is_boundary=self.is_boundary),
            costs=self.costs,
            lookup=PromptLookup(self.ids) if self.generation.lookup else None,
            oracle=self.oracle,
            allows=self.allows,
            alternatives=self.generation.sampling.top_logprobs if self.is_final else 0,
        )

    def emit(
        self,
        token_id: int,
        source: str,
        confidence: float,
        by: str,
        *,
        logprob: float | None = None,
        alternatives: Alternatives = (),
    ) -> EmittedToken:
        """The next token of the answer. logprob: that of the confidence where none is given."""
        self.emitted += 1
        metrics.EXITS.labels(source).inc()
        return EmittedToken(
            token_id=token_id,
            source=source,
            confidence=confidence,
            by=by,
            logprob=math.log(max(confidence, LEAST)) if logprob is None else logprob,
            alternatives=alternatives,
        )

    def emit_reading(
        self,
        reading: Reading,
        by: str,
        *,
        provisional: bool = False,
        judged: tuple[float | None, Alternatives] | None = None,
    ) -> EmittedToken:
        """The next token of the answer, as an exit said it.

        judged: what the full model told of it, instead of what the exit did.
        """
        logprob, alternatives = judged or (None, reading.alternatives)
        token = self.emit(
            reading.token_id,
            reading.source,
            reading.confidence,
            by,
            logprob=logprob,
            alternatives=alternatives,
        )
        return replace(token, provisional=True) if provisional else token

    def count(self, client: CloudClient) -> None:
        """Bring the account of the link and the cloud up to date."""
        account = self.account
        account.bytes_up, account.bytes_down = client.bytes_up, client.bytes_down
        account.reconnects = client.connection.reconnects
        account.replayed_bytes = client.connection.replayed
        account.cloud_rows, account.cloud_heads = client.rows_run, client.heads_run

    @contextmanager
    def at_edge(self) -> Iterator[None]:
        """Count the time inside as the edge's."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.account.edge_seconds += time.perf_counter() - started
