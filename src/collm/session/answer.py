"""An answer under way: its pieces as they become certain, and the account of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence

from collm.session import modes
from collm.session.events import Account, EmittedToken, Piece, Preview
from collm.session.run import Run
from collm.session.text import TextOut


class Answer:
    """An answer under way: iterate for its pieces; `account` is complete afterwards."""

    def __init__(
        self,
        run: Run,
        loop: Callable[[Run], modes.Tokens],
        text: TextOut,
        decode: Callable[[Sequence[int]], str],
    ) -> None:
        self.account = run.account
        self._run = run
        self._loop = loop
        self._text = text
        self._decode = decode
        self._shown: list[int] = []
        """Previewed, and not settled yet."""
        self._pieces = self._stream()
        self._certain = self._without_previews()

    def __iter__(self) -> Generator[Piece, None, None]:
        """The certain pieces that are still to come; an answer runs once."""
        return self._certain

    def with_previews(self) -> Generator[Piece, None, None]:
        """Also what is written while the cloud is away, to be shown apart: see `Piece.preview`."""
        return self._pieces

    def _without_previews(self) -> Generator[Piece, None, None]:
        try:
            for piece in self._pieces:
                if not piece.preview:
                    yield piece
        finally:
            self._pieces.close()

    def _stream(self) -> Generator[Piece, None, None]:
        account, text, started = self.account, self._text, time.perf_counter()
        tokens = self._loop(self._run)
        try:
            while True:
                asked = self._run.asked_at = time.perf_counter()
                token = next(tokens, None)
                if token is None:
                    break
                if isinstance(token, Preview):
                    yield self._preview(token)
                    continue
                self._compare(token)
                now = time.perf_counter()
                if not account.tokens:
                    account.first_token_seconds = now - started
                account.token_seconds.append(now - max(asked, self._run.ready_at))
                if token.token_id in self._run.stop_ids:
                    account.finish_reason = "stop"
                    break
                account.tokens.append(token)
                piece = text.push(token.token_id)
                account.text += piece
                account.wall_seconds = time.perf_counter() - started
                yield Piece(token=token, text=piece)
                if text.stopped:
                    account.finish_reason = "stop"
                    break
            rest = text.flush()
            account.text += rest
            if rest and account.tokens:
                yield Piece(token=account.tokens[-1], text=rest)
        finally:
            tokens.close()
            account.wall_seconds = time.perf_counter() - started

    def _preview(self, made: Preview) -> Piece:
        """A token that is shown, perhaps again, and not part of the answer yet."""
        certain, token = self.account.token_ids, made.token
        at = made.index - len(certain)
        if at == len(self._shown):
            self.account.previewed += 1
            self._shown.append(token.token_id)
        ids = [*certain, *self._shown[:at], token.token_id]
        before, after = self._decode(ids[:-1]), self._decode(ids)
        return Piece(token=token, text=after[len(before) :], preview=True)

    def _compare(self, token: EmittedToken) -> None:
        """Count the previews that did not stand."""
        if self._shown:
            if self._shown[0] == token.token_id:
                del self._shown[0]
            else:
                self.account.withdrawn += len(self._shown)
                self._shown.clear()

    def cancel(self) -> None:
        """Break it off, from any thread: where it is waited for, Cancelled is raised soon."""
        self._run.broken_off.set()

    def finish(self) -> Account:
        """Run (or go on) to the end and return the account."""
        for _ in self:
            pass
        return self.account
