"""Exits at work: an adapter with a cache of its own, a head, and a calibrated confidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from collm.model.artifact import Artifact
from collm.model.manifest import ExitEntry
from collm.runtime.backend import Backend, Chain, Head
from collm.runtime.rows import RowBuffer

F32 = npt.NDArray[np.float32]

_PREFILL_ROWS = 128


@dataclass(frozen=True, slots=True)
class ExitResult:
    """An exit's guess at the token after one position."""

    cut: int
    token_id: int
    confidence: float
    """Calibrated probability of `token_id`."""
    runner_up: int
    runner_up_confidence: float


class ExitHead:
    """The shared part of an exit: weights, shortlist, calibration."""

    def __init__(self, artifact: Artifact, entry: ExitEntry, backend: Backend, head: Head) -> None:
        self.entry = entry
        self.head = head
        self.norm = artifact.floats(entry.norm)
        self.ids = artifact.head_ids(artifact.manifest.heads[entry.head])
        self.vocabulary = artifact.architecture.vocab_size
        self.adapter: Chain[Any] | None = None
        if entry.graph is not None:
            self.adapter = backend.chain(artifact.graph(entry.graph), artifact.architecture)


class ExitSession:
    """One session's side of an exit: the adapter's cache and how far it is filled."""

    def __init__(self, exit_head: ExitHead) -> None:
        self._exit = exit_head
        self.done = 0
        self._adapted: F32 | None = None
        """What the adapter made of the position before `done`."""
        self.cache = exit_head.adapter.new_cache() if exit_head.adapter else _NO_CACHE

    def result(self, rows: RowBuffer, position: int) -> ExitResult:
        """The guess for the position before `position`."""
        exit_head = self._exit
        row = self._last_row(rows, position)
        top = exit_head.head.top(row, exit_head.norm, exit_head.entry.temperature)
        first, second = top.first, top.second
        if exit_head.ids is not None:
            first, second = int(exit_head.ids[first]), int(exit_head.ids[second])
        return ExitResult(exit_head.entry.cut, first, top.first_prob, second, top.second_prob)

    def logits(self, rows: RowBuffer, position: int) -> F32:
        """Calibrated logits float32 [vocabulary]; −inf for tokens outside the shortlist."""
        exit_head = self._exit
        row = self._last_row(rows, position)
        logits: F32 = exit_head.head.logits(row, exit_head.norm)[0]
        logits /= exit_head.entry.temperature
        if exit_head.ids is None:
            return logits
        full = np.full(exit_head.vocabulary, -np.inf, dtype=np.float32)
        full[exit_head.ids] = logits
        return full

    def crop(self, position: int) -> None:
        """Forget positions from `position` on."""
        if position < self.done:
            self.done, self._adapted = position, None

    def _last_row(self, rows: RowBuffer, position: int) -> F32:
        adapter = self._exit.adapter
        if adapter is None:
            self.done = position
            return rows.take(position - 1, position)
        if self.done == position and self._adapted is not None:
            return self._adapted
        # After a crop to where nothing is pending the last row is run again.
        start = min(self.done, position - 1)
        pending = rows.take(start, position)
        for offset in range(0, len(pending), _PREFILL_ROWS):
            part = pending[offset : offset + _PREFILL_ROWS]
            made = adapter.run(part, self.cache, start + offset)
        self.done, self._adapted = position, made[-1:]
        return self._adapted


class _NoCache:
    bytes = 0


_NO_CACHE = _NoCache()
