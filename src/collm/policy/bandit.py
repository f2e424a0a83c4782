"""A contextual bandit that decides at exits and goes on learning from the full model's verdicts.

LinUCB with disjoint arms (Li et al., arXiv 1003.0146): for each exit a ridge regression of "the
exit's token is the full model's" on the features, since what a feature means differs from exit to
exit. Reward of taking: 1 if right, 0 if wrong; of asking the cloud: 1 − cost.

The feedback is one-sided: only where the cloud is asked does its token become known, and then for
every exit that was read ("apple tasting", Helmbold et al. 2000). What explores is asking. So the
confidence width counts for the cloud, and an exit is taken when

    θ·x − alpha · √(xᵀ A⁻¹ x) + bias >= 1 − cost,    bias as `bias_at` has it.

A⁻¹ is kept by the Sherman–Morrison formula, in float64: an update is O(F²), about 20 µs.
Not covered: forgetting; what was learnt counts for ever.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from collm.policy.features import features
from collm.policy.observation import Decision, Observation

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

RIDGE = 1.0
COST = 0.05
"""What asking the cloud costs in units of a wrong token: take from 95 % on."""
ALPHA = 0.3


def bias_at(seen: Observation, bias: float) -> float:
    """The knob of learned policies at one exit: above 0 only where the cloud comes next."""
    return bias if bias <= 0 or seen.next_exit_seconds == math.inf else 0.0


class LinUcb:
    """One linear model per exit; `learn` updates those of all exits that were read."""

    def __init__(
        self,
        cuts: Sequence[int],
        width: int,
        *,
        name: str = "learned",
        bias: float = 0.0,
        alpha: float = ALPHA,
        cost: float = COST,
    ) -> None:
        self.name = name
        self.cuts = tuple(cuts)
        self.bias = bias
        self.alpha = alpha
        self.cost = cost
        self.inverses: F64 = np.stack([np.eye(width) / RIDGE] * len(self.cuts))
        """A⁻¹ of every exit, [E, F, F]."""
        self.targets: F64 = np.zeros((len(self.cuts), width))
        """b of every exit, [E, F]: sums of reward · x."""
        self.weights: F64 = np.zeros((len(self.cuts), width))
        """θ = A⁻¹ b, [E, F]."""
        self.updates = 0

    def decide(self, seen: Observation) -> Decision | None:
        """The last reading, where it is surely enough right."""
        values = features(seen, self.cuts)
        if values is None:
            return None
        x = np.array(values)
        score = self.score(self.cuts.index(seen.last.cut), x)
        return Decision(seen.last, self.name) if score + bias_at(seen, self.bias) >= 0 else None

    def learn(self, seen: Observation, token_id: int) -> None:
        """The full model's token tells of every exit read whether it was right."""
        readings = seen.readings
        for asked in range(1, len(readings) + 1):
            part = Observation(readings[:asked], seen.coherence)
            values = features(part, self.cuts)
            if values is not None:
                right = readings[asked - 1].token_id == token_id
                self.update(self.cuts.index(part.last.cut), np.array(values), float(right))

    def update(self, arm: int, x: F64, reward: float) -> None:
        """One more example for an exit (Sherman and Morrison 1950)."""
        inverse = self.inverses[arm]
        along = inverse @ x
        inverse -= np.outer(along, along) / (1 + x @ along)
        self.targets[arm] += reward * x
        self.weights[arm] = inverse @ self.targets[arm]
        self.updates += 1

    def scores(self, features_RF: F32, arm: int) -> F64:
        """θ·x − alpha · width − (1 − cost) of rows of features at one exit, without the bias."""
        x = features_RF.astype(np.float64)
        width = np.sqrt(np.maximum(np.einsum("rf,fg,rg->r", x, self.inverses[arm], x), 0))
        scores: F64 = x @ self.weights[arm] - self.alpha * width - (1 - self.cost)
        return scores

    def tensors(self) -> dict[str, npt.NDArray[Any]]:
        """Everything it knows, to be saved; `of_tensors` goes on from there."""
        settings = np.array([self.alpha, self.cost, self.updates], np.float64)
        return {"inverses": self.inverses, "targets": self.targets, "settings": settings}

    @classmethod
    def of_tensors(
        cls,
        tensors: Mapping[str, npt.NDArray[Any]],
        cuts: Sequence[int],
        width: int,
        *,
        name: str = "learned",
        bias: float = 0.0,
    ) -> LinUcb:
        """What `tensors` was made of. Raises ValueError where the shapes do not fit."""
        shapes = {
            "inverses": (len(cuts), width, width),
            "targets": (len(cuts), width),
            "settings": (3,),
        }
        for key, shape in shapes.items():
            if key not in tensors or tensors[key].shape != shape:
                raise ValueError(f"{key} is missing or not of shape {shape}")
        alpha, cost, updates = tensors["settings"].tolist()
        made = cls(cuts, width, name=name, bias=bias, alpha=alpha, cost=cost)
        made.inverses = tensors["inverses"].astype(np.float64)
        made.targets = tensors["targets"].astype(np.float64)
        made.weights = np.einsum("efg,eg->ef", made.inverses, made.targets)
        made.updates = int(updates)
        return made

    def score(self, arm: int, x: F64) -> float:
        """`scores` of one row."""
        width = math.sqrt(max(float(x @ (self.inverses[arm] @ x)), 0.0))
        return float(x @ self.weights[arm]) - self.alpha * width - (1 - self.cost)
