"""What an exit criterion may look at, and what it answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Reading:
    """What one source says of the next token."""

    cut: int
    """Layers that ran for it; 0: none, it was looked up in the text so far."""
    token_id: int
    confidence: float
    """Calibrated probability of `token_id`."""
    runner_up_confidence: float = 0.0
    entropy: float = math.nan
    """Of the source's calibrated distribution, in nats; NaN where there is none (a lookup)."""
    alternatives: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens of that distribution with their log-probabilities, where asked for."""

    @property
    def margin(self) -> float:
        """Lead of the likeliest token over the runner-up."""
        return self.confidence - self.runner_up_confidence

    @property
    def source(self) -> str:
        """As tokens name it: `exit@15`, `lookup`."""
        return f"exit@{self.cut}" if self.cut else "lookup"


@dataclass(frozen=True, slots=True)
class Coherence:
    """How the text so far hangs together; the values stand for "nothing wrong yet" at its start."""

    tokens: int = 0
    """Tokens written, the prompt's not counted."""
    mean_logprob: float = 0.0
    """Mean log of the tokens' confidences, over the whole text, in nats."""
    window_logprob: float = 0.0
    """The same over the last tokens."""
    window_confidence: float = 1.0
    """Mean confidence of the last tokens."""
    repetition: float = 0.0
    """Share of the last tokens that end an n-gram which the text had before, 0 to 1."""
    entropy_trend: float = 0.0
    """Slope of the entropy over the last tokens, in nats per token."""
    drift: float = 0.0
    """How far the last tokens' states have turned from the prompt's, 0 (not at all) to 1."""
    since_boundary: int = 0
    """Tokens since the last sentence ended."""


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything known when it is to be decided whether the last reading is taken."""

    readings: tuple[Reading, ...]
    """Of this position, in the order in which they were made, shallowest first."""
    coherence: Coherence = field(default_factory=Coherence)
    """Of the text before this position."""
    time_left: float = math.inf
    """Seconds until this token is due."""
    next_exit_seconds: float = math.inf
    """What asking the next exit has been measured to take; infinite where there is none."""
    cloud_seconds: float = math.inf
    """What asking the cloud has been measured to take; infinite where there is none."""

    @property
    def last(self) -> Reading:
        """The reading in question."""
        return self.readings[-1]


@dataclass(frozen=True, slots=True)
class Decision:
    """A reading taken, and the name of the criterion that took it."""

    reading: Reading
    by: str


class Criterion(Protocol):
    """Decides whether an exit's word is taken. Pure, but for what `learn` tells it."""

    @property
    def name(self) -> str:
        """As the user wrote it, such as `confidence:0.8`."""
        ...

    def decide(self, seen: Observation) -> Decision | None:
        """The reading that is taken, or None: go on to the next exit, or to the cloud."""
        ...

    def learn(self, seen: Observation, token_id: int) -> None:
        """The full model's token for a position that was decided on has become known."""
        ...


def most_confident(readings: Sequence[Reading]) -> Reading:
    """The reading with the highest confidence, the deeper one among equals."""
    return max(readings, key=lambda reading: (reading.confidence, reading.cut))
