"""ONNX Runtime on the CPU.

Caches are bound in place, and the binding is kept: a decode step rebinds nothing while the
number of rows stays the same. The caches of a chain with a window are bounded: they forget their
oldest positions, and count the others from the first one held. Not covered: other execution
providers.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from collm.errors import ArtifactError
from collm.limits import Limits
from collm.model.architecture import Architecture
from collm.runtime.backend import Top

F32 = npt.NDArray[np.float32]

_KEPT_ROWS = 32
"""Row counts up to this keep their input and output buffers bound for the next call."""


class RopeTables:
    """Cosine and sine of every position, shared by all chains and grown together."""

    def __init__(self, arch: Architecture, step: int) -> None:
        self._arch = arch
        self._step = step
        self._tables: list[tuple[F32, F32]] = []
        self._growing = threading.Lock()
        self.rows = 0

    def at(self, first: int, end: int) -> list[tuple[ort.OrtValue, ort.OrtValue]]:
        """One (cos, sin) pair per RoPE of the architecture, for positions [first, end)."""
        with self._growing:  # sessions of one stage run in threads of their own
            if end > self.rows:
                self.rows = max(end, self.rows + self._step)
                self._tables = [rope.tables(self.rows) for rope in self._arch.ropes]
            tables = self._tables
        return [(_value(cos[first:end]), _value(sin[first:end])) for cos, sin in tables]


class OnnxCache:
    """KV buffers float32 [1, kv_heads, capacity, head_size], two per layer, and their binding.

    They hold positions [first, first + capacity). Keys stay rotated by their absolute position, so
    forgetting older ones changes results by no more than the order of a sum does.
    """

    def __init__(self, chain: OnnxChain) -> None:
        self._chain = chain
        self.capacity = 0
        self.first = 0
        self.arrays: list[F32] = []
        self.binding = chain.session.io_binding()
        self._bound_rows = 0
        self._rows: dict[int, tuple[F32, F32, ort.OrtValue, ort.OrtValue]] = {}
        self.seqlens = np.zeros(1, dtype=np.int32)
        self.total = np.zeros((), dtype=np.int32)
        if chain.cache_names:  # not an adapter without attention
            self.binding.bind_ortvalue_input("seqlens_k", _value(self.seqlens))
            self.binding.bind_ortvalue_input("total_sequence_length", _value(self.total))

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    def reserve(self, position: int, rows: int) -> None:
        """Make room for `rows` from `position` on, keeping what a window before it needs."""
        if position < self.first:
            # Cropped to before all that is held: the past begins anew.
            self._rope_from(position)
        if position + rows - self.first > self._chain.most:
            self._forget_before(position - self._chain.kept)
        if position + rows - self.first > self.capacity:
            self._grow(position + rows - self.first, position - self.first)

    def _forget_before(self, position: int) -> None:
        if (gone := position - self.first) > 0:
            for array in self.arrays:
                array[:, :, :-gone] = array[:, :, gone:]
            self._rope_from(position)

    def _rope_from(self, first: int) -> None:
        self.first = first
        tables = self._chain.rope.at(first, first + self.capacity)
        for index in self._chain.rope_indices:
            self.binding.bind_ortvalue_input(f"cos_{index}", tables[index][0])
            self.binding.bind_ortvalue_input(f"sin_{index}", tables[index][1])

    def _grow(self, positions: int, filled: int) -> None:
        """To `positions` or more, keeping the first `filled`."""
        chain, arch = self._chain, self._chain.arch
        self.capacity = _round_up(positions, chain.kv_step)
        shape = (1, arch.kv_heads, self.capacity, arch.head_size)
        old = self.arrays
        self.arrays = [np.zeros(shape, dtype=np.float32) for _ in chain.cache_names]
        for (past, present), array in zip(chain.cache_names, self.arrays, strict=True):
            value = _value(array)
            self.binding.bind_ortvalue_input(past, value)
            self.binding.bind_ortvalue_output(present, value)
        for before, after in zip(old, self.arrays, strict=False):
            after[:, :, :filled] = before[:, :, :filled]
        self._rope_from(self.first)

    def buffers(self, rows: int) -> tuple[F32, F32]:
        """Input and output arrays for this many rows, bound."""
        kept = self._rows.get(rows)
        if kept is None:
            given = np.empty((rows, self._chain.width), np.float32)
            made = np.empty((rows, self._chain.arch.hidden_size), np.float32)
            kept = given, made, _value(given), _value(made)
            if rows <= _KEPT_ROWS:
                self._rows[rows] = kept
        if rows != self._bound_rows or rows > _KEPT_ROWS:
            self.binding.bind_ortvalue_input("hidden", kept[2])
            self.binding.bind_ortvalue_output("hidden_out", kept[3])
            self._bound_rows = rows
        return kept[0], kept[1]


class OnnxChain:
    """A chain of layers in one ONNX Runtime session.

    most, kept: positions that a cache holds before it forgets, and those it then keeps at least.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        arch: Architecture,
        rope: RopeTables,
        kv_step: int,
        *,
        most: int = sys.maxsize,
        kept: int = 0,
    ) -> None:
        self.session = session
        self.arch = arch
        self.rope = rope
        self.kv_step = kv_step
        self.most = most
        self.kept = kept
        shapes = {i.name: i.shape for i in session.get_inputs()}
        self.width = int(shapes["hidden"][1])
        inputs = list(shapes)
        pasts = [name for name in inputs if name.startswith("past_")]
        self.cache_names = [(name, name.replace("past_", "present_", 1)) for name in pasts]
        self.rope_indices = [int(n.removeprefix("cos_")) for n in inputs if n.startswith("cos_")]

    def new_cache(self) -> OnnxCache:
        return OnnxCache(self)

    def cache_bytes(self, positions: int) -> int:
        # One position more: that of the throw-away row beside a lone one.
        held = _round_up(min(positions + 1, self.most), self.kv_step)
        return 4 * len(self.cache_names) * self.arch.kv_heads * held * self.arch.head_size

    def run(self, hidden_states: F32, cache: OnnxCache, position: int) -> F32:
        rows = len(hidden_states)
        if not self.cache_names:  # an adapter without attention
            out: F32 = self.session.run(["hidden_out"], {"hidden": hidden_states})[0]
            return out
        cache.reserve(position, rows)
        held = position - cache.first + rows
        cache.total[...] = held
        cache.seqlens[0] = held - 1
        given, made = cache.buffers(rows)
        given[...] = hidden_states
        self.session.run_with_iobinding(cache.binding)
        return made.copy()


