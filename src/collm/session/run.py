"""What the modes of one answer share: ids, settings, clocks."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Final, Protocol

from collm import metrics
from collm.config import Generation, Way
from collm.errors import Cancelled, PromptError, Refused
from collm.policy.coherence import CoherenceTracker
from collm.policy.lookup import PromptLookup
from collm.policy.observation import Criterion, Reading
from collm.policy.sampling import Allows, Alternatives
from collm.runtime.constraints import Masks
from collm.runtime.stage import Stage, StageSession
from collm.session.asking import Counts
from collm.session.client import CloudClient
from collm.session.costs import Costs
from collm.session.drafter import Drafter, Guess
from collm.session.events import Account, EmittedToken
from collm.session.keeping import Keeper, Kept, Shape
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
    open_client: Callable[[int, str, Callable[[], bool]], CloudClient] | None
    """Opens a session with the cloud that begins at the given layer, in a wire format; the last
    says whether the answer was broken off meanwhile."""
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
    keeper: Keeper | None = None
    """Has what earlier answers left, and takes what this one leaves."""
    owner: str = ""
    """Whose answer it is; only their own earlier ones are gone on with."""
    turn: AbstractContextManager[None] = field(default_factory=nullcontext)
    """Held while something is computed, where several answers share a stage."""
    broken_off: threading.Event = field(default_factory=threading.Event)
    """Set, from any thread, where nobody wants the answer any more."""
    counts_before: Counts = field(default_factory=Counts)
    """What the cloud session taken up had counted before."""
    emitted: int = 0
    asked_at: float = -math.inf
    """When the caller asked for the next token, by `time.perf_counter`."""
    ready_at: float = -math.inf
    """When the prompt had been run."""

    allows: Allows | None = field(default=None, init=False)
    """What the answer is constrained to."""

    _computes_since: float | None = field(default=None, init=False)

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

    def begin(
        self, *, cut: int | None = None, stage: Stage | None = None, exact: bool = True
    ) -> Begun:
        """What the answer is made with: a session of `stage`, and one of a cloud from `cut` on.

        It is taken up where the conversation's last answer left it, and left for the next one.
        Raises PromptError where there is no cloud to ask.
        """
        return Begun(self, Shape(stage, exact, cut, self.wire if cut else "ids", self.owner))

    def client(self, cut: int) -> CloudClient:
        """A fresh session with the cloud. Raises PromptError where there is none to ask."""
        if self.open_client is None:
            raise PromptError(
                f"mode {self.generation.mode} needs a cloud; add --cloud HOST:PORT or "
                "--cloud spawn, or use --mode standalone"
            )
        return self.open_client(cut, self.wire, self.broken_off.is_set)

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
        account, counts, before = self.account, client.counts(), self.counts_before
        account.bytes_up = counts.bytes_up - before.bytes_up
        account.bytes_down = counts.bytes_down - before.bytes_down
        account.reconnects = counts.reconnects - before.reconnects
        account.replayed_bytes = counts.replayed_bytes - before.replayed_bytes
        account.cloud_rows = counts.rows_run - before.rows_run
        account.cloud_heads = counts.heads_run - before.heads_run

    @contextmanager
    def at_edge(self) -> Iterator[None]:
        """Compute, when it is this answer's turn; the time inside counts as the edge's."""
        with self.turn:
            self._computes_since = time.perf_counter()
            try:
                yield
            finally:
                self.account.edge_seconds += time.perf_counter() - self._computes_since
                self._computes_since = None

    def pause(self) -> None:
        """Let others compute, in the midst of a long run. Raises Cancelled."""
        if self._computes_since is not None:
            self.account.edge_seconds += time.perf_counter() - self._computes_since
            self.turn.__exit__(None, None, None)
            self.turn.__enter__()
            self._computes_since = time.perf_counter()
        self.check()

    def check(self) -> None:
        """Raise Cancelled where nobody wants the answer any more."""
        if self.broken_off.is_set():
            raise Cancelled("the answer was broken off")


class Begun:
    """What one answer is made with; see `Run.begin`. Its end keeps both sides, or closes them."""

    def __init__(self, run: Run, shape: Shape) -> None:
        self._run = run
        self.shape = shape
        self._session: StageSession | None = None
        self._client: CloudClient | None = None

    @property
    def session(self) -> StageSession:
        """The edge's side; holds the first `run.account.reused_tokens` positions."""
        assert self._session is not None  # asked for with a stage
        return self._session

    @property
    def client(self) -> CloudClient:
        """The cloud's side; holds the same."""
        assert self._client is not None  # asked for with a cut
        return self._client

    def move(self, stage: Stage, session: StageSession) -> None:
        """The answer goes on with another session, of that stage."""
        self.session.close()
        self._session = session
        session.pause = self._run.pause
        self.shape = replace(self.shape, stage=stage)
        if self._run.keeper is not None and stage.exits:
            session.keep_rows(min(stage.exits))

    def leave_to_cloud(self) -> None:
        """The answer goes on without the edge's layers."""
        self.session.close()
        self._session = None
        self.shape = replace(self.shape, stage=None, exact=True)

    def __enter__(self) -> Begun:
        run, shape = self._run, self.shape
        found = run.keeper.take(shape, run.ids) if run.keeper is not None else None
        run.account.reused_tokens, run.counts_before = 0, Counts()
        if found is not None:
            kept, run.account.reused_tokens = found
            self._session, self._client = kept.session, kept.client
        else:
            if shape.stage is not None:
                self._session = shape.stage.open(exact=shape.exact)
                if run.keeper is not None and run.exits:
                    # The coherence of a later turn needs them.
                    self._session.keep_rows(run.exits[0])
            if shape.cut is not None:
                self._client = self._fresh_client(shape.cut)
        if self._session is not None:
            self._session.pause = run.pause
        if found is not None and self._client is not None:
            run.counts_before = self._client.counts()
            self._client.connection.is_unwanted = run.broken_off.is_set
        return self

    def _fresh_client(self, cut: int) -> CloudClient:
        keeper = self._run.keeper
        while True:
            try:
                return self._run.client(cut)
            except Refused as error:
                # It may be what we keep there for later that takes the room.
                if error.code != "busy" or keeper is None or not keeper.shed():
                    raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        run, client, session = self._run, self._client, self._session
        sure = len(run.ids) if self.shape.exact else run.account.prompt_tokens
        left = Kept(self.shape, list(run.ids), session, client, sure)
        is_sound = kind is None or kind is GeneratorExit
        if kind is Cancelled:
            # In the midst of the prompt: both sides hold a beginning of it. Later it may be that
            # one of them was just being changed.
            is_sound = not run.emitted
        if session is not None:
            session.pause = None
        if client is not None:
            client.connection.is_unwanted = None
            is_sound = is_sound and client.can_be_kept
            left.shape = replace(self.shape, cut=client.cut, wire=client.wire_format)
        if run.keeper is not None and is_sound:
            run.keeper.put(left)
        else:
            left.close()
