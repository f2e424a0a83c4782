"""What a stream gives, and the whole answer at its end.

Every event has `text`, what it adds to the certain text: the `text` of all events in a row is the
answer's. So a reader that only prints needs to know no kinds of events.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """A token of the answer."""

    text: str
    """What became certain with it; empty while a character, or a stop string, is incomplete."""
    token_id: int
    source: str
    """Where it was made: `exit@15`, `server@15` (an edge server's exit), `cloud`, or `edge` (the
    whole model on this device)."""
    exit: int | None
    """The cut of the exit that made it; None: the full model did."""
    confidence: float | None
    """The exit's calibrated probability, or the full model's where that one chose; None: unknown.
    """
    by: str
    """What let it pass: a criterion's name, such as `confidence:0.6`, or `full model`."""
    provisional: bool
    """Whether it was never verified, because the cloud stayed away."""
    index: int
    """Of the answer's tokens, from 0."""
    seconds: float
    """Since the token before; of the first, since the prompt was read."""
    logprob: float | None
    """The full model's log-probability where that one chose or judged it, else that of the exit's
    confidence."""
    alternatives: tuple[tuple[int, float], ...]
    """The likeliest tokens in its place with their log-probabilities, where `top_logprobs` asked
    for them and somebody could tell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """A token written while the cloud is away, to be shown after all that is certain.

    The next `Token` takes the place of all previews since the last one; those that are still
    expected come again.
    """

    preview: str
    """Its text. Not in `text`, as it is not certain."""
    token_id: int
    source: str
    exit: int | None
    confidence: float | None
    index: int
    """Where in the answer it would be."""
    text: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Withdrawn:
    """Previews did not stand: the token that follows is another one than was shown."""

    index: int
    """Of the first that did not stand."""
    count: int
    """How many were shown from there on."""
    text: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class WayChanged:
    """From here on tokens are made another way; in mode `auto`, and with wire format `auto`."""

    index: int
    """Of the first token that is."""
    mode: str
    """`verified`, or `cloud`: the cloud goes on alone."""
    placement: int
    """Layers on this device."""
    wire: str
    reason: str
    text: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What an answer took. Times are seconds of wall clock, bytes are frame bytes."""

    mode: str
    placement: int
    """Layers on this device."""
    exits: tuple[int, ...]
    sources: Mapping[str, int]
    """Tokens by where they were made."""
    rounds: int
    """Times this device waited for the cloud."""
    drafted: int
    """Tokens proposed to it."""
    cloud_rows: int
    """Positions that the cloud ran through its layers."""
    bytes_up: int
    bytes_down: int
    edge_seconds: float
    """Computing on this device."""
    cloud_seconds: float
    """Computing in the cloud, as it reports."""
    wall_seconds: float
    first_token_seconds: float
    tokens_per_second: float
    reconnects: int
    """Links that broke and were replaced."""
    replayed_bytes: int
    """Sent again for it."""
    previewed: int
    """Tokens shown before they were verified."""
    withdrawn: int
    """Those of them that did not stand."""
    provisional: int
    """Tokens of the answer that were never verified."""
    reused_tokens: int
    """Positions of the prompt that were held already, from an answer before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A whole answer."""

    text: str
    tokens: tuple[Token, ...]
    finish_reason: str
    """`stop`: the model ended it, or a stop string did. `length`: it was long enough."""
    prompt_tokens: int
    summary: Summary


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """The last event."""

    answer: Answer
    text: str = ""
    """What was held back because it might have become a stop string."""


Event = Token | Preview | Withdrawn | WayChanged | Done
"""What a stream gives."""
