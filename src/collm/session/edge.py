"""The edge: a device's share of the model, and answers from it.

::

    edge = Edge(artifact, mode="verified", placement=15, connect=lambda: connect("host:50051"))
    answer = edge.answer(edge.tokenizer.encode_chat([...]), Generation())
    for piece in answer:
        print(piece.text, end="")
    answer.account.rounds
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache, partial

from collm.config import Generation
from collm.errors import PlacementError, PromptError, Unreachable
from collm.limits import DEFAULT_LIMITS, Limits
from collm.link.base import Closing, Link
from collm.link.clock import REAL_CLOCK, Clock
from collm.link.dialer import Dialer
from collm.model.artifact import Artifact, check_placement
from collm.policy.coherence import sentence_boundary
from collm.policy.criteria import Deadline
from collm.policy.observation import Criterion
from collm.runtime.constraints import check_constraint
from collm.runtime.draft_stage import DraftStage
from collm.runtime.stage import Stage
from collm.session import modes
from collm.session.answer import Answer
from collm.session.auto import Course, auto
from collm.session.client import CloudClient
from collm.session.costs import Costs
from collm.session.events import Account
from collm.session.keeping import Keeper
from collm.session.oracle import Oracle
from collm.session.pacing import Pacer
from collm.session.placed import exits_in_use
from collm.session.policies import load_criterion
from collm.session.pressure import Pressure
from collm.session.probing import Prober
from collm.session.refine import refine
from collm.session.run import Run, Steer
from collm.session.steering import Steering, ways_of
from collm.session.text import TextOut
from collm.session.threshold import threshold
from collm.session.verified import verified
from collm.wire.codec import LOSSLESS, WIRE_FORMATS

_MOST_CRITERIA = 64
_LOOPS: dict[str, Callable[[Run], modes.Tokens]] = {
    "auto": auto,
    "verified": verified,
    "threshold": threshold,
    "refine": refine,
    "standalone": modes.standalone,
    "cloud": modes.cloud,
}


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What edges of one process have in common."""

    stage: Stage | None = None
    """Has blocks and exits that need not be loaded again."""
    keeper: Keeper | None = None
    """Keeps what answers leave for the next turn of their conversation."""
    turn: AbstractContextManager[None] = field(default_factory=nullcontext)
    """Whose turn it is to compute."""