class OnnxHead:
    """A head graph; its logits stay inside ONNX Runtime where only a confidence is wanted.

    A head that serves exits alone computes the confidence itself; for others `confidence`
    does, from the logits.
    """

    def __init__(self, head: ort.InferenceSession, confidence: ort.InferenceSession | None) -> None:
        self._head = head
        self._confidence = confidence
        self._logits = head.get_outputs()[0].name

    def logits(self, hidden_states: F32, norm: F32) -> F32:
        feeds = {"hidden": hidden_states, "norm": norm}
        if self._confidence is None:
            feeds["temperature"] = np.ones(1, dtype=np.float32)
        out: F32 = self._head.run([self._logits], feeds)[0]
        return out

    def top(self, hidden_states: F32, norm: F32, temperature: float) -> Top:
        calibration = np.array([temperature], dtype=np.float32)
        wanted = ["top_ids", "top_probs", "entropy"]
        if self._confidence is None:
            feeds = {"hidden": hidden_states, "norm": norm, "temperature": calibration}
            ids, probs, entropies = self._head.run(wanted, feeds)
        else:
            states = {"hidden": _value(hidden_states), "norm": _value(norm)}
            (logits,) = self._head.run_with_ort_values([self._logits], states)
            values = {"logits": logits, "temperature": _value(calibration)}
            made = self._confidence.run_with_ort_values(wanted, values)
            ids, probs, entropies = (value.numpy() for value in made)
        return Top(ids, probs, entropies[:, 0])


class OnnxBackend:
    """Loads graphs into ONNX Runtime CPU sessions of `threads` threads each."""

    def __init__(self, arch: Architecture, threads: int, limits: Limits) -> None:
        self._threads = threads
        self._limits = limits
        self._rope = RopeTables(arch, limits.kv_step)

    def chain(self, graph: Path, arch: Architecture, window: int = 0) -> OnnxChain:
        session, step = self._session(graph), self._limits.kv_step
        if not window:
            return OnnxChain(session, arch, self._rope, step)
        # A run looks at window - 1 positions before it; a crop may follow and go further back.
        kept = window - 1 + self._limits.max_draft_tokens
        most = _round_up(kept + max(window, self._limits.prefill_rows), step)
        return OnnxChain(session, arch, self._rope, step, most=most, kept=kept)

    def head(self, graph: Path, confidence: Path) -> OnnxHead:
        head = self._session(graph)
        confident = any(output.name == "top_ids" for output in head.get_outputs())
        return OnnxHead(head, None if confident else self._session(confidence))

    def close(self) -> None:
        """Sessions are freed with the last reference to them."""

    def _session(self, graph: Path) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        # An idle edge or cloud must not burn a core waiting for the next token.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Packed weights outlive their session's loading; the arena would keep its peak for good.
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        try:
            return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 - ORT has no common base for its own
            raise ArtifactError(
                f"{graph}: ONNX Runtime {ort.__version__} cannot load it: {str(error)[:200]}"
            ) from None


def _round_up(count: int, step: int) -> int:
    return -(-count // step) * step


def _value(array: npt.NDArray[np.generic]) -> ort.OrtValue:
    """An OrtValue over the array's own memory (on the CPU nothing is copied)."""
    return ort.OrtValue.ortvalue_from_numpy(array)
