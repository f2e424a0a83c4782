"""Exits at work: an adapter with a cache of its own, a head, and a calibrated confidence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from collm.model.artifact import Artifact
from collm.model.manifest import ExitEntry
from collm.runtime.backend import Backend, Chain, Head, Top
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
    entropy: float
    """Of the exit's calibrated distribution, in nats."""


@dataclass(frozen=True, slots=True)
class ExitRows:
    """An exit's guesses at the tokens after n consecutive positions."""

    token_ids: npt.NDArray[np.int32]
    """int32 [n], by the model's own ids."""
    confidences: F32
    """Calibrated probabilities of `token_ids`, float32 [n]."""
    runner_up_confidences: F32
    """Those of the second likeliest tokens, float32 [n]."""
    entropies: F32
    """Of the calibrated distributions, in nats, float32 [n]."""


class ExitHead:
    """The shared part of an exit: weights, shortlist, calibration."""

    def __init__(self, artifact: Artifact, entry: ExitEntry, backend: Backend, head: Head) -> None:
        self.entry = entry
        self.head = head
        self.norm = artifact.floats(entry.norm)
        self.ids = artifact.head_ids(artifact.manifest.heads[entry.head])
        """The token ids of its logits, ascending; None: all there are."""
        self.vocabulary = artifact.architecture.vocab_size
        self.adapter: Chain[Any] | None = None
        if entry.graph is not None:
            graph, arch = artifact.graph(entry.graph), artifact.architecture
            self.adapter = backend.chain(graph, arch, entry.window)

    def top(self, hidden_states: F32, temperature: float | None = None) -> Top:
        """The best two tokens of every row, by the model's own ids. temperature: its own if None.

        hidden_states: float32 [rows, d], from the adapter.
        """
        used = self.entry.temperature if temperature is None else temperature
        top = self.head.top(hidden_states, self.norm, used)
        if self.ids is None:
            return top
        return replace(top, ids=self.ids[top.ids].astype(np.int64))

    def logits(self, hidden_states: F32) -> F32:
        """As the head gives them, float32 [rows, vocabulary of the head]."""
        return self.head.logits(hidden_states, self.norm)


class ExitSession:
    """One session's side of an exit: the adapter's cache and how far it is filled.

    buffers: the session's rows at the exit's cut, then at those that feed it.
    """

    def __init__(self, exit_head: ExitHead, buffers: Sequence[RowBuffer]) -> None:
        self._exit = exit_head
        self._buffers = tuple(buffers)
        self.done = 0
        self._adapted: F32 | None = None
        """What the adapter made of the position before `done`."""
        self.cache = exit_head.adapter.new_cache() if exit_head.adapter else _NO_CACHE

    @property
    def first(self) -> int:
        """The first position whose rows may be asked for: what feeds the exit keeps them too."""
        return self._buffers[0].first

    def pending(self, position: int) -> int:
        """Positions before `position` that the adapter has yet to run."""
        return position - self.done if self._exit.entry.layers else 1

    def result(self, position: int) -> ExitResult:
        """The guess for the position before `position`."""
        top = self._exit.top(self._last_row(position))
        (first, second), (p, q) = top.ids[0].tolist(), top.probs[0].tolist()
        return ExitResult(self._exit.entry.cut, first, p, second, q, float(top.entropies[0]))

    def logits(self, position: int) -> F32:
        """Calibrated logits float32 [vocabulary]; −inf for tokens outside the shortlist."""
        exit_head = self._exit
        logits: F32 = exit_head.logits(self._last_row(position))[0]
        logits /= exit_head.entry.temperature
        if exit_head.ids is None:
            return logits
        full = np.full(exit_head.vocabulary, -np.inf, dtype=np.float32)
        full[exit_head.ids] = logits
        return full

    def rows(self, first: int, position: int, temperature: float | None) -> ExitRows:
        """The guesses for positions [first, position). Raises IndexError as `_adapt` does."""
        made = [self._exit.top(part, temperature) for part in self._adapt(first, position)]
        probs = np.concatenate([top.probs for top in made])
        return ExitRows(
            token_ids=np.concatenate([top.ids[:, 0] for top in made], dtype=np.int32),
            confidences=probs[:, 0],
            runner_up_confidences=probs[:, 1],
            entropies=np.concatenate([top.entropies for top in made]),
        )

    def row_logits(self, first: int, position: int) -> F32:
        """Logits as the head gives them. Raises IndexError as `_adapt` does."""
        parts = self._adapt(first, position)
        return np.concatenate([self._exit.logits(part) for part in parts])

    def crop(self, position: int) -> None:
        """Forget positions from `position` on."""
        if position < self.done:
            self.done, self._adapted = position, None

    def _last_row(self, position: int) -> F32:
        if self.done == position and self._adapted is not None:
            return self._adapted
        # After a crop to where nothing is pending the last row is run again.
        self.done = min(self.done, position - 1)
        (row,) = self._adapt(position - 1, position)
        return row

    def _adapt(self, first: int, position: int) -> Iterator[F32]:
        """What the adapter makes of positions [first, position), float32 [n, d], part by part.

        One with attention runs all that is pending, one without only these. Raises IndexError
        where it has passed `first` or the rows are gone.
        """
        cut, adapter = self._exit.entry.cut, self._exit.adapter
        start = self.done if self._exit.entry.layers else first
        if not start <= first < position:
            raise IndexError(
                f"exit {cut}: positions {first} to {position} asked for, it has passed {start}"
            )
        for at in range(start, position, _PREFILL_ROWS):
            part = self._take(at, min(at + _PREFILL_ROWS, position))
            made = part if adapter is None else adapter.run(part, self.cache, at)
            self.done, self._adapted = at + len(part), made[-1:].copy()
            if self.done > first:
                yield made[max(first - at, 0) :]

    def _take(self, start: int, end: int) -> F32:
        """Positions [start, end) side by side: float32 [n, d * buffers]."""
        parts = [buffer.take(start, end) for buffer in self._buffers]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


class _NoCache:
    bytes = 0


_NO_CACHE = _NoCache()
