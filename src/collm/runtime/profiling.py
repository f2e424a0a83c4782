"""Measuring a device: every block, exit, draft path and head, by rows and threads, and their sizes.

What fits into memory together is loaded together and timed in turns, as a token runs through it,
so that each finds the processor's caches as it would at work. Medians over as many rounds as the
budget allows. Under a quota of CPU time a call's own CPU time counts: when a control group stops
the process is for the cost model to say, not for a median to guess.

Blocks that are not here (an artifact may be fetched in part) are taken to cost as much a layer as
those that are: layers of a model have one shape. So are draft paths that are not here.

Not covered: batches of several sessions; memory that ONNX Runtime takes beside the weights for
texts much longer than 128 positions.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import psutil

from collm import __version__
from collm.limits import DEFAULT_LIMITS
from collm.model.artifact import Artifact
from collm.model.draft_entry import DraftEntry
from collm.model.manifest import ExitEntry
from collm.model.vocabulary import CONFIDENCE
from collm.policy.profiles import DeviceProfile, PathCost, PathSize, RowCost, ThreadCosts
from collm.runtime.backend import Head
from collm.runtime.draft_stage import closing_exit
from collm.runtime.exits import ExitHead, ExitSession
from collm.runtime.hardware import (
    condition,
    cpu_limits,
    give_back,
    hardware_words,
    held_memory,
    usable_memory,
)
from collm.runtime.onnx_backend import OnnxBackend
from collm.runtime.rows import RowBuffer
from collm.runtime.timed_parts import Call, Part, Wanted, data_file, mean_cost, weight_bytes

F32 = npt.NDArray[np.float32]
Progress = Callable[[str, int, int], None]

_BLOCK_ROWS = (1, 2, 4, 8, 16, 32, 128)
_EXIT_ROWS = (1, 2, 8, 32, 128)
_HEAD_ROWS = (1, 2, 8, 32)
_PIECE = 32
"""Rows of a prompt that go through at a time where the cloud verifies."""
_PAST = 128
"""Positions that a block has behind it when it is timed."""
_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 40
_ROOM = 3
"""Weights take up to so many times their size while they are loaded and timed."""
_LOADING = 2.5
"""A part takes up to so many times its size while it is loaded."""
_CODE_SHARE = 0.2
"""Of the pages of code and files that a process has touched: what it goes on using. The others can
be dropped, and a control group counts none that others brought in."""
_TALK_BYTES = 8 * 10**6
"""What a link to a cloud takes, with its threads and buffers."""
_ACCEPTANCE = "acceptance.safetensors"


def artifact_key(artifact: Artifact) -> str:
    """Digest of what a device runs: blocks, exits, heads. Records about them do not change it."""
    data = artifact.manifest.to_json()
    data["files"] = {name: one for name, one in data["files"].items() if name != _ACCEPTANCE}
    for entry in data["exits"]:
        entry.pop("threshold"), entry.pop("calibration")
    text = json.dumps(data, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def profile_key(artifact: Artifact) -> str:
    """Name under which this device's profile of the artifact is kept."""
    words = (artifact_key(artifact), hardware_words(), ort.__version__, __version__)
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:32]


