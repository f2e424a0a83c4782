"""Exit criteria over whole traces at once, each with the knob that trades cloud work for agreement.

A family is a score per row and exit: a reading is taken where its score is at least the knob. That
covers confidence, margin, entropy, patience, the hybrid and learned policies. `criterion` makes the
criterion that the token loop would use, so that the two can be compared row by row.

Not covered: criteria without a knob: they are points, decided row by row in
`collm.tune.policy_curves.point_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from collm.errors import ArtifactError
from collm.model.artifact import Artifact
from collm.model.policy_file import PolicyFile, read_policy
from collm.policy.bandit import LinUcb
from collm.policy.criteria import Confidence, Entropy, Margin, Patience
from collm.policy.features import names
from collm.policy.learned import LINUCB, LearnedPolicy, learned_criterion, network_layers
from collm.policy.observation import Coherence, Criterion
from collm.policy.text_criteria import Hybrid, incoherence
from collm.tune.policy_env import trace_features
from collm.tune.trace_file import COHERENCE, Traces

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One kind of criterion over a set of exits."""

    name: str
    """Such as `confidence @5+20`."""
    kind: str
    cuts: tuple[int, ...]
    scores: F64
    """Of every row after each exit of `cuts`, [R, E]; −inf is never taken."""
    criterion: Callable[[float], Criterion]
    """At a value of the knob; one that decides as `scores >= knob`."""


def exit_sets(cuts: Sequence[int]) -> list[tuple[int, ...]]:
    """Every exit alone, and every cascade of several: all subsets, shallow to deep."""
    sizes = range(1, len(cuts) + 1)
    return [chosen for size in sizes for chosen in combinations(cuts, size)]


def fixed_families(traces: Traces) -> list[Family]:
    """A confidence threshold for every set of exits: what the others have to beat."""
    return [confidence(traces, cuts) for cuts in exit_sets(traces.cuts)]


def confidence(traces: Traces, cuts: Sequence[int]) -> Family:
    """`confidence:θ`, one threshold for all of `cuts`."""
    scores = _columns(traces, traces.confidences, cuts)
    return _family("confidence", cuts, scores, Confidence)


def margin(traces: Traces, cuts: Sequence[int]) -> Family:
    """`margin:θ`."""
    lead = traces.confidences.astype(np.float64) - traces.runner_up_confidences
    return _family("margin", cuts, _columns(traces, lead, cuts), Margin)


def entropy(traces: Traces, cuts: Sequence[int]) -> Family:
    """`entropy:−knob`."""
    scores = -_columns(traces, traces.entropies, cuts)
    return _family("entropy", cuts, scores, lambda knob: Entropy(-knob))


def patience(traces: Traces, cuts: Sequence[int], exits: int) -> Family:
    """`patience:exits,confidence=θ`."""
    tokens = traces.with_cuts(cuts).tokens
    scores = _columns(traces, traces.confidences, cuts)
    for i in range(len(cuts)):
        agreeing = tokens[:, max(0, i - exits + 1) : i + 1] == tokens[:, i : i + 1]
        same = agreeing.all(axis=1) if i + 1 >= exits else np.zeros(len(tokens), np.bool_)
        scores[:, i] = np.where(same, scores[:, i], -np.inf)
    return _family(f"patience {exits}", cuts, scores, lambda knob: Patience(exits, floor=knob))


def hybrid(traces: Traces, cuts: Sequence[int], weight: float = Hybrid(0).weight) -> Family:
    """`hybrid:θ,weight=w`."""
    odds = np.exp(weight * text_incoherence(traces))[:, None]
    sure = _columns(traces, traces.confidences, cuts)
    with np.errstate(divide="ignore"):
        scores = 1 / (1 + (1 - sure) / sure * odds)
    return _family("hybrid", cuts, scores, lambda knob: Hybrid(knob, weight))


def learned(traces: Traces, policy: PolicyFile, name: str) -> Family:
    """A policy file; the knob is minus its bias. Raises UsageError where exits were not traced."""
    part = traces.with_cuts(policy.exits)
    features_ERF = trace_features(part)
    columns: list[npt.NDArray[Any]]
    if policy.kind == LINUCB:
        bandit = LinUcb.of_tensors(policy.tensors, policy.exits, features_ERF.shape[2])
        columns = [bandit.scores(rows, arm) for arm, rows in enumerate(features_ERF)]
    else:
        network = LearnedPolicy(network_layers(policy.tensors, features_ERF.shape[2]), policy.exits)
        columns = [network.scores(rows) for rows in features_ERF]

    def at(knob: float) -> Criterion:
        return learned_criterion(
            policy.kind, policy.exits, policy.features, policy.tensors, name=name, bias=-knob
        )

    scores = np.stack(columns, axis=1).astype(np.float64)
    # Before a further exit a bias above 0 does not count (`collm.policy.bandit.bias_at`).
    scores[:, :-1][scores[:, :-1] < 0] = -np.inf
    return Family(
        name=f"{name} @{_joined(policy.exits)}",
        kind="learned",
        cuts=policy.exits,
        scores=scores,
        criterion=at,
    )


def open_policy(path: Path, artifact: Artifact) -> PolicyFile:
    """A policy file that this software can run. Raises ArtifactError."""
    policy = read_policy(path, artifact)
    try:
        learned_criterion(policy.kind, policy.exits, policy.features, policy.tensors)
    except ValueError as error:
        raise ArtifactError(f"{path}: no sound policy file ({error})") from None
    return policy


def policy_of(
    traces: Traces, kind: str, tensors: dict[str, npt.NDArray[np.float32]], about: dict[str, object]
) -> PolicyFile:
    """A policy file's contents for the traces' artifact and exits."""
    return PolicyFile(
        kind=kind,
        fingerprint=traces.fingerprint,
        exits=traces.cuts,
        features=names(traces.cuts),
        tensors=tensors,
        about=about,
    )


def text_incoherence(traces: Traces) -> F64:
    """`incoherence` of the text before every row, [R]."""
    made = np.empty(len(traces))
    for row, values in enumerate(traces.coherence.tolist()):
        text = dict(zip(COHERENCE, values, strict=True))
        whole = {name: int(text[name]) for name in ("tokens", "since_boundary")}
        made[row] = incoherence(Coherence(**(text | whole)))
    return made


def _family(
    kind: str, cuts: Sequence[int], scores: F64, criterion: Callable[[float], Criterion]
) -> Family:
    return Family(
        name=f"{kind} @{_joined(cuts)}",
        kind=kind,
        cuts=tuple(cuts),
        scores=scores,
        criterion=criterion,
    )


def _columns(traces: Traces, values: npt.NDArray[np.floating], cuts: Sequence[int]) -> F64:
    kept = [traces.cuts.index(cut) for cut in cuts]
    return values[:, kept].astype(np.float64)


def _joined(cuts: Sequence[int]) -> str:
    return "+".join(map(str, cuts))
