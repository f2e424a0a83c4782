"""What the routes share: the engine, and how the server was set."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from collm.config import Generation
from collm.errors import PromptError, Refused
from collm.limits import DEFAULT_LIMITS, Limits
from collm.link.credentials import TokenFile
from collm.runtime.constraints import check_constraint
from collm.serve.engine import Engine
from collm.serve.openai.errors import ApiError, busy
from collm.serve.openai.live import Choice

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Serving:
    """One model, and who may ask it."""

    engine: Engine
    name: str
    """The model's id."""
    defaults: Generation
    """What a request gets for what it leaves out."""
    keys: TokenFile | None = None
    """Who may ask; None: everybody."""
    hosts: frozenset[str] | None = None
    """Names under which a browser may know this server; None: any."""
    origins: tuple[str, ...] = ()
    """Other sites whose pages may ask."""
    page: Path | None = None
    """The folder of the chat page; None: there is none."""
    limits: Limits = DEFAULT_LIMITS
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def fingerprint(self) -> str:
        """The `system_fingerprint` of all answers."""
        return f"fp_{self.engine.artifact.fingerprint[:12]}"

    def check_model(self, name: str) -> None:
        """Raises ApiError for a model that is not here."""
        if name != self.name:
            raise ApiError(
                404,
                f"the model {name!r} does not exist here; expected {self.name!r}",
                param="model",
                code="model_not_found",
            )

    async def start(self, wanted: Sequence[Choice], owner: str = "") -> None:
        """Start all the answers or none of them. Raises ApiError, and what an engine does."""
        await off_loop(lambda: self._start(wanted, owner), lambda _: _cancel(wanted))

    def _start(self, wanted: Sequence[Choice], owner: str) -> None:
        try:
            for choice in wanted:
                choice.started = self.engine.start(choice.prompt_ids, choice.generation, owner)
        except Refused as error:
            _cancel(wanted)
            raise busy(error) from None
        except PromptError as error:
            _cancel(wanted)
            raise self._blamed(error, wanted) from None
        except BaseException:
            _cancel(wanted)
            raise

    def _blamed(self, error: PromptError, wanted: Sequence[Choice]) -> Exception:
        """Which field of the request it was, where that can be told."""
        constraint = wanted[0].generation.sampling.constraint
        try:
            check_constraint(self.engine.artifact, constraint, self.limits)
        except PromptError as same:
            return ApiError(400, str(same), param="response_format", code="invalid_value")
        return error


async def off_loop(work: Callable[[], T], undo: Callable[[T], None] = lambda _: None) -> T:
    """The result of `work`, done in a thread; where nobody waits for it any more, it is undone."""
    future = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        future.add_done_callback(lambda done: None if _failed(done) else undo(done.result()))
        raise


def _failed(done: asyncio.Future[T]) -> bool:
    return done.cancelled() or done.exception() is not None


def _cancel(choices: Sequence[Choice]) -> None:
    for choice in choices:
        if choice.started is not None:
            choice.started.cancel()
