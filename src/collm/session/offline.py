"""What the exits write while there is no cloud to ask: shown as previews, and taken back again.

Once a cloud is there the text is made anew from where it was missed, and so is what it would have
been without the outage. For `threshold`; `verified` keeps what it writes, as everything is a draft
there, and `refine` shows the segment that it has written.

The session has to stand where every exit has been asked about the last position, and the next one
has to be appended afterwards: then it does not matter that more was run meanwhile. An exit with a
window may sum what it sees in another order afterwards, which changes its confidence in the last
bits.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from collm.policy.observation import Decision
from collm.runtime.stage import StageSession
from collm.session.connection import Connection
from collm.session.drafter import Drafter, Guess
from collm.session.events import EmittedToken, Preview
from collm.session.modes import answer_of
from collm.session.run import Run

_MOST_WRITTEN: Final = 192
"""Tokens; further back than 256 an exit with a window would not find all of it again."""


def preview(run: Run, position: int, made: Decision) -> Preview:
    """What an exit says of this position of the text, to be shown apart."""
    reading = made.reading
    token = EmittedToken(
        token_id=reading.token_id,
        source=reading.source,
        confidence=reading.confidence,
        by=made.by,
        provisional=True,
    )
    return Preview(token, position - run.account.prompt_tokens)


class Offline:
    """Writes on from where an answer stands while `connection` is down."""

    def __init__(
        self, run: Run, session: StageSession, drafter: Drafter, connection: Connection
    ) -> None:
        self._run = run
        self._session = session
        self._drafter = drafter
        self._connection = connection
        self._shown = 0
        """Positions before this one were shown."""

    def previews(self, guess: Guess | None = None) -> Generator[Preview, None, bool]:
        """Write until the link is back, then forget it; whether there is more to write.

        guess: what is known of the next token. What an earlier call has shown is not shown again,
        until something certain was emitted: see `settled`.
        """
        run, start = self._run, len(self._run.ids)
        most = min(run.remaining, _MOST_WRITTEN)
        try:
            while self._connection.is_down:
                if guess is None:
                    with run.at_edge():
                        guess = self._drafter.guess(run.ids)
                made, position = answer_of(guess), len(run.ids)
                reading = made.reading
                if position - start == most or reading.token_id in run.stop_ids:
                    return False
                if position >= self._shown:
                    self._shown = position + 1
                    yield preview(run, position, made)
                run.ids.append(reading.token_id)
                self._drafter.write(reading.token_id, reading.confidence, reading.entropy)
                self._session.append_ids([reading.token_id])
                guess = None
        finally:
            del run.ids[start:]
            self._session.crop(start)
            self._drafter.crop(start)
        return True

    def settled(self) -> None:
        """Something certain was emitted, in the place of all that was shown."""
        self._shown = 0
