"""Which way of answering is best here: every candidate is played, none is left out.

The search is exact with regard to the cost model: a few thousand candidates, each of which takes
about a third of a millisecond to play. What cannot be chosen (too large for the device, not
faithful enough) is never played, and the report says of every kind of way why its best lost.

Not covered: artifacts with other weights in one search; plan each, and compare.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from collm.errors import UsageError
from collm.policy.cost_model import (
    LOSSLESS_WIRES,
    Candidate,
    Model,
    Prediction,
    World,
    is_lossless,
    memory_bytes,
)

MODES: Final = ("cloud", "verified", "threshold", "standalone")
"""Those that can be planned."""
OBJECTIVES: Final = ("latency", "cloud-cost", "energy", "bytes")
DRAFTED: Final = (0.2, 0.4, 0.6, 0.8)
"""Thresholds where the cloud judges what exits say: finer steps change little."""
ANSWERED: Final = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Thresholds where what exits say is final."""
DRAFTS: Final = (2, 4, 8)
AHEAD: Final = (None, 0.0)
_ALIKE: Final = 1.03
"""Plans that differ by less are as good, and the simpler one is taken."""
_EPSILON: Final = 1e-12


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is wanted of a plan. Raises UsageError for values out of range."""

    objective: str = "latency"
    memory_bytes: int | None = None
    """The edge's process may take so much; None: what its profile says."""
    quality: float | None = None
    """Share of tokens that have to be the full model's; None: all, and that for certain."""
    modes: tuple[str, ...] = MODES
    exits: tuple[int, ...] | None = None
    """Use just these; None: whatever is best, as with what follows."""
    draft_path: str | None = None
    wire: str | None = None
    threshold: float | None = None
    draft: int | None = None

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise UsageError(
                f"objective {self.objective!r}: expected one of {', '.join(OBJECTIVES)}"
            )
        if self.quality is not None and not 0 < self.quality <= 1:
            raise UsageError(f"quality {self.quality:g}: expected lossless, or a share up to 1")
        if not self.modes or not set(self.modes) <= set(MODES):
            given = ", ".join(self.modes) or "none"
            raise UsageError(f"modes {given}: a plan can be of {', '.join(MODES)}")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A candidate, what it would do, and why it lost."""

    candidate: Candidate
    predicted: Prediction | None
    """None: it cannot be chosen, and was not played."""
    why_not: str = ""
    """Empty: it is the plan."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The search's result."""

    wish: Wish
    chosen: Choice
    others: tuple[Choice, ...]
    """The best of every other kind, the nearest first; then what could not be chosen."""
    frontier: tuple[Choice, ...]
    """No other is better in latency, cloud time and bytes at once; fastest first."""
    considered: int
    refused: int
    """Of them, those that do not fit or are not faithful enough."""


def kind(candidate: Candidate, layers: int) -> str:
    """A family of candidates that differ in numbers only, in words."""
    if candidate.mode == "cloud":
        return "cloud alone"
    if candidate.mode == "verified" and candidate.placement == layers:
        return "whole model here"
    if candidate.mode == "standalone":
        return "exits alone"
    ahead = ", drafting ahead" if candidate.ahead is not None else ""
    path = f", path {candidate.draft_path}" if candidate.draft_path else ""
    return f"{candidate.mode}{ahead}{path}, {candidate.wire}"


def candidates(world: World, wish: Wish) -> Iterator[Candidate]:
    """All of them, whether they may be chosen or not."""
    device = world.device
    layers, threads = device.bounds[-1], device.best_threads
    begins: Collection[int] = ()
    if world.link is not None and world.cloud is not None and 0 in world.cloud.costs:
        begins = world.cloud.costs
    if begins and "cloud" in wish.modes:
        yield Candidate(mode="cloud", threads=threads)
    if "verified" in wish.modes:
        yield Candidate(mode="verified", placement=layers, threads=threads)
    if begins and "verified" in wish.modes:
        yield from _drafting(world, wish)
    for exits in _exits_in_use(world, wish):
        for threshold in ANSWERED if wish.threshold is None else (wish.threshold,):
            alone = Candidate(
                mode="standalone",
                placement=exits[-1],
                exits=exits,
                threshold=threshold,
                threads=threads,
            )
            if "standalone" in wish.modes:
                yield alone
            if "threshold" in wish.modes:
                for wire in _wires(world, wish):
                    if (0 if wire == "ids" else exits[0]) in begins:
                        yield replace(alone, mode="threshold", wire=wire)
        if begins and "verified" in wish.modes:
            yield from _verified(world, wish, exits, begins)


