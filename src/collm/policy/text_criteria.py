"""Exit criteria that look at the text so far: is it going well, does it hang together.

The metrics, and how they are counted, are those of `collm.policy.coherence`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from collm.policy.criteria import Unlearning, arguments, number, taken
from collm.policy.observation import Coherence, Decision, Observation


@dataclass(frozen=True, slots=True)
class Window(Unlearning):
    """Take when the geometric mean of the last `over` confidences, this one's included, suffices.

    exp((n · window_logprob + log confidence) / (n + 1)) >= threshold, with n = over − 1, or the
    tokens written where these are fewer. `window_logprob` is the mean that the text's tracker
    keeps (of its last 16 tokens); `over` says for how many of them it counts. The geometric mean
    is 1 / perplexity: its neighbours carry a hopeless token less far than in an arithmetic one.
    Source: our own.
    """

    threshold: float
    over: int = 8

    @property
    def name(self) -> str:
        """`window:0.7,over=8`."""
        return f"window:{number(self.threshold)},over={self.over}"

    def decide(self, seen: Observation) -> Decision | None:
        """The last reading, where the text has been going well up to it."""
        past = min(self.over - 1, seen.coherence.tokens)
        own = math.log(max(seen.last.confidence, 1e-9))
        mean = (past * seen.coherence.window_logprob + own) / (past + 1)
        return taken(seen, self.name) if math.exp(mean) >= self.threshold else None


SETTLED = 8
"""Tokens from which on means and slopes over the last tokens are worth a judgement."""


@dataclass(frozen=True, slots=True)
class CoherenceGate(Unlearning):
    """Take any reading while the text so far hangs together; hand over to the cloud otherwise.

    It hangs together when, over the last tokens (`collm.policy.coherence` defines the metrics),

        repetition <= its bound and, from the 8th token on,
        window_logprob >= its bound, entropy_trend <= its bound, drift <= its bound.

    At the first token of a sentence, where its direction is decided, the reading itself needs
    confidence >= boundary. Meant to be combined: `confidence:0.6 & coherence`. Source: our own;
    the n-gram measure is that of Welleck et al. (arXiv 1908.04319), rep-n over a window.
    """

    repetition: float = 0.5
    logprob: float = -1.2
    drift: float = 0.7
    trend: float = 0.15
    boundary: float = 0.5

    @property
    def name(self) -> str:
        """`coherence`, with the bounds that are not the usual ones."""
        usual = CoherenceGate()
        return "coherence" + arguments(
            (key, getattr(self, key))
            for key in ("repetition", "logprob", "drift", "trend", "boundary")
            if getattr(self, key) != getattr(usual, key)
        )

    def decide(self, seen: Observation) -> Decision | None:
        """The last reading, where nothing is wrong with the text."""
        text = seen.coherence
        if text.repetition > self.repetition:
            return None
        if text.tokens >= SETTLED and (
            text.window_logprob < self.logprob
            or text.entropy_trend > self.trend
            or text.drift > self.drift
        ):
            return None
        if text.since_boundary == 0 and seen.last.confidence < self.boundary:
            return None
        return taken(seen, self.name)


@dataclass(frozen=True, slots=True)
class Hybrid(Unlearning):
    """Take when confidence >= threshold + weight · (1 − threshold) · incoherence.

    `incoherence` is in [0, 1] (see the function of that name): the worse the text hangs together,
    the surer an exit has to be. weight, 0 to 1: at 1 nothing but certainty passes in a text that
    has come apart. Source: our own.
    """

    threshold: float
    weight: float = 0.8

    @property
    def name(self) -> str:
        """`hybrid:0.6,weight=0.8`."""
        return f"hybrid:{number(self.threshold)},weight={number(self.weight)}"

    def decide(self, seen: Observation) -> Decision | None:
        """The last reading, where it is sure enough for such a text."""
        raised = self.weight * (1 - self.threshold) * incoherence(seen.coherence)
        return taken(seen, self.name) if seen.last.confidence >= self.threshold + raised else None


def incoherence(text: Coherence) -> float:
    """How far a text has come apart, 0 to 1: 1 − Π (1 − sign), so that mild signs add up.

    Each sign goes from 0 to 1 in a straight line while its metric goes from what ordinary text
    has to what a broken one has: repetition 0.1 to 0.6 and, from the 8th token on, window_logprob
    −0.8 to −2, entropy_trend 0.05 to 0.25 and drift 0.55 to 0.85.
    """
    sound = 1 - _ramp(text.repetition, 0.1, 0.6)
    if text.tokens >= SETTLED:
        sound *= 1 - _ramp(-text.window_logprob, 0.8, 2.0)
        sound *= 1 - _ramp(text.entropy_trend, 0.05, 0.25)
        sound *= 1 - _ramp(text.drift, 0.55, 0.85)
    return 1 - sound


def _ramp(value: float, fine: float, broken: float) -> float:
    return min(1.0, max(0.0, (value - fine) / (broken - fine)))
