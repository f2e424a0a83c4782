"""ONNX Runtime on the CPU.

Caches are bound in place, and the binding is kept: a decode step rebinds nothing while the
number of rows stays the same. Not covered: other execution providers.
"""

from __future__ import annotations

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
    """Cosine and sine caches, shared by all chains and grown together."""

    def __init__(self, arch: Architecture, step: int) -> None:
        self._arch = arch
        self._step = step
        self._tables: list[tuple[ort.OrtValue, ort.OrtValue]] = []
        self._growing = threading.Lock()
        self.rows = 0

    def at_least(self, rows: int) -> list[tuple[ort.OrtValue, ort.OrtValue]]:
        """One (cos, sin) pair per RoPE of the architecture, `rows` positions or more."""
        with self._growing:  # sessions of one stage run in threads of their own
            if rows > self.rows:
                self.rows = max(rows, self.rows + self._step)
                made = [rope.tables(self.rows) for rope in self._arch.ropes]
                self._tables = [(_value(cos), _value(sin)) for cos, sin in made]
            return self._tables


class OnnxCache:
    """KV buffers float32 [1, kv_heads, capacity, head_size], two per layer, and their binding."""

    def __init__(self, chain: OnnxChain) -> None:
        self._chain = chain
        self.capacity = 0
        self.arrays: list[F32] = []
        self.binding = chain.session.io_binding()
        self._bound_rows = 0
        self._rows: dict[int, tuple[F32, F32, ort.OrtValue, ort.OrtValue]] = {}
        self.seqlens = np.zeros(1, dtype=np.int32)
        self.total = np.zeros((), dtype=np.int32)
        if chain.cache_names:  # a linear adapter has no layers
            self.binding.bind_ortvalue_input("seqlens_k", _value(self.seqlens))
            self.binding.bind_ortvalue_input("total_sequence_length", _value(self.total))

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    def reserve(self, positions: int, filled: int) -> None:
        """Make room for `positions`, keeping the first `filled`."""
        if positions <= self.capacity:
            return
        chain, arch = self._chain, self._chain.arch
        step = chain.kv_step
        self.capacity = -(-positions // step) * step
        shape = (1, arch.kv_heads, self.capacity, arch.head_size)
        old = self.arrays
        self.arrays = [np.zeros(shape, dtype=np.float32) for _ in chain.cache_names]
        for (past, present), array in zip(chain.cache_names, self.arrays, strict=True):
            value = _value(array)
            self.binding.bind_ortvalue_input(past, value)
            self.binding.bind_ortvalue_output(present, value)
        for before, after in zip(old, self.arrays, strict=False):
            after[:, :, :filled] = before[:, :, :filled]
        tables = chain.rope.at_least(self.capacity)
        for index in chain.rope_indices:
            self.binding.bind_ortvalue_input(f"cos_{index}", tables[index][0])
            self.binding.bind_ortvalue_input(f"sin_{index}", tables[index][1])

    def buffers(self, rows: int) -> tuple[F32, F32]:
        """Input and output arrays for this many rows, bound."""
        kept = self._rows.get(rows)
        if kept is None:
            shape = (rows, self._chain.arch.hidden_size)
            given, made = np.empty(shape, np.float32), np.empty(shape, np.float32)
            kept = given, made, _value(given), _value(made)
            if rows <= _KEPT_ROWS:
                self._rows[rows] = kept
        if rows != self._bound_rows or rows > _KEPT_ROWS:
            self.binding.bind_ortvalue_input("hidden", kept[2])
            self.binding.bind_ortvalue_output("hidden_out", kept[3])
            self._bound_rows = rows
        return kept[0], kept[1]


class OnnxChain:
    """A chain of layers in one ONNX Runtime session."""

    def __init__(
        self, session: ort.InferenceSession, arch: Architecture, rope: RopeTables, kv_step: int
    ) -> None:
        self.session = session
        self.arch = arch
        self.rope = rope
        self.kv_step = kv_step
        inputs = [i.name for i in session.get_inputs()]
        pasts = [name for name in inputs if name.startswith("past_")]
        self.cache_names = [(name, name.replace("past_", "present_", 1)) for name in pasts]
        self.rope_indices = [int(n.removeprefix("cos_")) for n in inputs if n.startswith("cos_")]

    def new_cache(self) -> OnnxCache:
        return OnnxCache(self)

    def run(self, hidden_states: F32, cache: OnnxCache, position: int) -> F32:
        rows = len(hidden_states)
        if not self.cache_names:  # a linear adapter has no layers
            out: F32 = self.session.run(["hidden_out"], {"hidden": hidden_states})[0]
            return out
        cache.reserve(position + rows, position)
        cache.total[...] = position + rows
        cache.seqlens[0] = position + rows - 1
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
        wanted = ["top_ids", "top_probs"]
        if self._confidence is None:
            feeds = {"hidden": hidden_states, "norm": norm, "temperature": calibration}
            ids, probs = self._head.run(wanted, feeds)
        else:
            states = {"hidden": _value(hidden_states), "norm": _value(norm)}
            (logits,) = self._head.run_with_ort_values([self._logits], states)
            values = {"logits": logits, "temperature": _value(calibration)}
            made = self._confidence.run_with_ort_values(wanted, values)
            ids, probs = (value.numpy() for value in made)
        (first, second), (p, q) = ids[0].tolist(), probs[0].tolist()
        return Top(first, p, second, q)


class OnnxBackend:
    """Loads graphs into ONNX Runtime CPU sessions of `threads` threads each."""

    def __init__(self, arch: Architecture, threads: int, limits: Limits) -> None:
        self._threads = threads
        self._limits = limits
        self._rope = RopeTables(arch, limits.kv_step)

    def chain(self, graph: Path, arch: Architecture) -> OnnxChain:
        return OnnxChain(self._session(graph), arch, self._rope, self._limits.kv_step)

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


def _value(array: npt.NDArray[np.generic]) -> ort.OrtValue:
    """An OrtValue over the array's own memory (on the CPU nothing is copied)."""
    return ort.OrtValue.ortvalue_from_numpy(array)