def measure_device(
    artifact: Artifact,
    *,
    budget: float = 10.0,
    threads: Sequence[int] | None = None,
    base_bytes: int | None = None,
    step_seconds: float = 0.0,
    progress: Progress | None = None,
) -> DeviceProfile:
    """Measure for about `budget` seconds, loading not counted.

    threads: numbers to try; None: 1, 2, 4, … as long as more is faster. base_bytes: of a process
    that has loaded nothing; None: what this one holds now. Raises ArtifactError where neither
    a block nor a draft path is here, or a file is damaged.
    """
    manifest, arch = artifact.manifest, artifact.architecture
    limits, before = cpu_limits(), condition()
    base = held_memory() if base_bytes is None else base_bytes
    tried = list(threads or usual_threads())
    costs: list[ThreadCosts] = []
    held: dict[str, int] = {}
    prefill: dict[str, int] = {}
    missing: set[str] = set()
    too_large: set[str] = set()
    for number, count in enumerate(tried):
        found = _Found(artifact, count, is_stopped=limits.quota > 0)
        if progress is not None:
            progress(f"timing with {count} threads", number, len(tried))
        found.measure(budget / len(tried))
        for name, size in found.held.items():
            held.setdefault(name, size)
        prefill = prefill or found.prefill
        missing |= found.missing
        too_large |= found.too_large
        costs.append(found.costs())
        if threads is None and len(costs) > 1:
            blocks = len(manifest.blocks)
            if costs[-1].decode_seconds(blocks) > 0.95 * costs[-2].decode_seconds(blocks):
                break
    if progress is not None:
        progress("timed", len(tried), len(tried))
    after = condition()
    spans = [block.last - block.first for block in manifest.blocks]
    position = 2 * 4 * arch.kv_heads * arch.head_size
    notes = [f"{name} is not here: taken from the others" for name in sorted(missing)]
    notes += [f"{name} does not fit here: taken from the others" for name in sorted(too_large)]
    chains = [b.graph for b in manifest.blocks] + [path.graph for path in manifest.drafts]
    known = [(held[graph], weight_bytes(artifact, graph)) for graph in chains if graph in held]
    ratio, more = max(got / max(1, size) for got, size in known), max(prefill.values())

    def takes(graph: str | None, name: str) -> int:
        """Bytes: as measured, never less than the file's; as the blocks do, where it was not."""
        size = weight_bytes(artifact, graph)
        return max(size, held[name] if name in held else int(ratio * size))

    return DeviceProfile(
        artifact=artifact_key(artifact),
        hardware=hardware_words(),
        software=f"collm {__version__}, onnxruntime {ort.__version__}",
        bounds=(0, *(block.last for block in manifest.blocks)),
        costs=tuple(costs),
        step_seconds=step_seconds,
        cores=limits.cores,
        cpu_quota=limits.quota,
        quota_period=limits.period,
        memory_bytes=usable_memory(),
        base_bytes=base + int(_CODE_SHARE * _code_bytes()) + _TALK_BYTES,
        block_bytes=tuple(takes(block.graph, block.graph) for block in manifest.blocks),
        exit_bytes={e.cut: takes(e.graph, f"exit {e.cut}") for e in manifest.exits},
        exit_heads={entry.cut: entry.head for entry in manifest.exits},
        head_bytes={name: takes(head.graph, head.graph) for name, head in manifest.heads.items()},
        prefill_bytes=tuple(prefill.get(b.graph, more) for b in manifest.blocks),
        kv_bytes=tuple(span * position for span in spans),
        row_bytes=4 * arch.hidden_size,
        paths={
            entry.name: PathSize(
                bytes=takes(entry.graph, entry.graph),
                prefill_bytes=prefill.get(entry.graph, more),
                kv_bytes=position * (len(entry.layers) + entry.exit_layers),
                head=entry.head,
            )
            for entry in manifest.drafts
        },
        battery=after.battery,
        on_battery=after.on_battery,
        celsius=after.celsius,
        throttled=after.throttle_events > before.throttle_events,
        notes=tuple(notes),
    )


