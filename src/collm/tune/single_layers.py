"""The model's layers each loaded by itself, to be run in any selection over whole texts.

ONNX Runtime, the weights as deployed; the graphs are written to a folder of the caller's. Not
covered: models that do not fit into memory whole.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from collm.limits import DEFAULT_LIMITS
from collm.model.artifact import Artifact
from collm.model.graph import DataFile, GraphBuilder
from collm.model.layers import LayerWeights, layer_chain
from collm.model.manifest import ExitEntry
from collm.model.quantize import BLOCK, Quantised
from collm.model.stored import StoredWeights
from collm.model.vocabulary import CONFIDENCE
from collm.runtime.backend import Chain
from collm.runtime.exits import ExitHead
from collm.runtime.onnx_backend import OnnxBackend, OnnxChain
from collm.runtime.rescore import Rescorer

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
States = list[F32]
"""float32 [T, d] a text."""

_ROWS = DEFAULT_LIMITS.prefill_rows
_TIMED_AT = 256
"""Positions in the cache when a layer is timed."""


class SingleLayers:
    """Layers, exits and head of one artifact. Raises ArtifactError for damaged files."""

    def __init__(
        self,
        artifact: Artifact,
        folder: Path,
        *,
        threads: int,
        told: Callable[[int], None] = lambda layers: None,
    ) -> None:
        self.artifact, self.architecture = artifact, artifact.architecture
        self._folder, self._stored = folder, StoredWeights(artifact)
        self._backend = OnnxBackend(self.architecture, threads, DEFAULT_LIMITS)
        self._embedding = artifact.embedding()
        self._chains: list[OnnxChain] = []
        self.bytes: list[int] = []
        """Of each layer's weights."""
        for layer in range(self.architecture.layers):
            told(layer)
            graph = self._write(f"layer-{layer:03d}", layer, self._stored.packed_layer(layer))
            self.bytes.append(graph.with_suffix(".data").stat().st_size)
            self._chains.append(self._backend.chain(graph, self.architecture))
        head = artifact.graph(artifact.manifest.heads["full"].graph)
        self._head = self._backend.head(head, artifact.graph(CONFIDENCE))
        self._norm = artifact.floats(artifact.manifest.final_norm)
        is_rounded = artifact.manifest.weights != "fp32"
        self._rescorer = Rescorer(artifact, self._norm) if is_rounded else None

    def embed(self, ids: npt.NDArray[np.int32]) -> F32:
        """float32 [T, d]."""
        scale = np.float32(self.architecture.embedding_scale)
        return self._embedding.floats(ids.astype(np.int64)) * scale

    def run(self, layer: int, states: States) -> States:
        """Every text through one layer."""
        return [_run(self._chains[layer], text) for text in states]

    def logits(self, rows: F32) -> F32:
        """The model's, for final states float32 [n, d]: float32 [n, V]."""
        made = self._head.logits(rows, self._norm)
        if self._rescorer is not None:
            self._rescorer.correct(rows, made)
        return made

    def exit(self, entry: ExitEntry) -> ExitHead:
        """An exit of the artifact, loaded."""
        graph = self.artifact.graph(self.artifact.manifest.heads[entry.head].graph)
        head = self._backend.head(graph, self.artifact.graph(CONFIDENCE))
        return ExitHead(self.artifact, entry, self._backend, head)

    def decode_seconds(self, layer: int, repeats: int = 40) -> float:
        """Median time of one call with two rows, as exact decoding makes them."""
        chain = self._chains[layer]
        rows = np.random.default_rng(layer).normal(size=(2, self.architecture.hidden_size))
        at = min(_TIMED_AT, self.architecture.context_length - 2)
        cache, given, times = chain.new_cache(), rows.astype(np.float32), []
        for _ in range(repeats):
            started = time.perf_counter()
            chain.run(given, cache, at)
            times.append(time.perf_counter() - started)
        return statistics.median(times[repeats // 4 :])

    def channel_importance(self, layer: int, states: States) -> F64:
        """What each feed-forward channel adds to the layer's output: float64 [channels].

        states: before the layer. |w|·‖x‖ (Sun et al., arXiv 2306.11695) summed over a channel's
        outgoing weights: the norm of its activations over the text times the weights' sum.
        """
        weights = self._stored.packed_layer(layer)
        d = self.architecture.hidden_size
        # A layer whose feed-forward part is nothing ends where that part would begin.
        nothing = {"gate_up": np.zeros((2 * BLOCK, d), np.float32)}
        nothing["down"] = np.zeros((d, BLOCK), np.float32)
        graph = self._write("attention", layer, replace(weights, **nothing))
        chain = self._backend.chain(graph, self.architecture)
        squares = np.zeros(_floats(weights.down).shape[1])
        gate_up = _floats(weights.gate_up)
        for text in states:
            for start in range(0, len(attended := _run(chain, text)), _ROWS):
                part = attended[start : start + _ROWS].astype(np.float64)
                part /= np.sqrt((part**2).mean(-1, keepdims=True) + self.architecture.norm_epsilon)
                gate, up = np.split((part * weights.norm_2) @ gate_up.T, 2, axis=-1)
                squares += ((_activation(gate, self.architecture.activation) * up) ** 2).sum(0)
        importance: F64 = np.sqrt(squares) * np.abs(_floats(weights.down)).sum(0, dtype=np.float64)
        return importance

    def _write(self, name: str, layer: int, weights: LayerWeights) -> Path:
        arch, path = self.architecture, self._folder / f"{name}.onnx"
        with DataFile(path.with_suffix(".data")) as data:
            graph = GraphBuilder(name, data)
            window = (arch.layer_window[layer],)
            layer_chain(graph, arch, range(layer, layer + 1), lambda _: weights, window)
            graph.save(path)
        return path


def exit_logits(
    exit_head: ExitHead, states: Mapping[int, States], firsts: Sequence[int]
) -> list[F32]:
    """An exit's logits for every text's rows from `firsts` on, as the head counts them.

    states: at the exit's cut and at all that it is fed with.
    """
    entry, made = exit_head.entry, []
    for text, first in enumerate(firsts):
        parts = [states[cut][text] for cut in (entry.cut, *entry.feed)]
        rows = np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]
        adapted = rows if exit_head.adapter is None else _run(exit_head.adapter, rows)
        logits = [
            exit_head.logits(adapted[start : start + _ROWS])
            for start in range(first, len(adapted), _ROWS)
        ]
        made.append(np.concatenate(logits))
    return made


def _run(chain: Chain[Any], text: F32) -> F32:
    cache = chain.new_cache()
    parts = [
        chain.run(text[start : start + _ROWS], cache, start) for start in range(0, len(text), _ROWS)
    ]
    return np.concatenate(parts)


def _floats(matrix: Quantised | F32) -> F32:
    return matrix.floats() if isinstance(matrix, Quantised) else matrix


def _activation(gate: F64, name: str) -> F64:
    made: F64
    if name == "silu":
        made = gate / (1 + np.exp(-gate))
        return made
    inner = np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)  # gelu_tanh
    made = 0.5 * gate * (1 + np.tanh(inner))
    return made
