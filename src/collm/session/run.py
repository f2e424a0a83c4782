"""What the modes of one answer share: ids, settings, clocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from collm.config import Generation
from collm.errors import PromptError
from collm.policy.drafting import DraftRule
from collm.runtime.stage import Stage
from collm.session.client import CloudClient
from collm.session.events import Account


@dataclass(kw_only=True)
class Run:
    """One answer under way."""

    generation: Generation
    stop_ids: frozenset[int]
    """Tokens that end the answer."""
    ids: list[int]
    """Prompt, then what was emitted (and, at its end, the draft under way)."""
    account: Account
    stage: Stage | None
    exits: tuple[int, ...]
    open_client: Callable[[int], CloudClient] | None
    """Opens a session with the cloud that begins at the given layer."""
    max_positions: int
    emitted: int = 0
    rule: DraftRule = field(init=False)

    def __post_init__(self) -> None:
        made = self.generation
        self.rule = DraftRule(threshold=made.threshold, limit=made.draft)

    @property
    def remaining(self) -> int:
        """Tokens that may still be emitted."""
        return min(self.generation.max_tokens - self.emitted, self.max_positions - len(self.ids))

    def client(self, cut: int) -> CloudClient:
        """A session with the cloud. Raises PromptError where there is none to ask."""
        if self.open_client is None:
            raise PromptError(
                f"mode {self.generation.mode} needs a cloud; add --cloud HOST:PORT or "
                "--cloud spawn, or use --mode standalone"
            )
        return self.open_client(cut)

    @contextmanager
    def at_edge(self) -> Iterator[None]:
        """Count the time inside as the edge's."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.account.edge_seconds += time.perf_counter() - started
