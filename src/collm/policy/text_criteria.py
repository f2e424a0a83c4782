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
    """Take when confidence, corrected by how the text hangs together, is at least the threshold.

    σ(logit(confidence) − weight · incoherence) >= threshold, with `incoherence` as below: one more
    piece of evidence beside the exit's own. weight 0 is `confidence`. Source: our own, Platt
    scaling (Platt 1999) with the text's metrics as further inputs.
    """

    threshold: float
    weight: float = 1.0

    @property
    def name(self) -> str:
        """`hybrid:0.6,weight=1`."""
        return f"hybrid:{number(self.threshold)},weight={number(self.weight)}"

    def decide(self, seen: Observation) -> Decision | None:
        """The last reading, where it is sure enough for such a text."""
        sure = corrected(seen.last.confidence, self.weight * incoherence(seen.coherence))
        return taken(seen, self.name) if sure >= self.threshold else None


def incoherence(text: Coherence) -> float:
    """By how much the text so far lowers the log-odds that an exit is right.

    0.36 · repetition + 0.33 · drift − 0.40 · exp(−since_boundary / 4): exits are wrong more often
    than they say in texts that repeat themselves or have left the prompt, and less often where a
    sentence begins. Logistic regression over the four exits that ship and 66,225 tokens of
    SmolLM2-135M (`collm trace`); window_logprob and entropy_trend added nothing there. For another
    model `collm tune-policy` learns its own.
    """
    boundary = math.exp(-text.since_boundary / 4)
    return 0.36 * text.repetition + 0.33 * text.drift - 0.40 * boundary


def corrected(confidence: float, log_odds: float) -> float:
    """σ(logit(confidence) − log_odds)."""
    if not 0 < confidence < 1:
        return confidence
    return 1 / (1 + (1 - confidence) / confidence * math.exp(log_odds))