def _drafting(world: World, wish: Wish) -> Iterator[Candidate]:
    """With a draft path. It has an exit of its own, and only its ids are of use to a cloud."""
    if wish.exits is not None or "ids" not in _wires(world, wish):
        return
    known = [name for name in world.acceptance.paths if name in world.device.paths]
    for name in known:
        if wish.draft_path not in (None, name):
            continue
        for threshold, draft, ahead in _ways_of_drafting(wish):
            yield Candidate(
                mode="verified",
                draft_path=name,
                wire="ids",
                threshold=threshold,
                draft=draft,
                ahead=ahead,
                threads=world.device.best_threads,
            )


def _ways_of_drafting(wish: Wish) -> Iterator[tuple[float, int, float | None]]:
    """Threshold, length, and from which confidence on to draft ahead."""
    thresholds = DRAFTED if wish.threshold is None else (wish.threshold,)
    drafts = DRAFTS if wish.draft is None else (wish.draft,)
    return itertools.product(thresholds, drafts, AHEAD)


def _verified(
    world: World, wish: Wish, exits: tuple[int, ...], begins: Collection[int]
) -> Iterator[Candidate]:
    for wire in _wires(world, wish):
        # Ids need no layer beyond the deepest exit; rows may come from any cut that has it.
        inner = [cut for cut in world.device.bounds[:-1] if cut >= exits[-1] and cut in begins]
        for placement in [exits[-1]] if wire == "ids" else inner:
            for threshold, draft, ahead in _ways_of_drafting(wish):
                yield Candidate(
                    mode="verified",
                    placement=placement,
                    exits=exits,
                    wire=wire,
                    threshold=threshold,
                    draft=draft,
                    ahead=ahead,
                    threads=world.device.best_threads,
                )


def _wires(world: World, wish: Wish) -> list[str]:
    """Those that do not change what the cloud sees, unless less than all is wanted."""
    if wish.wire is not None:
        return [wish.wire]
    return [w for w in world.frames.rows if w in LOSSLESS_WIRES or wish.quality is not None]


def _exits_in_use(world: World, wish: Wish) -> list[tuple[int, ...]]:
    """One exit, two, or all up to a depth; more of them only cost time at every token."""
    if wish.draft_path is not None:
        return []
    if wish.exits is not None:
        return [wish.exits]
    known = [
        cut
        for cut in world.acceptance.cuts
        if cut in world.device.exit_bytes and cut < world.device.bounds[-1]
    ]
    made = [*itertools.combinations(known, 1), *itertools.combinations(known, 2)]
    made += [tuple(known[:count]) for count in range(3, len(known) + 1)]
    return made


def plan(world: World, wish: Wish) -> Plan:
    """The best candidate, and the best of every other kind.

    Raises UsageError, one line, where nothing can be chosen at all.
    """
    model, layers = Model(world), world.device.bounds[-1]
    played: list[Choice] = []
    refused: dict[str, Choice] = {}
    considered = 0
    for candidate in candidates(world, wish):
        considered += 1
        if why := _refusal(candidate, model, wish):
            _keep_nearest(refused, kind(candidate, layers), candidate, why, world)
        else:
            played.append(Choice(candidate=candidate, predicted=model.predict(candidate)))
    if not played:
        nearest = "; ".join(f"{name}: {choice.why_not}" for name, choice in refused.items())
        raise UsageError(
            f"no plan fits ({nearest[:300] or 'there is nothing to choose from'}); "
            "give more memory, a lower --quality, or a --cloud"
        )
    chosen = _best(played, wish.objective)
    best: dict[str, Choice] = {}
    for choice in sorted(played, key=lambda one: _rank(one, wish.objective)):
        best.setdefault(kind(choice.candidate, layers), choice)
    best.pop(kind(chosen.candidate, layers))
    others = [
        Choice(
            candidate=one.candidate,
            predicted=one.predicted,
            why_not=_why_it_lost(one, chosen, wish.objective),
        )
        for one in best.values()
    ]
    never = [one for name, one in refused.items() if name not in best]
    never = [one for one in never if kind(one.candidate, layers) != kind(chosen.candidate, layers)]
    return Plan(
        wish=wish,
        chosen=chosen,
        others=(*others, *never),
        frontier=tuple(_frontier(played)),
        considered=considered,
        refused=considered - len(played),
    )


