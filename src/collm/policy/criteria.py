"""Exit criteria: when an exit's word for the next token is taken.

One small class each. All satisfy `collm.policy.observation.Criterion`, are functions of the
observation alone, and take the last reading or none; only `Deadline` may take an earlier one.
`collm.policy.criterion_spec` makes them from text such as `margin:0.5 & coherence`, and every
`name` is such a text again.

Not covered: criteria that look at the text (`collm.policy.text_criteria`), that learn
(`collm.policy.learned`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from collm.policy.observation import Criterion, Decision, Observation, most_confident

DEADLINE = "deadline"
"""What a token is named by that was taken only because it was due."""


class Unlearning:
    """A criterion that the full model's tokens do not change."""

    __slots__ = ()

    def learn(self, seen: Observation, token_id: int) -> None:
        """Nothing to learn."""


def taken(seen: Observation, by: str) -> Decision:
    """The last reading, taken."""
    return Decision(seen.readings[-1], by)


def number(value: float) -> str:
    """The shortest text that is this number again: `0.8`, `1`."""
    return repr(float(value)).removesuffix(".0")


def arguments(given: Iterable[tuple[str, float]]) -> str:
    """`:key=value,key=value`, empty where there are none."""
    joined = ",".join(f"{key}={number(value)}" for key, value in given)
    return f":{joined}" if joined else ""


# ----------------------------------------------------------------------------- the reading


@dataclass(frozen=True, slots=True)
class Confidence(Unlearning):
    """Take when the calibrated probability of the likeliest token >= threshold.

    Source: CE-CoLLM (arXiv 2411.02829); as a measure of trust Hendrycks and Gimpel (1610.02136).
    """

    threshold: float

    @property
    def name(self) -> str:
        """`confidence:0.8`."""
        return f"confidence:{number(self.threshold)}"

    def decide(self, seen: Observation) -> Decision | None:
        """The last reading, where it is sure enough."""
        return taken(seen, self.name) if seen.last.confidence >= self.threshold else None


@dataclass(frozen=True, slots=True)
class Margin(Unlearning):
    """Take when the probabilities of the likeliest token and the runner-up differ by >= threshold.

    Source: CALM's softmax response (Schuster et al., arXiv 2207.07061).
    """

    threshold: float

    @property
    def name(self) -> str:
        """`margin:0.5`."""
        return f"margin:{number(self.threshold)}"

    def decide(self, seen: Observation) -> Decision | None:
        """The last reading, where its lead is wide enough."""
        return taken(seen, self.name) if seen.last.margin >= self.threshold else None


@dataclass(frozen=True, slots=True)
class Entropy(Unlearning):
    """Take when the entropy −Σ p log p of the calibrated distribution <= threshold, in nats.

    A lookup has no distribution, so it never passes. Source: BranchyNet (arXiv 1709.01686).
    """

    threshold: float

    @property
    def name(self) -> str:
        """`entropy:1`."""
        return f"entropy:{number(self.threshold)}"

    def decide(self, seen: Observation) -> Decision | None:
        """The last reading, where it is certain enough; NaN compares false."""
        return taken(seen, self.name) if seen.last.entropy <= self.threshold else None


@dataclass(frozen=True, slots=True)
class Patience(Unlearning):
    """Take when the last `exits` readings name one token, the last with confidence >= floor.

    Source: PABEE (Zhou et al., arXiv 2006.04152), where layers' classifiers have to agree.
    """

    exits: int
    floor: float = 0.0

    @property
    def name(self) -> str:
        """`patience:2` or `patience:2,confidence=0.4`."""
        floor = f",confidence={number(self.floor)}" if self.floor else ""
        return f"patience:{self.exits}{floor}"

    def decide(self, seen: Observation) -> Decision | None:
        """The last reading, where enough before it say the same."""
        agreeing = seen.readings[-self.exits :]
        last = agreeing[-1]
        if len(agreeing) < self.exits or last.confidence < self.floor:
            return None
        same = all(reading.token_id == last.token_id for reading in agreeing)
        return taken(seen, self.name) if same else None


