"""The server over an engine that computes nothing: what is left is the server's own work.

`python -m collm.bench.serving_bare FOLDER TOKENS PACE` serves answers of so many tokens, one every
PACE seconds, each with the moment it was made as its text. The clock is the machine's, so that a
reader in another process knows how long a token was on its way.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import cast

from collm.config import Generation
from collm.errors import Unreachable
from collm.link.base import Link
from collm.model.artifact import Artifact
from collm.serve.engine import Engine, EngineSettings
from collm.serve.openai.server import listening, run_server
from collm.serve.openai.serving import Serving
from collm.serve.reply import Reply
from collm.session.answer import Answer
from collm.session.events import Account, EmittedToken, Piece


class _Made:
    """Stands for an `Answer`."""

    def __init__(self, prompt: int, tokens: int, pace: float) -> None:
        self.account = Account(mode="cloud", prompt_tokens=prompt)
        self._tokens = tokens
        self._pace = pace

    def cancel(self) -> None:
        """It ends by itself."""

    def with_previews(self) -> Generator[Piece, None, None]:
        """The tokens, one after the other."""
        for number in range(self._tokens):
            time.sleep(self._pace)
            token = EmittedToken(token_id=number % 1000, source="cloud", confidence=0.5)
            self.account.tokens.append(token)
            yield Piece(token=token, text=f" {time.monotonic():.6f}")


class _Bare(Engine):
    def __init__(self, artifact: Artifact, tokens: int, pace: float) -> None:
        super().__init__(artifact, EngineSettings(mode="cloud"), _nobody)
        self._made = tokens, pace

    def start(self, prompt_ids: Sequence[int], generation: Generation, owner: str = "") -> Reply:
        """An answer that is there at once."""
        made = cast(Answer, _Made(len(prompt_ids), *self._made))
        reply = Reply(made, lambda _: None)
        threading.Thread(target=reply.run, daemon=True).start()
        return reply


def _nobody() -> Link:
    raise Unreachable("there is no cloud")


def main(folder: str, tokens: str, pace: str) -> None:
    """Serve until told to end; the first line of output is the address."""
    artifact = Artifact(Path(folder))
    with _Bare(artifact, int(tokens), float(pace)) as engine, listening("127.0.0.1", 0) as taken:
        serving = Serving(engine=engine, name="bare", defaults=Generation(mode="cloud"))
        run_server(serving, taken, ready=lambda url: print(url, flush=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
