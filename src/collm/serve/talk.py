"""Somebody to talk with: an engine in this process, or a server (`talk_server`).

A `Talker` takes a whole conversation and answers its last turn; what came before costs little, as
caches are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from collm.config import Generation
from collm.serve.engine import Engine
from collm.session.events import Account

Message = Mapping[str, str]
"""`role` (system, user, assistant) and `content`."""


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of an answer."""

    text: str
    source: str = ""
    """Where its token was made, as `EmittedToken.source`; empty: the server does not say."""
    preview: bool = False
    """As `Piece.preview`: the next piece that is none takes the place of all previews."""
    provisional: bool = False


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What an answer took, or several together."""

    mode: str = ""
    answers: int = 1
    tokens: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    """Positions of the prompt whose caches were kept from an earlier turn."""
    sources: Mapping[str, int] = field(default_factory=dict)
    rounds: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    first_seconds: float = 0.0
    """To the first token; of several answers, of all together."""
    reconnects: int = 0
    previewed: int = 0
    withdrawn: int = 0
    provisional: int = 0
    finish_reason: str = ""


def tally_of(account: Account) -> Tally:
    """Of an engine's answer."""
    return Tally(
        mode=account.mode,
        tokens=len(account.tokens),
        prompt_tokens=account.prompt_tokens,
        reused_tokens=account.reused_tokens,
        sources=account.sources,
        rounds=account.rounds,
        bytes_up=account.bytes_up,
        bytes_down=account.bytes_down,
        seconds=account.wall_seconds,
        first_seconds=account.first_token_seconds,
        reconnects=account.reconnects,
        previewed=account.previewed,
        withdrawn=account.withdrawn,
        provisional=account.provisional,
        finish_reason=account.finish_reason,
    )


def together(tallies: Iterable[Tally]) -> Tally:
    """All of them as one."""
    sources: dict[str, int] = {}
    listed = list(tallies)
    for one in listed:
        for source, count in one.sources.items():
            sources[source] = sources.get(source, 0) + count
    return Tally(
        answers=sum(one.answers for one in listed),
        tokens=sum(one.tokens for one in listed),
        prompt_tokens=sum(one.prompt_tokens for one in listed),
        reused_tokens=sum(one.reused_tokens for one in listed),
        sources=sources,
        rounds=sum(one.rounds for one in listed),
        bytes_up=sum(one.bytes_up for one in listed),
        bytes_down=sum(one.bytes_down for one in listed),
        seconds=sum(one.seconds for one in listed),
        first_seconds=sum(one.first_seconds for one in listed),
        reconnects=sum(one.reconnects for one in listed),
        previewed=sum(one.previewed for one in listed),
        withdrawn=sum(one.withdrawn for one in listed),
        provisional=sum(one.provisional for one in listed),
    )


class Talker(Protocol):
    """Answers."""

    name: str
    """Who, and where, in a line."""
    modes: tuple[str, ...]
    """That may be asked for; empty: it has none."""
    exits: tuple[int, ...]
    has_defaults: bool
    """Whether it has settings of its own for what the user has not set."""
    tally: Tally | None
    """Of the last answer, once it is over or was broken off."""

    def say(
        self, messages: Sequence[Message], generation: Generation, chosen: frozenset[str]
    ) -> Iterator[Said]:
        """The answer to the last message; closing the iterator breaks it off.

        chosen: the settings that the user has set; others may be left to a server. Raises
        PromptError, LinkError and Refused.
        """
        ...


class EngineTalker:
    """An engine of this process."""

    has_defaults = False

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self.name = name
        self.modes = engine.modes
        self.exits = engine.exits
        self.tally: Tally | None = None

    def say(
        self, messages: Sequence[Message], generation: Generation, chosen: frozenset[str]
    ) -> Iterator[Said]:
        """See `Talker`."""
        tokenizer = self._engine.tokenizer
        if tokenizer.has_chat_template:
            ids = tokenizer.encode_chat(list(messages))
        else:  # a model that goes on with any text
            ids = tokenizer.encode("\n".join(one["content"] for one in messages))
        self.tally = None
        reply = self._engine.start(ids, generation)
        try:
            for piece in reply:
                token = piece.token
                yield Said(piece.text, token.source, piece.preview, token.provisional)
        finally:
            reply.cancel()
            self.tally = tally_of(reply.account)
