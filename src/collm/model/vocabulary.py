"""The two matrices as tall as the vocabulary: embedding and unembedding, on disk.

Where they are tied the head's data file serves both: its int8 (or float32) rows are read one
by one through a memory map, so that no second copy, and no float32 table, is ever in memory.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from collm.model.architecture import Architecture
from collm.model.graph import DataFile, GraphBuilder
from collm.model.layers import Matrix, confidence_graph, head_graph
from collm.model.manifest import EmbeddingEntry, Manifest
from collm.model.quantize import BLOCK, Quantised

F32 = npt.NDArray[np.float32]

CONFIDENCE = "heads/confidence.onnx"
"""The graph that turns any head's logits into a confidence."""


def write_head(folder: Path, arch: Architecture, name: str, unembedding: Matrix) -> str:
    """Write `heads/NAME.onnx` and its data file; returns the graph's name."""
    (folder / "heads").mkdir(exist_ok=True)
    with DataFile(folder / f"heads/{name}.data") as data:
        graph = GraphBuilder(f"head {name}", data)
        head_graph(graph, arch, unembedding, confident=name != "full")
        graph.save(folder / f"heads/{name}.onnx")
    return f"heads/{name}.onnx"


def write_confidence(folder: Path) -> None:
    """Write the `CONFIDENCE` graph, which has no weights."""
    graph = GraphBuilder("confidence")
    confidence_graph(graph)
    graph.save(folder / CONFIDENCE)


def write_embedding(folder: Path, embedding: Matrix, tied_to: str | None) -> EmbeddingEntry:
    """Describe (and, where it is not the head's own matrix, write) the input embedding.

    tied_to: the head's data file, which begins with the very same rows.
    """
    if isinstance(embedding, Quantised):
        scale_offset = DataFile.align(embedding.q.nbytes)
        entry = EmbeddingEntry(
            file=tied_to or "embedding.data", bits=8, q_offset=0, scale_offset=scale_offset
        )
    else:
        entry = EmbeddingEntry(file=tied_to or "embedding.data", bits=32, q_offset=0)
    if tied_to is None:
        with DataFile(folder / "embedding.data") as data:
            if isinstance(embedding, Quantised):
                data.append(embedding.q)
                data.append(embedding.scale)
            else:
                data.append(embedding)
    return entry


class RowReader:
    """Rows of a [vocabulary, d] matrix on disk, dequantised as they are asked for."""

    def __init__(self, folder: Path, entry: EmbeddingEntry, arch: Architecture) -> None:
        path = folder / entry.file
        vocab, size = arch.vocab_size, arch.hidden_size
        self._floats: F32 | None = None
        if entry.bits == 32:
            self._floats = np.memmap(path, np.float32, "r", entry.q_offset, (vocab, size))
        else:
            blocks = size // BLOCK
            self._q = np.memmap(path, np.uint8, "r", entry.q_offset, (vocab, blocks, BLOCK))
            self._scale = np.memmap(path, np.float32, "r", entry.scale_offset, (vocab, blocks))

    @classmethod
    def of_head(cls, folder: Path, manifest: Manifest) -> RowReader:
        """The rows of the model's own unembedding: its data file begins with them."""
        entry, arch = manifest.embedding, manifest.architecture
        if not arch.tied:
            entry = replace(entry, file="heads/full.data")
        return cls(folder, entry, arch)

    def matrix(self, ids: npt.NDArray[np.int64]) -> Matrix:
        """The rows `ids` in the form in which they are stored."""
        if self._floats is not None:
            return np.asarray(self._floats[ids])
        return Quantised(bits=8, q=np.asarray(self._q[ids]), scale=np.asarray(self._scale[ids]))

    def floats(self, ids: npt.NDArray[np.int64]) -> F32:
        """float32 [len(ids), d]."""
        rows = self.matrix(ids)
        return rows.floats() if isinstance(rows, Quantised) else rows
