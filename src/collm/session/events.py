"""What a generation gives: tokens as they are certain, and an account at the end."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class EmittedToken:
    """One token of the answer."""

    token_id: int
    source: str
    """Where it was made: `exit@15`, `cloud`, or `edge` (the whole model on the device)."""
    confidence: float | None = None
    """The exit's calibrated probability, or the full model's where that one chose."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A token and the text that became certain with it."""

    token: EmittedToken
    text: str


@dataclass(kw_only=True)
class Account:
    """One answer, as reported. Times are wall-clock seconds, bytes are frame bytes."""

    mode: str
    prompt_tokens: int
    text: str = ""
    finish_reason: str = "length"
    tokens: list[EmittedToken] = field(default_factory=list)
    rounds: int = 0
    """Times the edge waited for the cloud."""
    drafted: int = 0
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
    def sources(self) -> dict[str, int]:
        """Tokens per source."""
        counts: dict[str, int] = {}
        for token in self.tokens:
            counts[token.source] = counts.get(token.source, 0) + 1
        return counts
