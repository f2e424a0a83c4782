"""Parts of an artifact that a device is timed with: what each needs, what runs it, its times.

Not covered: what is loaded together and for how long it is timed (`profiling`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from collm.model.artifact import Artifact
from collm.policy.profiles import RowCost
from collm.runtime.onnx_backend import OnnxBackend

Call = Callable[[int], object]


@dataclass(frozen=True)
class Wanted:
    """Something to be measured: the files it needs, and what loads it."""

    name: str
    files: tuple[str, ...]
    rows: tuple[int, ...]
    load: Callable[[OnnxBackend, str], tuple[Call, int]]
    """Gives what runs so many rows, and the bytes that loading it took."""


@dataclass(kw_only=True)
class Part:
    """A block, a draft path, an exit or a head, loaded; and how long its calls took."""

    name: str
    rows: tuple[int, ...]
    call: Call
    held: int
    """Bytes that loading it took."""
    seconds: dict[int, list[float]] = field(default_factory=dict)

    def cost(self) -> RowCost:
        """Medians; never less for more rows."""
        medians = [float(np.median(self.seconds[rows])) for rows in self.rows]
        return RowCost(rows=self.rows, seconds=tuple(np.maximum.accumulate(medians).tolist()))


def mean_cost(costs: Sequence[RowCost]) -> RowCost:
    """Of parts that were timed with the same numbers of rows."""
    seconds = np.mean([cost.seconds for cost in costs], axis=0)
    return RowCost(rows=costs[0].rows, seconds=tuple(seconds.tolist()))


def data_file(graph: str) -> str:
    """The file of a graph's weights."""
    return graph.removesuffix(".onnx") + ".data"


def weight_bytes(artifact: Artifact, graph: str | None) -> int:
    """Bytes of a graph's weights, by the manifest."""
    if graph is None:
        return 0
    files = artifact.manifest.files
    entry = files.get(data_file(graph)) or files.get(graph)
    return entry.bytes if entry is not None else 0
