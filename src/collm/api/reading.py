"""From an answer's pieces to events, for both kinds of stream. Waits for nothing.

The answer is made in a thread of its own, which may be some tokens ahead of who reads it: what is
read of its account here is either in order (lists that only grow) or asked for at the end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from collm.api.events import Answer, Done, Event, Preview, Summary, Token, WayChanged, Withdrawn
from collm.session.events import Account, EmittedToken, Piece

_EXIT = re.compile(r"(?:exit|server)@([0-9]+)")


class Reading:
    """One answer's events. placement, exits: what the summary says of the device."""

    def __init__(self, account: Account, placement: int, exits: tuple[int, ...]) -> None:
        self._account = account
        self._placement = placement
        self._exits = exits
        self._tokens: list[Token] = []
        self._last: EmittedToken | None = None
        self._shown: list[int] = []
        """Ids of previews that are not settled."""
        self._since = 0
        """Previews since the last token."""
        self._changes = 0
        self._rest = ""
        self._length = 0
        """Of the certain text so far."""

    def events(self, piece: Piece) -> Iterator[Event]:
        """What this piece says."""
        if piece.preview:
            yield self._preview(piece)
            return
        self._length += len(piece.text)
        if piece.token is self._last:  # no new token: text that was held back until the end
            self._rest += piece.text
            return
        made, index = piece.token, len(self._tokens)
        yield from self._new_ways(index)
        if self._shown and self._shown[0] != made.token_id:
            yield Withdrawn(index=index, count=len(self._shown))
            self._shown.clear()
        del self._shown[:1]
        self._since, self._last = 0, made
        token = Token(
            text=piece.text,
            token_id=made.token_id,
            source=made.source,
            exit=_exit(made),
            confidence=made.confidence,
            by=made.by,
            provisional=made.provisional,
            index=index,
            seconds=self._account.token_seconds[index],
            logprob=made.logprob,
            alternatives=made.alternatives,
        )
        self._tokens.append(token)
        yield token

    @property
    def is_whole(self) -> bool:
        """Whether everything was read that the account has."""
        return self._length == len(self._account.text) and len(self._tokens) == len(
            self._account.tokens
        )

    def end(self) -> Iterator[Event]:
        """What is left to say once the account is complete."""
        account = self._account
        yield from self._new_ways(len(self._tokens))
        if self._shown:
            yield Withdrawn(index=len(self._tokens), count=len(self._shown))
        answer = Answer(
            text=account.text,
            tokens=tuple(self._tokens),
            finish_reason=account.finish_reason,
            prompt_tokens=account.prompt_tokens,
            summary=self._summary(),
        )
        yield Done(answer=answer, text=self._rest)

    def _preview(self, piece: Piece) -> Preview:
        token, at = piece.token, self._since
        self._since += 1
        self._shown[at:] = [token.token_id, *self._shown[at + 1 :]]
        return Preview(
            preview=piece.text,
            token_id=token.token_id,
            source=token.source,
            exit=_exit(token),
            confidence=token.confidence,
            index=len(self._tokens) + at,
        )

    def _new_ways(self, index: int) -> Iterator[WayChanged]:
        changes = self._account.changes
        while self._changes < len(changes) and changes[self._changes].index <= index:
            change = changes[self._changes]
            self._changes += 1
            yield WayChanged(
                index=change.index,
                mode=change.way.mode,
                placement=change.way.placement,
                wire=change.way.wire,
                reason=change.reason,
            )

    def _summary(self) -> Summary:
        account = self._account
        wall = account.wall_seconds
        return Summary(
            mode=account.mode,
            placement=self._placement,
            exits=self._exits,
            sources=account.sources,
            rounds=account.rounds,
            drafted=account.drafted,
            cloud_rows=account.cloud_rows,
            bytes_up=account.bytes_up,
            bytes_down=account.bytes_down,
            edge_seconds=account.edge_seconds,
            cloud_seconds=account.cloud_seconds,
            wall_seconds=wall,
            first_token_seconds=account.first_token_seconds,
            tokens_per_second=len(account.tokens) / wall if wall else 0.0,
            reconnects=account.reconnects,
            replayed_bytes=account.replayed_bytes,
            previewed=account.previewed,
            withdrawn=account.withdrawn,
            provisional=account.provisional,
            reused_tokens=account.reused_tokens,
        )


def _exit(token: EmittedToken) -> int | None:
    found = _EXIT.fullmatch(token.source)
    return int(found[1]) if found else None
