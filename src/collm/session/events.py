"""What a generation gives: tokens as they are certain, and an account at the end."""

from __future__ import annotations

from dataclasses import dataclass, field

from collm.config import Way
from collm.policy.observation import Coherence


@dataclass(frozen=True, kw_only=True, slots=True)
class EmittedToken:
    """One token of the answer."""

    token_id: int
    source: str
    """Where it was made: `exit@15`, `server@15` (an edge server's exit), `cloud`, or `edge` (the
    whole model on the device)."""
    confidence: float | None = None
    """The exit's calibrated probability, or the full model's where that one chose."""
    by: str = "full model"
    """What let it pass: a criterion's name, such as `confidence:0.6`, or the full model."""
    provisional: bool = False
    """Whether it still has to be verified: there was no cloud to do it."""
    logprob: float | None = None
    """Its log-probability: the full model's where that one chose or judged it (at temperature 1,
    before penalty and constraint), else that of the exit's confidence. None: of a preview."""
    alternatives: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens in its place and their log-probabilities, of the same distribution;
    empty where they were not asked for, or nobody could tell (drafts that no cloud has seen)."""


@dataclass(frozen=True, slots=True)
class Preview:
    """A token written while no cloud could be asked; once one is back, the certain one follows."""

    token: EmittedToken
    index: int
    """Of the answer's tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A token and the text that became certain with it."""

    token: EmittedToken
    text: str
    preview: bool = False
    """Written while the cloud was away, and shown after all that is certain. The next piece that
    is no preview takes the place of all previews since the last: the answer is the other pieces'.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """One full-model pass over a segment, in `refine` mode."""

    first: int
    """Index of the segment's first token in the answer."""
    scored: int
    """Tokens of the segment that the pass looked at."""
    kept: int
    """How many of them stand."""
    mean_logprob: float
    """Of the scored tokens, under the full model, in nats."""
    rejected: int | None = None
    """The token that did not stand; None: all do."""
    replacement: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """From a token of the answer on, tokens are made another way."""

    index: int
    way: Way
    reason: str


@dataclass(kw_only=True)
class Account:
    """One answer, as reported. Times are wall-clock seconds, bytes are frame bytes."""

    mode: str
    prompt_tokens: int
    reused_tokens: int = 0
    """Positions of the prompt that were held already, here and in the cloud, from an answer before.
    """
    text: str = ""
    finish_reason: str = "length"
    tokens: list[EmittedToken] = field(default_factory=list)
    rounds: int = 0
    """Times the edge waited for the cloud."""
    drafted: int = 0
    """Tokens proposed to the cloud."""
    guessed: int = 0
    """Positions at which exits were asked, whatever became of it."""
    changes: list[Change] = field(default_factory=list)
    """How tokens were to be made, in mode `auto`, and why."""
    cloud_rows: int = 0
    """Positions that the cloud ran through its layers."""
    cloud_heads: int = 0
    """Positions for which the cloud computed the full model's logits."""
    degraded: int = 0
    """Tokens taken only because they were due."""
    previewed: int = 0
    """Tokens shown while the cloud was away, before they were verified."""
    withdrawn: int = 0
    """Those of them that did not stand when it was back."""
    token_seconds: list[float] = field(default_factory=list)
    """Time from one token to the next; the first counts from the end of the prompt's prefill."""
    coherence: Coherence | None = None
    """Of the finished answer, in modes with exits."""
    passes: list[Pass] = field(default_factory=list)
    """What `refine` did."""
    logprob_before: float | None = None
    """Mean log-probability under the full model of what `refine` first wrote, in nats."""
    logprob_after: float | None = None
    """The same of the answer."""
    reconnects: int = 0
    """Links that broke and were replaced."""
    replayed_bytes: int = 0
    """Sent again for it."""
    bytes_up: int = 0
    bytes_down: int = 0
    edge_seconds: float = 0.0
    """Computing at the edge."""
    cloud_seconds: float = 0.0
    """Computing in the cloud, as it reports."""
    wall_seconds: float = 0.0
    first_token_seconds: float = 0.0

    @property
    def token_ids(self) -> list[int]:
        """Ids of the answer, without the end-of-text token."""
        return [token.token_id for token in self.tokens]

    @property
    def provisional(self) -> int:
        """Tokens of the answer that were never verified, because the cloud stayed away."""
        return sum(token.provisional for token in self.tokens)

    @property
    def sources(self) -> dict[str, int]:
        """Tokens per source."""
        counts: dict[str, int] = {}
        for token in self.tokens:
            counts[token.source] = counts.get(token.source, 0) + 1
        return counts
