"""A Gymnasium environment over traces: at every exit of every row, take the reading or go on.

One episode is one text. At each row the exits are read from the shallowest on: action 0 goes on to
the next one, after the last to the cloud; action 1 takes the reading. Either the cloud or a taken
reading ends the row. Costs are negative rewards, in units of one cloud request:

    going on to the next exit   latency · (its layers and itself, seconds) / (a cloud request's)
    asking the cloud            cloud + latency
    taking a wrong token        wrong + consequence · (its recorded drop, nats per token)
    taking a right token        0

The drop is the consequence later: what the full model's continuation lost after this token
(`collm.tune.rollouts`). The rows that follow are the recorded ones whatever was taken: a wrong
token acts on later coherence, confidences and rewards only through its drop.

Not covered: several wrong tokens that make each other worse; deadlines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from collm.errors import UsageError
from collm.policy.features import feature_rows
from collm.tune.trace_file import Traces

F32 = npt.NDArray[np.float32]

GO_ON, TAKE = 0, 1
_LARGEST = 8.0
"""No feature is as large: the largest is the entropy over a vocabulary, a third of it."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What counts how much; 1.0 is one cloud request. Raises UsageError for values out of range."""

    cloud: float = 1.0
    """A cloud request: work and money."""
    latency: float = 0.1
    """Waiting for as long as a cloud request takes."""
    wrong: float = 8.0
    """A token that is not the full model's."""
    consequence: float = 20.0
    """A nat per token that the text is less likely afterwards."""
    round_trip_seconds: float = 0.03
    """The link's share of a cloud request's time: traces are made without a link."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if not 0 <= value <= 1e6:  # false for NaN
                raise UsageError(f"{name} weight {value}: expected a number from 0 to 1e6")
        if self.cloud + self.latency == 0:
            raise UsageError("cloud and latency weights are both 0: the cloud would be free")


@dataclass(frozen=True, kw_only=True)
class Rewards:
    """Of every action; [R, E] and [E]."""

    take: F32
    go_on: F32
    """The last one is asking the cloud."""


def rewards(traces: Traces, weights: Weights) -> Rewards:
    """What each action at each row and exit earns: never more than 0."""
    costs = traces.costs
    request = costs.cloud + weights.round_trip_seconds
    upto = np.array([costs.edge_seconds(i + 1) for i in range(len(traces.cuts))])
    steps = weights.latency * np.diff(upto) / request
    wrong = weights.wrong + weights.consequence * traces.drops
    return Rewards(
        take=np.where(traces.right, 0.0, -wrong).astype(np.float32),
        go_on=-np.array([*steps, weights.cloud + weights.latency], np.float32),
    )


def trace_features(traces: Traces) -> F32:
    """Features of every row after every exit: float32 [E, R, F]."""
    return np.stack(
        [
            feature_rows(
                traces.tokens,
                traces.confidences,
                traces.runner_up_confidences,
                traces.entropies,
                traces.coherence,
                asked,
            )
            for asked in range(1, len(traces.cuts) + 1)
        ]
    )


class PolicyEnv(gymnasium.Env[F32, np.int64]):
    """Texts in random order, each from its first row to its last.

    Observations are `collm.policy.features`, float32 [F]; `info` of the last step has the text's
    counts. features_ERF: `trace_features(traces)`, where several environments share it. centre:
    added at the end of every row. A text's number of rows is given, so that this changes no
    policy's rank, but values stay near 0 whatever is left of the text, which a critic cannot see
    (reward centring, Naik et al. 2024).
    """

    def __init__(
        self, traces: Traces, weights: Weights, features_ERF: F32 | None = None, centre: float = 0.0
    ) -> None:
        self._traces = traces
        self._rewards = rewards(traces, weights)
        self._right = traces.right
        self._centre = centre
        self._features = trace_features(traces) if features_ERF is None else features_ERF
        width = self._features.shape[2]
        self.observation_space = gymnasium.spaces.Box(-_LARGEST, _LARGEST, (width,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self._row = self._end = self._exit = 0
        self._counts = {"rows": 0, "requests": 0, "wrong": 0}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[F32, dict[str, Any]]:
        """Begin a text; `options={"text": i}` names it."""
        super().reset(seed=seed)
        text = int((options or {}).get("text", self.np_random.integers(self._traces.texts)))
        self._row = int(self._traces.starts[text])
        self._end = int(self._traces.starts[text + 1])
        self._exit = 0
        self._counts = {"rows": 0, "requests": 0, "wrong": 0}
        return self._features[0, self._row].copy(), {"text": text}

    def step(self, action: np.int64) -> tuple[F32, float, bool, bool, dict[str, Any]]:
        """Take the reading (1), or go on (0)."""
        if action == TAKE:
            reward = float(self._rewards.take[self._row, self._exit])
            self._counts["wrong"] += not self._right[self._row, self._exit]
        else:
            reward = float(self._rewards.go_on[self._exit])
            if self._exit + 1 < len(self._traces.cuts):
                self._exit += 1
                return self._features[self._exit, self._row].copy(), reward, False, False, {}
            self._counts["requests"] += 1
        self._counts["rows"] += 1
        reward += self._centre
        self._row, self._exit = self._row + 1, 0
        if self._row < self._end:
            return self._features[0, self._row].copy(), reward, False, False, {}
        return self._features[0, self._row - 1].copy(), reward, True, False, dict(self._counts)


def play(traces: Traces, weights: Weights, takes_RE: npt.NDArray[np.bool_]) -> float:
    """Mean reward per row of a policy that takes where `takes_RE` says so; no sampling."""
    earned = rewards(traces, weights)
    exits = takes_RE.shape[1]
    total = np.full(len(traces), earned.go_on.sum(), np.float64)
    for i in reversed(range(exits)):
        before = earned.go_on[:i].sum()
        total = np.where(takes_RE[:, i], before + earned.take[:, i], total)
    return float(total.mean())
