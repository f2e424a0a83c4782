"""Exit policies that were trained: a small network, or a bandit that goes on learning.

The spec `learned:PATH` or `learned:PATH,bias=0.5` names a file of `collm tune-policy`. The bias is
the knob: above 0 more readings are taken and the cloud is asked less, below 0 the reverse. What it
trades is cloud work, so above 0 it counts only where going on means asking the cloud; before a
further exit it would only make the policy hasty.
`collm.model.policy_file` reads the file, `learned_criterion` makes the criterion of its contents.
No PyTorch: a decision is two small matrix products.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from collm.errors import PromptError
from collm.policy.bandit import LinUcb, bias_at
from collm.policy.features import features as features_of
from collm.policy.features import names
from collm.policy.observation import Criterion, Decision, Observation

F32 = npt.NDArray[np.float32]

NETWORK, LINUCB = "network", "linucb"
MOST_BIAS = 50.0


class LearnedPolicy:
    """Take the last reading when logit(take) − logit(go on) + bias >= 0 (`bias_at`: which bias).

    The logits are those of a tanh network over `collm.policy.features`: the actor of PPO (Schulman
    et al., arXiv 1707.06347), or the two action values of DQN. Layers are (weight float32 [out,
    in], bias float32 [out]); the last one has two outputs, go on and take. Only their difference
    matters, so that the last layer is folded into one row.
    """

    def __init__(
        self,
        layers: Sequence[tuple[F32, F32]],
        cuts: Sequence[int],
        *,
        name: str = "learned",
        bias: float = 0.0,
    ) -> None:
        self.name = name
        self.cuts = tuple(cuts)
        self.bias = bias
        *hidden, (last, last_bias) = layers
        self._hidden = [(w.T.astype(np.float32), b.astype(np.float32)) for w, b in hidden]
        self._last = (last[1] - last[0]).astype(np.float32)
        self._last_bias = float(last_bias[1] - last_bias[0])

    def scores(self, features_RF: F32) -> F32:
        """logit(take) − logit(go on) of rows of features, without the bias: float32 [R]."""
        x = features_RF
        for weight, bias in self._hidden:
            x = np.tanh(x @ weight + bias)
        scores: F32 = x @ self._last + np.float32(self._last_bias)
        return scores

    def decide(self, seen: Observation) -> Decision | None:
        """The last reading, where taking it promises more than going on."""
        values = features_of(seen, self.cuts)
        if values is None:
            return None
        x = np.array(values, np.float32)
        for weight, bias in self._hidden:
            x = x @ weight
            x += bias
            np.tanh(x, out=x)
        if float(x @ self._last) + self._last_bias + bias_at(seen, self.bias) < 0:
            return None
        return Decision(seen.last, self.name)

    def learn(self, seen: Observation, token_id: int) -> None:
        """Nothing: the network stays as it was trained."""


def split_knob(argument: str) -> tuple[str, float]:
    """`PATH` or `PATH,bias=0.5`. Raises PromptError."""
    path, comma, knob = argument.rpartition(",bias=")
    if not comma:
        return argument, 0.0
    try:
        bias = float(knob)
    except ValueError:
        bias = float("nan")
    if not abs(bias) <= MOST_BIAS:
        raise PromptError(
            f"learned:{argument}: bias {knob!r}; expected a number from −{MOST_BIAS:g} to "
            f"{MOST_BIAS:g}"
        )
    return path, bias


def learned_criterion(
    kind: str,
    cuts: Sequence[int],
    features: Sequence[str],
    tensors: Mapping[str, npt.NDArray[Any]],
    *,
    name: str = "learned",
    bias: float = 0.0,
) -> Criterion:
    """The criterion that a policy file's contents stand for.

    Raises ValueError where they do not fit each other, or not the features of this software.
    """
    if tuple(features) != names(cuts):
        raise ValueError("it was made for other features than this software has; train it again")
    width = len(names(cuts))
    if kind == LINUCB:
        return LinUcb.of_tensors(tensors, cuts, width, name=name, bias=bias)
    if kind == NETWORK:
        return LearnedPolicy(network_layers(tensors, width), cuts, name=name, bias=bias)
    raise ValueError(f"kind {kind!r}; expected {NETWORK} or {LINUCB}")


def network_layers(tensors: Mapping[str, npt.NDArray[Any]], width: int) -> list[tuple[F32, F32]]:
    """`layers.0.weight`, `layers.0.bias`, … as pairs. Raises ValueError where they do not fit."""
    layers: list[tuple[F32, F32]] = []
    while f"layers.{len(layers)}.weight" in tensors:
        prefix = f"layers.{len(layers)}"
        weight, bias = tensors[f"{prefix}.weight"], tensors.get(f"{prefix}.bias")
        if bias is None or weight.ndim != 2 or weight.shape[1] != width:
            raise ValueError(f"{prefix} does not take {width} inputs")
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"{prefix}: weight {weight.shape} and bias {bias.shape}")
        layers.append((weight.astype(np.float32), bias.astype(np.float32)))
        width = len(bias)
    if not layers or width != 2:
        raise ValueError("the last layer needs two outputs: go on, take")
    return layers