class Edge(Closing):
    """Loads what `mode` and `placement` need, and nothing else.

    placement: layers on this device, a cut, 0 or all of them. exits: cuts whose exits are
    used, None for all at or below the placement. connect: makes a link to the cloud.
    wire: how positions travel: as hidden states in f32, f16, int8 or int4, or as token ids alone
    (`ids`: the cloud runs the edge's layers itself).
    In mode `verified` the wire format `auto` leaves it, the cut and the drafting to measurements;
    mode `auto` does, and may leave all to the cloud.
    first_cut: where the cloud begins in `threshold` mode, None for the shallowest exit.
    draft: in mode `verified` with none of the layers, draft with this path and send token ids.
    begin_offline: answer from the exits where no cloud is reached at first, as where it goes away.
    probe: where something is left to measurements, also look at the link in the background.
    clock: what waits for the cloud are measured with. shared: what it has in common with other
    edges; with it, several answers may be under way, in threads of their own.
    Raises PlacementError, ArtifactError, PromptError.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        mode: str,
        placement: int,
        exits: Sequence[int] | None = None,
        threads: int = 1,
        connect: Callable[[], Link] | None = None,
        wire: str = "f32",
        first_cut: int | None = None,
        draft: str | None = None,
        begin_offline: bool = False,
        limits: Limits = DEFAULT_LIMITS,
        clock: Clock = REAL_CLOCK,
        probe: bool = False,
        shared: Shared | None = None,
    ) -> None:
        if wire not in (*WIRE_FORMATS, "auto"):
            raise PromptError(
                f"wire format {wire!r}: expected one of {', '.join(WIRE_FORMATS)}, auto"
            )
        if wire == "auto" and mode not in ("auto", "verified"):
            raise PromptError(f"wire format auto goes with mode auto or verified, not {mode}")
        self.exits = exits_in_use(artifact.manifest, mode, placement, exits)
        if draft is not None and (mode != "verified" or placement):
            raise PlacementError(
                f"a draft path goes with mode verified and placement 0, not with {mode} and "
                f"{placement}: its states are not the model's, and only the cloud makes those"
            )
        self.artifact = artifact
        self.tokenizer = artifact.tokenizer()
        self.mode = mode
        self.placement = placement
        self._threads = threads
        self._connect = connect
        self._begin_offline = begin_offline
        self._limits = limits
        self._clock = clock
        self._shared = shared or Shared()
        self._is_whole = placement == artifact.architecture.layers
        self.steering: Steering | None = None
        if not self._is_whole and (mode == "auto" or wire == "auto"):
            placements = [cut for cut in artifact.manifest.cuts if cut <= placement]
            wires = LOSSLESS if wire == "auto" or (mode == "auto" and wire == "f32") else (wire,)
            ways = ways_of(self.exits, placements[::-1], wires)
            if not ways and mode == "verified":
                raise PlacementError(f"wire format auto with {placement} layers: there is no exit")
            self.steering = Steering(
                artifact,
                ways,
                with_cloud=mode == "auto",
                pressure=Pressure(artifact.manifest, placements) if placements else None,
            )
            if probe and connect is not None:
                self.steering.prober = Prober(connect, limits=limits)
        self.wire = "f32" if wire == "auto" else wire
        self.first_cut = self._first_cut(first_cut)
        self._is_boundary = sentence_boundary(lambda token: self.tokenizer.decode([token]))
        self._costs = Costs()
        self._pacer = Pacer()
        # Where strangers name them there may be any number.
        self._named = lru_cache(_MOST_CRITERIA)(partial(load_criterion, artifact=artifact))
        self.stage: Stage | None = None
        if draft is not None:
            self.stage = DraftStage(artifact, draft, threads=threads, limits=limits)
            self.exits = tuple(self.stage.exits)
        elif mode != "cloud":
            self.stage = Stage(
                artifact,
                range(placement),
                exits=self.exits,
                threads=threads,
                limits=limits,
                loaded=self._shared.stage,
            )

    def answer(
        self,
        prompt_ids: Sequence[int],
        generation: Generation,
        oracle: Oracle | None = None,
        steer: Steer | None = None,
        owner: str = "",
    ) -> Answer:
        """Start an answer; iterate over it. Raises PromptError for prompts that do not fit
        and constraints that cannot be kept to.

        oracle: drafts in the exits' place, in mode verified; for measurements. steer: may change
        cut, wire format and drafting at every verify boundary, in mode verified. owner: whose it
        is, where caches are kept: they serve nobody else.
        """
        if generation.mode != self.mode:
            raise PromptError(f"this edge was loaded for {self.mode}, not {generation.mode}")
        context = self.artifact.architecture.context_length
        if not prompt_ids:
            raise PromptError("the prompt is empty; expected at least one token")
        vocabulary = self.artifact.architecture.vocab_size
        if not 0 <= min(prompt_ids) <= max(prompt_ids) < vocabulary:
            raise PromptError(f"the prompt has token ids outside 0 to {vocabulary - 1}")
        if len(prompt_ids) >= context:
            raise PromptError(
                f"the prompt has {len(prompt_ids)} tokens, the model's context is {context}; "
                "shorten the prompt"
            )
        if self.stage is None:  # whoever has one keeps to the constraint, and so checks it
            check_constraint(self.artifact, generation.sampling.constraint, self._limits)
        foretell = None
        if oracle is not None:
            self._check_oracle(oracle, generation)
            foretell = partial(oracle.word, vocabulary=vocabulary, never=self.tokenizer.eos_ids)
        criterion = self.criterion(generation)
        eos = frozenset() if generation.ignore_eos else self.tokenizer.eos_ids
        run = Run(
            generation=generation,
            stop_ids=eos,
            ids=list(prompt_ids),
            account=Account(mode=generation.mode, prompt_tokens=len(prompt_ids)),
            stage=self.stage,
            exits=self.exits,
            criterion=criterion,
            costs=self._costs,
            is_boundary=self._is_boundary,
            first_cut=self.first_cut,
            open_client=self._open_client if self._connect else None,
            max_positions=context,
            wire=self.wire,
            pacer=self._pacer,
            steer=steer or (Course(self.steering) if self.steering is not None else None),
            place=self.place,
            criterion_at=None if generation.criterion else self._criterion_at,
            oracle=foretell,
            keeper=self._shared.keeper,
            owner=owner,
            turn=self._shared.turn,
        )
        loop = _LOOPS[generation.mode]
        if self.steering is not None and generation.mode == "verified":
            loop = auto
        if self._is_whole and generation.mode in ("verified", "auto"):
            loop = modes.whole
        text = TextOut(self.tokenizer, generation.stop)
        return Answer(run, loop, text, self.tokenizer.decode)

    def place(self, placement: int, exits: Sequence[int] | None = None) -> Stage:
        """Load so many layers instead, and what answers from now on begin with; drops the others.

        Blocks and exits that are wanted still are not loaded again. exits: as for the edge. Raises
        PlacementError and ArtifactError, and leaves the edge as it was.
        """
        if self.stage is None or self._is_whole or isinstance(self.stage, DraftStage):
            raise PlacementError(
                f"an edge with {self.placement} layers in mode {self.mode} stays so"
            )
        layers = self.artifact.architecture.layers
        check_placement(self.artifact.manifest, placement)
        if placement == layers:
            raise PlacementError(f"{placement} layers leave nothing to the cloud; expected a cut")
        chosen = self.artifact.exits(None if exits is None else tuple(exits), placement)
        stage = Stage(
            self.artifact,
            range(placement),
            exits=[entry.cut for entry in chosen],
            threads=self._threads,
            limits=self._limits,
            loaded=self.stage,
        )
        if self._shared.keeper is not None:
            self._shared.keeper.retire(self.stage)
        self.stage, self.placement, self.exits = stage, placement, tuple(stage.exits)
        return stage

    def close(self) -> None:
        """End what runs in the background; answers may still be asked for. Idempotent."""
        if self.steering is not None and self.steering.prober is not None:
            self.steering.prober.close()

    def _criterion_at(self, threshold: float) -> Criterion:
        return self.criterion(Generation(threshold=threshold))

    def criterion(self, generation: Generation) -> Criterion:
        """What decides at the exits; one that learns goes on from answer to answer.

        Raises PromptError for one that is unknown or that this artifact cannot have.
        """
        spec = generation.criterion or f"confidence:{generation.threshold:g}"
        made = self._named(spec)
        return Deadline(made) if generation.deadline_seconds else made

    def _check_oracle(self, oracle: Oracle, generation: Generation) -> None:
        if self.mode != "verified" or self._is_whole:
            raise PromptError(
                "an oracle needs a cloud that verifies its drafts: expected mode verified with "
                f"some of the layers here, not {self.mode} with {self.placement}"
            )
        if generation.lookup:
            raise PromptError("an oracle drafts alone; leave lookup out")
        vocabulary = self.artifact.architecture.vocab_size
        if not all(0 <= token_id < vocabulary for token_id in oracle.ids):
            raise PromptError(f"the oracle has token ids outside 0 to {vocabulary - 1}")

    def _first_cut(self, first_cut: int | None) -> int:
        if self.wire == "ids" and self.mode == "threshold":
            if first_cut:
                raise PlacementError(f"first cut {first_cut}: token ids alone go with first cut 0")
            return 0
        if first_cut is None:
            return min(self.exits, default=self.placement)
        cuts = [0, *(cut for cut in self.artifact.manifest.cuts if cut <= self.placement)]
        if self.mode != "threshold" or first_cut not in cuts:
            raise PlacementError(
                f"first cut {first_cut}: expected one of {', '.join(map(str, cuts))}, in mode "
                "threshold"
            )
        return first_cut

    def _open_client(
        self, cut: int, wire: str, is_unwanted: Callable[[], bool] | None = None
    ) -> CloudClient:
        assert self._connect is not None
        dial = self._connect.line() if isinstance(self._connect, Dialer) else self._connect
        link: Link | None = None
        may_begin_offline = self._begin_offline and bool(self.exits)
        try:
            link = dial()
        except Unreachable:
            if not may_begin_offline:
                raise
        try:
            return CloudClient(
                link,
                fingerprint=self.artifact.fingerprint,
                cut=cut,
                vocabulary=self.artifact.architecture.vocab_size,
                wire_format=wire,
                limits=self._limits,
                dial=dial,
                clock=self._clock,
                begin_offline=may_begin_offline,
                is_unwanted=is_unwanted,
            )
        except BaseException:
            if link is not None:
                link.close()
            raise