def value(predicted: Prediction, objective: str) -> float:
    """What is made small."""
    if objective == "latency":
        return predicted.token_seconds
    if objective == "cloud-cost":
        return predicted.cloud_seconds
    if objective == "energy":
        return predicted.edge_seconds if predicted.joules is None else predicted.joules
    return predicted.bytes_up + predicted.bytes_down


def simplicity(candidate: Candidate) -> tuple[int, int, int, bool]:
    """The smaller, the simpler: nothing here, all here, then fewer layers and fewer exits.

    A draft path is none of the layers, and simpler than an exit that needs some.
    """
    kinds = ("cloud", "standalone", "verified", "threshold")
    has_all = candidate.mode == "verified" and not (candidate.exits or candidate.draft_path)
    rank = 1 if has_all else kinds.index(candidate.mode)
    return rank, candidate.placement, len(candidate.exits), candidate.ahead is not None


def _refusal(candidate: Candidate, model: Model, wish: Wish) -> str:
    """Why it cannot be chosen; empty: it can."""
    device = model.world.device
    most = device.memory_bytes if wish.memory_bytes is None else wish.memory_bytes
    need = memory_bytes(candidate, model.world)
    if need > most:
        return f"does not fit: needs {need / 1e6:.0f} MB of {most / 1e6:.0f}"
    if is_lossless(candidate):
        return ""
    if wish.quality is None:
        return "not lossless"
    agreement = model.agreement(candidate)
    if agreement < wish.quality:
        return f"quality too low: {agreement:.3f} of {wish.quality:g}"
    return ""


def _keep_nearest(
    refused: dict[str, Choice], name: str, candidate: Candidate, why: str, world: World
) -> None:
    """Of a kind that cannot be chosen, the one that comes nearest."""
    before = refused.get(name)
    too_large = why.startswith("does not fit")
    if before is not None:
        was_too_large = before.why_not.startswith("does not fit")
        if too_large and not was_too_large:
            return
        if too_large == was_too_large:
            nearer = (
                memory_bytes(candidate, world) < memory_bytes(before.candidate, world)
                if too_large
                else why > before.why_not
            )
            if not nearer:
                return
    refused[name] = Choice(candidate=candidate, predicted=None, why_not=why)


def _rank(choice: Choice, objective: str) -> tuple[float, float]:
    assert choice.predicted is not None
    return value(choice.predicted, objective), choice.predicted.token_seconds


def _best(played: Sequence[Choice], objective: str) -> Choice:
    """The simplest of the fastest of the best, each within 3 %."""
    ranks = [_rank(one, objective) for one in played]
    least = min(rank[0] for rank in ranks)
    good = [(o, r) for o, r in zip(played, ranks, strict=True) if r[0] <= least * _ALIKE + _EPSILON]
    fastest = min(rank[1] for _, rank in good)
    alike = [(one, rank) for one, rank in good if rank[1] <= fastest * _ALIKE]
    return min(alike, key=lambda pair: (simplicity(pair[0].candidate), pair[1]))[0]


def _why_it_lost(one: Choice, chosen: Choice, objective: str) -> str:
    assert one.predicted is not None and chosen.predicted is not None
    mine, best = value(one.predicted, objective), value(chosen.predicted, objective)
    words = {
        "latency": "slower",
        "cloud-cost": "more cloud time",
        "energy": "more energy",
        "bytes": "more bytes",
    }
    if mine > best * _ALIKE + _EPSILON:
        more = f"{100 * (mine / best - 1):.0f} %" if best > _EPSILON else "all of it"
        return f"{more} {words[objective]}"
    slower = one.predicted.token_seconds / chosen.predicted.token_seconds - 1
    if slower > _ALIKE - 1:
        return f"as good, but {100 * slower:.0f} % slower"
    return "no better, and less simple"


def _frontier(played: Sequence[Choice]) -> Iterator[Choice]:
    """Fastest first; each has less cloud time or fewer bytes than all before it."""
    seen: list[tuple[float, float]] = []
    for one in sorted(played, key=lambda choice: _rank(choice, "latency")):
        assert one.predicted is not None
        cost = (value(one.predicted, "cloud-cost"), value(one.predicted, "bytes"))
        if not any(a <= cost[0] + _EPSILON and b <= cost[1] + _EPSILON for a, b in seen):
            seen.append(cost)
            yield one