@dataclass(frozen=True)
class Risk(Unlearning):
    """Take when confidence >= the threshold that was calibrated for the reading's cut.

    thresholds: by cut, as `collm calibrate` stored them: the least at which a fresh text's
    expected share of wrong answers stays under a bound (conformal risk control, arXiv 2208.02814;
    `collm.policy.calibration.conformal_threshold`). None, or no entry: the exit answers nothing.
    """

    thresholds: Mapping[int, float | None]

    @property
    def name(self) -> str:
        """`risk`."""
        return "risk"

    def decide(self, seen: Observation) -> Decision | None:
        """The last reading, where it is as sure as its exit has to be."""
        threshold = self.thresholds.get(seen.last.cut)
        if threshold is None or seen.last.confidence < threshold:
            return None
        return taken(seen, self.name)


# -------------------------------------------------------------------------------- deadlines


@dataclass(frozen=True, slots=True)
class Deadline:
    """The best answer that is there in time.

    Asked after each exit: what `inner` takes is taken. Else go on while the next step is over
    in time, next_exit_seconds (without a further exit: cloud_seconds) <= time_left − margin.
    Else the most confident reading so far is taken, named `deadline`. The estimates are upper
    ones, so that a step that fits leaves an answer in time; a deeper exit is preferred to stopping
    even where it uses up the cloud's time, since that exit can be taken for want of the cloud.
    Without a deadline (time_left infinite) it is `inner`. Source: our own; any-time prediction
    with exits is as in Teerapittayanon et al. (arXiv 1709.01686).
    """

    inner: Criterion
    margin_seconds: float = 0.0

    @property
    def name(self) -> str:
        """`deadline(confidence:0.6)` or `deadline(confidence:0.6):margin=0.005`."""
        margin = arguments([("margin", self.margin_seconds)] if self.margin_seconds else [])
        return f"{DEADLINE}({self.inner.name}){margin}"

    def decide(self, seen: Observation) -> Decision | None:
        """A reading, or None while there is time for a better one."""
        if (decision := self.inner.decide(seen)) is not None:
            return decision
        is_deepest = seen.next_exit_seconds == math.inf
        step = seen.cloud_seconds if is_deepest else seen.next_exit_seconds
        if step <= seen.time_left - self.margin_seconds:
            return None
        return Decision(most_confident(seen.readings), DEADLINE)

    def learn(self, seen: Observation, token_id: int) -> None:
        """Passed on."""
        self.inner.learn(seen, token_id)


# -------------------------------------------------------------------------------- together


@dataclass(frozen=True, slots=True)
class Both:
    """Take what all `parts` take, if it is the same reading; `by` joins their names with `&`."""

    parts: tuple[Criterion, ...]

    @property
    def name(self) -> str:
        """`margin:0.5 & coherence`."""
        return " & ".join(
            f"({part.name})" if isinstance(part, Either) else part.name for part in self.parts
        )

    def decide(self, seen: Observation) -> Decision | None:
        """The reading that all take."""
        made: list[Decision] = []
        for part in self.parts:
            decision = part.decide(seen)
            if decision is None or (made and decision.reading != made[0].reading):
                return None
            made.append(decision)
        return Decision(made[0].reading, " & ".join(decision.by for decision in made))

    def learn(self, seen: Observation, token_id: int) -> None:
        """Passed on."""
        for part in self.parts:
            part.learn(seen, token_id)


@dataclass(frozen=True, slots=True)
class Either:
    """Take what the first of `parts` that takes anything takes; `by` is that one's."""

    parts: tuple[Criterion, ...]

    @property
    def name(self) -> str:
        """`patience:2 | confidence:0.9`."""
        return " | ".join(part.name for part in self.parts)

    def decide(self, seen: Observation) -> Decision | None:
        """The reading of the first that takes one."""
        for part in self.parts:
            if (decision := part.decide(seen)) is not None:
                return decision
        return None

    def learn(self, seen: Observation, token_id: int) -> None:
        """Passed on."""
        for part in self.parts:
            part.learn(seen, token_id)
