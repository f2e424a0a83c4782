"""`collm run --placement auto`: what the user did not choose is the planner's to choose."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, replace

from rich.console import Console

from collm.cli.options import given_options as given_options
from collm.cli.plan import plan_world, words_of
from collm.config import Generation
from collm.errors import UsageError
from collm.link.base import Closing, Link
from collm.model.artifact import Artifact
from collm.policy.cost_model import Candidate, World
from collm.policy.planner import Wish, plan
from collm.session.probing import Prober

_LOSSLESS = ("cloud", "verified")
_PLANNED = {
    "auto": _LOSSLESS,
    "cloud": ("cloud",),
    "verified": ("verified",),
    "threshold": ("threshold",),
    "standalone": ("standalone",),
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What `collm run` was told."""

    generation: Generation
    exits: tuple[int, ...] | None
    wire: str
    threads: int
    given: Collection[str]
    """Names of the options that the user gave a value."""


class AutoPlan(Closing):
    """The plan of a run, and what becomes of it while the link is watched.

    Raises UsageError where nothing fits, LinkError where the cloud does not answer.
    """

    def __init__(
        self, artifact: Artifact, connect: Callable[[], Link] | None, asked: Asked, context: int
    ) -> None:
        self._asked = asked
        self._stack = ExitStack()
        self._wish = _wish(asked)
        self._world = plan_world(artifact, connect, threads=asked.threads, context=context)
        self.way: Candidate = plan(self._world, self._wish).chosen.candidate
        layers = artifact.architecture.layers
        told = words_of(self.way, layers)
        Console(stderr=True, highlight=False).print(f"plan: {told}", style="dim", soft_wrap=True)
        self._prober: Prober | None = None
        is_alone = self.way.mode == "standalone" or self.way.placement == layers
        if connect is not None and not is_alone and self.way.mode != "cloud":
            self._prober = self._stack.enter_context(Prober(connect))

    @property
    def mode(self) -> str:
        """Of the edge: `auto` stays, where the plan is to verify what layers of the model draft."""
        layers = self._world.device.bounds[-1]
        is_split = self.way.mode == "verified" and 0 < self.way.placement < layers
        return "auto" if self._asked.generation.mode == "auto" and is_split else self.way.mode

    def generation(self) -> Generation:
        """For the next answer: with the link as it was seen last, in the plan's placement."""
        latest = self._prober.latest if self._prober is not None else None
        way = self.way
        if latest is not None and way.mode == "verified" and latest.cloud.costs:
            assert self._world.link is not None
            link = replace(latest.link, connect=self._world.link.connect)
            world = replace(self._world, link=link)
            wish = replace(self._wish, modes=(way.mode,), wire=way.wire)
            if way.draft_path:
                wish = replace(wish, draft_path=way.draft_path)
            else:
                wish = replace(wish, exits=way.exits)
            found = plan(_only_at(world, way.placement), wish).chosen.candidate
            if found.placement == way.placement:
                way = found
        return replace(
            self._asked.generation,
            mode=self.mode,
            threshold=way.threshold,
            draft=way.draft,
            ahead=self._asked.generation.ahead if "ahead" in self._asked.given else way.ahead,
        )

    def close(self) -> None:
        """End watching the link. Idempotent."""
        self._stack.close()


def _wish(asked: Asked) -> Wish:
    mode = asked.generation.mode if "mode" in asked.given else "auto"
    if mode not in _PLANNED:
        raise UsageError(
            f"--placement auto with --mode {mode}: expected one of {', '.join(_PLANNED)}"
        )
    modes, given = _PLANNED[mode], asked.given
    wire = asked.wire if "wire" in given and asked.wire != "auto" else None
    # A mode or format that changes the text was then the user's own wish.
    may_differ = not set(modes) <= set(_LOSSLESS) or wire not in (None, "ids", "f32")
    return Wish(
        modes=modes,
        quality=1e-9 if may_differ else None,
        exits=asked.exits,
        wire=wire,
        threshold=asked.generation.threshold if "threshold" in given else None,
        draft=asked.generation.draft if "draft" in given else None,
    )


def _only_at(world: World, placement: int) -> World:
    """The same world, with a cloud that begins at this cut or at the first layer only."""
    assert world.cloud is not None
    kept = {0, placement, world.cloud.layers}
    costs = {cut: cost for cut, cost in world.cloud.costs.items() if cut in kept}
    return replace(world, cloud=replace(world.cloud, costs=costs))
