"""What a Stage asks of an engine. ONNX Runtime is the one there is; others fit in here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from collm.model.architecture import Architecture

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Top:
    """The two likeliest tokens of each row, the likeliest first, and how sure the head is.

    ids: int64 [rows, 2], as the head counts them; probs: float32 [rows, 2]; entropies: float32
    [rows], of the whole distribution, in nats.
    """

    ids: npt.NDArray[np.int64]
    probs: F32
    entropies: F32


class Cache(Protocol):
    """The keys and values of one session in one chain, grown as needed."""

    @property
    def bytes(self) -> int:
        """Bytes reserved."""
        ...


C = TypeVar("C", bound=Cache)


class Chain(Protocol[C]):
    """Consecutive decoder layers, loaded once and shared by all sessions."""

    def new_cache(self) -> C:
        """An empty cache."""
        ...

    def cache_bytes(self, positions: int) -> int:
        """What a cache takes that holds so many positions."""
        ...

    def run(self, hidden_states: F32, cache: C, position: int) -> F32:
        """Rows for positions `position`, `position` + 1, … through the layers.

        hidden_states: float32 [rows, d], or [rows, I] where an exit's graph reads I inputs.
        Returns float32 [rows, d], the caller's to keep.
        Writes the cache at these positions; what stood there or beyond is void.
        """
        ...


class Head(Protocol):
    """A norm and an unembedding."""

    def logits(self, hidden_states: F32, norm: F32) -> F32:
        """float32 [rows, d] -> float32 [rows, vocabulary of the head]."""
        ...

    def top(self, hidden_states: F32, norm: F32, temperature: float) -> Top:
        """The best two of every row in hidden_states, with calibrated probabilities."""
        ...


class Backend(Protocol):
    """Loads graphs."""

    def chain(self, graph: Path, arch: Architecture, window: int = 0) -> Chain[Any]:
        """Load a chain of layers.

        window: where no layer looks back further than this many positions, caches may forget what
        is older, as far as room for rejected drafts (`Limits.max_draft_tokens`) remains.
        """
        ...

    def head(self, graph: Path, confidence: Path) -> Head:
        """Load a head, and the graph that reads a confidence from its logits."""
        ...

    def close(self) -> None:
        """Free everything loaded."""
        ...