class _Found:
    """One number of threads: what of the artifact is here, group by group, and its times."""

    def __init__(self, artifact: Artifact, threads: int, *, is_stopped: bool) -> None:
        self._artifact = artifact
        self._threads = threads
        self._is_stopped = is_stopped
        self._random = np.random.default_rng(0)
        self._known: dict[str, RowCost] = {}
        self._heads: dict[str, Head] = {}
        self.held: dict[str, int] = {}
        self.prefill: dict[str, int] = {}
        self.missing: set[str] = set()
        self.too_large: set[str] = set()

    def measure(self, budget: float) -> None:
        """Load as much as memory takes, time it in turns, go on with the rest."""
        todo = self._wanted()
        number = len(todo)
        while todo:
            room = (usable_memory() - held_memory()) // _ROOM
            taken = [todo.pop(0)]
            while todo and sum(map(self._bytes, [*taken, todo[0]])) < room:
                taken.append(todo.pop(0))
            backend = OnnxBackend(self._artifact.architecture, self._threads, DEFAULT_LIMITS)
            parts = [self._load(backend, one) for one in taken]
            self._time(parts, budget * len(taken) / number)
            for part in parts:
                self._known[part.name] = part.cost()
                self.held[part.name] = part.held
            del parts, backend
            self._heads.clear()
            give_back()

    def _bytes(self, part: Wanted) -> int:
        return sum(weight_bytes(self._artifact, name) for name in part.files)

    def costs(self) -> ThreadCosts:
        """With what is missing taken from what is there."""
        manifest = self._artifact.manifest
        layers = [(b.last - b.first, self._known.get(b.graph)) for b in manifest.blocks]
        per_layer = [cost.times(1 / span) for span, cost in layers if cost is not None]
        if not per_layer:  # a device that fetched a draft path and nothing else
            chains = [(_layers(e), self._known.get(e.graph)) for e in manifest.drafts]
            per_layer = [cost.times(1 / max(1, n)) for n, cost in chains if cost is not None]
        mean = mean_cost(per_layer)
        exits = {e.cut: self._known.get(f"exit {e.cut}") for e in manifest.exits}
        known_exits = [cost for cost in exits.values() if cost is not None]
        head = self._known.get(manifest.heads["full"].graph)
        if head is None:  # one row of it reads as many bytes a second as a block's does
            sizes = [weight_bytes(self._artifact, b.graph) for b in manifest.blocks]
            ratio = weight_bytes(self._artifact, manifest.heads["full"].graph) / max(1, max(sizes))
            head = mean.times(ratio * max(span for span, _ in layers))
        return ThreadCosts(
            threads=self._threads,
            blocks=tuple(cost or mean.times(span) for span, cost in layers),
            exits={
                cut: cost or (mean_cost(known_exits) if known_exits else mean)
                for cut, cost in exits.items()
            },
            head=head,
            paths={e.name: self._path_cost(e, mean, head) for e in manifest.drafts},
        )

    def _path_cost(self, entry: DraftEntry, per_layer: RowCost, head: RowCost) -> PathCost:
        rows = self._known.get(entry.graph) or per_layer.times(max(1, _layers(entry)))
        asked = self._known.get(f"head of {entry.name}") or head
        return PathCost(rows=rows, head=asked.at(1))

    def _wanted(self) -> list[Wanted]:
        """Everything whose files are here, in the order of a token's way; the rest is noted."""
        manifest = self._artifact.manifest
        all_parts = [
            Wanted(block.graph, (block.graph,), _BLOCK_ROWS, self._block)
            for block in manifest.blocks
        ]
        all_parts += [
            Wanted(path.graph, (path.graph,), _BLOCK_ROWS, self._block) for path in manifest.drafts
        ]
        if not any(self._is_here(one) for one in all_parts):
            self._artifact.graph(manifest.blocks[0].graph)  # says which file is missing
        for entry in manifest.exits:
            files = (entry.norm, manifest.heads[entry.head].graph, entry.graph or entry.norm)
            load = partial(self._exit, entry)
            all_parts.append(Wanted(f"exit {entry.cut}", files, _EXIT_ROWS, load))
        for path in manifest.drafts:
            needed = (path.norm, manifest.heads[path.head].graph)
            asked = partial(self._path_head, path)
            all_parts.append(Wanted(f"head of {path.name}", needed, (1,), asked))
        full = manifest.heads["full"].graph
        all_parts.append(Wanted(full, (full, manifest.final_norm), _HEAD_ROWS, self._model_head))
        here = [one for one in all_parts if self._is_here(one)]
        self.missing |= {one.name for one in all_parts if one not in here}
        free = usable_memory() - held_memory()
        # Without a single chain of layers there would be no profile.
        least = min((one for one in here if one.load == self._block), key=self._bytes)
        fitting = [one for one in here if one is least or _LOADING * self._bytes(one) < free]
        self.too_large |= {one.name for one in here if one not in fitting}
        return fitting

    def _is_here(self, part: Wanted) -> bool:
        names = [*part.files, *(data_file(name) for name in part.files if name.endswith(".onnx"))]
        listed = [name for name in names if name in self._artifact.manifest.files]
        return all((self._artifact.folder / name).is_file() for name in listed)

    def _load(self, backend: OnnxBackend, part: Wanted) -> Part:
        call, held = part.load(backend, part.name)
        return Part(name=part.name, rows=part.rows, call=call, held=held)

    def _block(self, backend: OnnxBackend, graph: str) -> tuple[Call, int]:
        before = held_memory()
        chain = backend.chain(self._artifact.graph(graph), self._artifact.architecture)
        cache = chain.new_cache()
        chain.run(self._rows(_PIECE), cache, 0)
        held = held_memory() - before - cache.bytes
        chain.run(self._rows(_PAST), cache, 0)
        self.prefill.setdefault(graph, max(0, held_memory() - before - cache.bytes - held))
        rows = {count: self._rows(count) for count in _BLOCK_ROWS}

        def call(count: int) -> object:
            return chain.run(rows[count], cache, _PAST)

        return call, max(0, held)

    def _model_head(self, backend: OnnxBackend, graph: str) -> tuple[Call, int]:
        head = self._head(backend, "full")
        norm = self._artifact.floats(self._artifact.manifest.final_norm)
        given = {count: self._rows(count) for count in _HEAD_ROWS}

        def call(count: int) -> object:
            return head.logits(given[count], norm).argmax(axis=1)

        call(2)
        return call, self.held.get(graph, 0)

    def _head(self, backend: OnnxBackend, name: str) -> Head:
        """Exits share heads."""
        if name not in self._heads:
            artifact, graph = self._artifact, self._artifact.manifest.heads[name].graph
            before = held_memory()
            head = backend.head(artifact.graph(graph), artifact.graph(CONFIDENCE))
            self._heads[name] = head
            self.held.setdefault(graph, max(0, held_memory() - before))
        return self._heads[name]

    def _exit(self, entry: ExitEntry, backend: OnnxBackend, _name: str) -> tuple[Call, int]:
        """Asking it with so many positions pending."""
        shared = self._head(backend, entry.head)
        buffers = [
            RowBuffer(self._artifact.architecture.hidden_size) for _ in (entry.cut, *entry.feed)
        ]
        for buffer in buffers:
            buffer.append(self._rows(_PAST + max(_EXIT_ROWS)))
        before = held_memory()
        session = ExitSession(ExitHead(self._artifact, entry, backend, shared), buffers)
        session.result(_PIECE)
        held = held_memory() - before - session.cache.bytes
        session.result(_PAST)

        def call(count: int) -> object:
            session.crop(_PAST)
            return session.result(_PAST + count)

        return call, max(0, held)

    def _path_head(self, path: DraftEntry, backend: OnnxBackend, _name: str) -> tuple[Call, int]:
        """What is left of a draft path's exit: its adapter is in the chain."""
        shared = self._head(backend, path.head)
        asked = ExitHead(self._artifact, closing_exit(path), backend, shared)
        row = self._rows(1)

        def call(_count: int) -> object:
            return asked.top(row)

        call(1)
        return call, 0

    def _time(self, parts: Sequence[Part], budget: float) -> None:
        """In turns, as a token runs through them; many rows less often than few."""
        counts = sorted({count for part in parts for count in part.rows})
        until = time.perf_counter() + budget
        for number in range(_MOST_ROUNDS):
            if number >= _FEWEST_ROUNDS and time.perf_counter() > until:
                break
            for count in counts:
                if count > 8 and number >= _FEWEST_ROUNDS and number % 4:
                    continue
                for part in parts:
                    if count in part.rows:
                        part.seconds.setdefault(count, []).append(self._timed(part.call, count))

    def _timed(self, call: Callable[[int], Any], count: int) -> float:
        wall, cpu = time.perf_counter(), time.process_time()
        call(count)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return min(wall, cpu / self._threads) if self._is_stopped else wall

    def _rows(self, count: int) -> F32:
        made: F32 = self._random.standard_normal(
            (count, self._artifact.architecture.hidden_size), dtype=np.float32
        )
        return made


def usual_threads() -> list[int]:
    """1, 2, 4, … up to what the device has."""
    made, most = [1], cpu_limits().most_threads
    while made[-1] * 2 <= most:
        made.append(made[-1] * 2)
    return made if made[-1] == most or most > 8 else [*made, most]


def _layers(path: DraftEntry) -> int:
    """Of the chain, the exit's adapter included."""
    return len(path.layers) + path.exit_layers


def _code_bytes() -> int:
    """Pages of files that this process has in memory."""
    return max(0, int(psutil.Process().memory_info().rss) - held_memory())
