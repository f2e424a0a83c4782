"""A stage: the running form of a run of blocks.

`Stage` holds the weights, `StageSession` one conversation's state. A session takes token ids
or hidden states for consecutive positions, runs what is pending no deeper than it is asked
to, and answers with hidden states, exit guesses or logits::

    session.append_ids(prompt)      # nothing computed yet
    session.exit_at(5)              # runs layers 0-4 for all pending positions, then the exit
    session.hidden_at(15, 0)        # runs layers 5-14, returns rows from position 0 on
    session.crop(12)                # forget positions from 12 on

Exact mode follows the two-row rule: a lone row is padded with a throw-away one, because ONNX
Runtime computes a single row with other kernels than several. Its attention does so too with a
lone row left over after whole tiles. Exits guess; they always run unpadded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from collm.errors import ContextFull, PlacementError
from collm.limits import DEFAULT_LIMITS, Limits
from collm.model.artifact import Artifact
from collm.model.manifest import ExitEntry
from collm.model.vocabulary import CONFIDENCE
from collm.runtime.backend import Backend, Cache, Chain, Head
from collm.runtime.exits import ExitHead, ExitResult, ExitRows, ExitSession
from collm.runtime.onnx_backend import OnnxBackend
from collm.runtime.rescore import Rescorer
from collm.runtime.rows import RowBuffer

F32 = npt.NDArray[np.float32]

_TILE = 16
"""Attention's tiles are a multiple of this many rows: min(2 · head size, L2 bytes / (32 · head
size)) of them, measured and as in ONNX Runtime's `q_block_size`. Head sizes of 80, 96 or 192 on a
CPU with little L2 cache make tiles of other sizes and are not covered."""
_PART = 32
"""Rows of a long run between two pauses."""


class Stage:
    """The blocks of `layers`, loaded; the exits asked for; the head where it is the last stage.

    loaded: a stage of the same artifact whose blocks and exits are taken over where wanted.
    Raises PlacementError where `layers` does not begin and end at cuts or lacks what an exit
    reads, ArtifactError where a file is missing or damaged. Files of other blocks are never opened.
    """

    def __init__(
        self,
        artifact: Artifact,
        layers: range,
        *,
        exits: Sequence[int] = (),
        threads: int = 1,
        limits: Limits = DEFAULT_LIMITS,
        backend: Backend | None = None,
        loaded: Stage | None = None,
    ) -> None:
        arch = artifact.architecture
        self.artifact = artifact
        self.architecture = arch
        self.layers = layers
        self.limits = limits
        entries = artifact.blocks(layers)
        if backend is None and loaded is not None:
            backend = loaded._backend
        self._backend: Backend = backend or OnnxBackend(arch, threads, limits)
        self.bounds = (layers.start, *(block.last for block in entries))
        have = loaded._graphs if loaded is not None else {}
        self._graphs: dict[str, Chain[Any]] = {
            block.graph: have.get(block.graph)
            or self._backend.chain(artifact.graph(block.graph), arch)
            for block in entries
        }
        self.chains = list(self._graphs.values())
        self._embedding = artifact.embedding() if layers.start == 0 else None
        entries_at = artifact.exits(tuple(exits), layers.stop)
        for entry in entries_at:
            self._check_reads(entry)
        kept: dict[int, ExitHead] = loaded.exits if loaded is not None else {}
        heads = {
            name: next((e.head for e in kept.values() if e.entry.head == name), None)
            or self._load_head(name)
            for name in {entry.head for entry in entries_at}
        }
        self.exits: dict[int, ExitHead] = {
            entry.cut: kept.get(entry.cut)
            or ExitHead(artifact, entry, self._backend, heads[entry.head])
            for entry in entries_at
        }
        self.is_last = layers.stop == arch.layers
        if self.is_last:
            self._head = heads.get("full") or self._load_head("full")
            self._norm = artifact.floats(artifact.manifest.final_norm)
            is_rounded = artifact.manifest.weights != "fp32"
            self._rescorer = Rescorer(artifact, self._norm) if is_rounded else None

    def _check_reads(self, entry: ExitEntry) -> None:
        if not set(self.bounds).issuperset((entry.cut, *entry.feed)):
            reads = ", ".join(map(str, (*entry.feed, entry.cut)))
            raise PlacementError(
                f"exit {entry.cut}: it reads the states at {reads}, but a stage of layers "
                f"{self.layers.start} to {self.layers.stop} has those at "
                f"{', '.join(map(str, self.bounds))}"
            )

    def _load_head(self, name: str) -> Head:
        graph = self.artifact.graph(self.artifact.manifest.heads[name].graph)
        return self._backend.head(graph, self.artifact.graph(CONFIDENCE))

    def open(self, start: int | None = None, *, exact: bool = True) -> StageSession:
        """A new session that begins at layer `start` (default: the first of this stage).

        It has no exits that read the states at layers before `start`.
        exact: follow the two-row rule; without it a lone row takes the faster kernels.
        """
        start = self.layers.start if start is None else start
        if start not in self.bounds:
            raise PlacementError(
                f"a session from layer {start}: this stage can begin at "
                f"{', '.join(map(str, self.bounds))}"
            )
        return StageSession(self, start, exact)

    def embed(self, ids: Sequence[int]) -> F32:
        """Input embeddings, float32 [len(ids), d]."""
        if self._embedding is None:
            raise PlacementError(f"a stage that begins at layer {self.layers.start} takes no ids")
        rows = self._embedding.floats(np.asarray(ids, dtype=np.int64))
        if self.architecture.embedding_scale != 1.0:
            rows = rows * np.float32(self.architecture.embedding_scale)
        return rows

    def logits(self, hidden_states: F32, *, exact: bool = True) -> F32:
        """Final norm and head: float32 [rows, d] -> float32 [rows, vocabulary]."""
        if not self.is_last:
            raise PlacementError(f"layers up to {self.layers.stop} are not the end of the model")
        rows = len(hidden_states)
        padded = np.repeat(hidden_states, 2, axis=0) if exact and rows == 1 else hidden_states
        logits = self._head.logits(padded, self._norm)[:rows]
        if self._rescorer is not None:
            self._rescorer.correct(hidden_states, logits)
        return logits


class StageSession:
    """One conversation in a stage. Not for use by several threads at once."""

    def __init__(self, stage: Stage, start: int, exact: bool) -> None:
        self.stage = stage
        self.exact = exact
        self.position = 0
        """Positions appended so far."""
        first = stage.bounds.index(start)
        self._bounds = stage.bounds[first:]
        self._chains = stage.chains[first:]
        self._caches: list[Cache] = [chain.new_cache() for chain in self._chains]
        self._done = [0] * len(self._chains)
        width = stage.architecture.hidden_size
        self._rows = {bound: RowBuffer(width) for bound in self._bounds}
        self._exits = {
            cut: ExitSession(exit_head, [self._rows[c] for c in (cut, *exit_head.entry.feed)])
            for cut, exit_head in stage.exits.items()
            if self._has_rows_for(exit_head.entry)
        }
        self._fed_from = self._find_fed()
        self._kept: int | None = None
        self.pause: Callable[[], None] | None = None
        """Called between the parts of a long run; what it raises ends that; what was run stays."""

    def keep_rows(self, bound: int) -> None:
        """Forget no rows at this boundary: `hidden_at` may be asked for all of them again."""
        self._kept = bound

    def _has_rows_for(self, entry: ExitEntry) -> bool:
        return self._rows.keys() >= {entry.cut, *entry.feed}

    def _find_fed(self) -> dict[int, list[ExitSession]]:
        """The exits that read the rows at a boundary beside those at their own."""
        exits = self.stage.exits
        return {
            bound: [e for cut, e in self._exits.items() if bound in exits[cut].entry.feed]
            for bound in self._bounds
        }

    @property
    def max_positions(self) -> int:
        """The model's context length."""
        return self.stage.architecture.context_length

    @property
    def bytes(self) -> int:
        """Memory held by caches and pending rows."""
        caches = [*self._caches, *(e.cache for e in self._exits.values())]
        return sum(c.bytes for c in caches) + sum(r.bytes for r in self._rows.values())

    def bytes_with(self, more: int, *, from_ids: bool = False) -> int:
        """At most the `bytes` after `more` further positions are appended and run.

        from_ids: or while `restart` makes up the layers below, too.
        """
        positions = self.position + more
        chains = self.stage.chains if from_ids else self._chains
        caches: int = sum(chain.cache_bytes(positions) for chain in chains)
        rows = sum(kept.bytes_to(positions) for kept in self._rows.values())
        adapters = [self.stage.exits[cut].adapter for cut in self._exits]
        return caches + rows + sum(one.cache_bytes(positions) for one in adapters if one)

    def append_ids(self, ids: Sequence[int]) -> None:
        """Add token ids for the next positions. Raises ContextFull."""
        self.append_hidden(self.stage.embed(ids))

    def append_hidden(self, rows: F32) -> None:
        """Add hidden states float32 [n, d] for the next positions. Raises ContextFull."""
        if self.position + len(rows) > self.max_positions:
            raise ContextFull(f"the model's context of {self.max_positions} positions is full")
        self._rows[self._bounds[0]].append(rows)
        self.position += len(rows)

    def run(self, layer: int, end: int | None = None) -> None:
        """Run pending positions up to the boundary `layer`: those before `end`, by default all."""
        end = self.position if end is None else min(end, self.position)
        for i, chain in enumerate(self._chains):
            if self._bounds[i] >= layer:
                break
            while (done := self._done[i]) < end:
                # What is left is as many rows as a part has, or more: a lone row would be
                # computed otherwise.
                in_parts = self.pause is not None and done + 2 * _PART <= end
                to = done + _PART if in_parts else end
                rows = self._rows[self._bounds[i]].take(done, to)
                made = self._run_chain(chain, self._caches[i], rows, done)
                self._done[i] = to
                self._rows[self._bounds[i + 1]].append(made)
                self._forget(self._bounds[i], to)
                if in_parts and self.pause is not None:
                    self.pause()

    def restart(self, start: int, ids: Sequence[int], most: int) -> Iterator[None]:
        """Take the rows to come at the boundary `start`; yields between parts of `most` rows.

        ids: those of all positions held. From them comes what the layers between a lower `start`
        and the old one keep of these positions: by the two-row rule, where those who ran them
        before compute alike, what they kept. Exits that read states below a higher `start` are
        gone for good. Raises PlacementError.
        """
        stage, first, old = self.stage, *self._places(start)
        if first > old:
            while (done := self.run_to(start)) < self.position:
                self.run(start, done + most)
                yield None
            for bound in stage.bounds[old:first]:
                del self._rows[bound]
            self._caches, self._done = self._caches[first - old :], self._done[first - old :]
            lost = [cut for cut in self._exits if not self._has_rows_for(stage.exits[cut].entry)]
            for cut in lost:
                del self._exits[cut]
        elif first < old:
            chains = stage.chains[:old]
            caches = [chain.new_cache() for chain in chains]
            for at in range(0, len(ids), most):
                rows = stage.embed(ids[at : at + most])
                for chain, cache in zip(chains, caches, strict=True):
                    rows = self._run_chain(chain, cache, rows, at)
                yield None
            self._caches = [*caches[first:], *self._caches]
            self._done = [self.position] * (old - first) + self._done
            width = stage.architecture.hidden_size
            for bound in stage.bounds[first:old]:
                self._rows[bound] = RowBuffer(width, self.position)
        self._bounds, self._chains = stage.bounds[first:], stage.chains[first:]
        self._fed_from = self._find_fed()

    def _places(self, start: int) -> tuple[int, int]:
        """Indices of the boundaries `start` and the one that rows have come at."""
        bounds = self.stage.bounds
        if start not in bounds[:-1]:
            raise PlacementError(
                f"rows at layer {start}: this stage takes them at "
                f"{', '.join(map(str, bounds[:-1]))}"
            )
        return bounds.index(start), bounds.index(self._bounds[0])

    def hidden_at(self, layer: int, first: int) -> F32:
        """Hidden states after `layer` layers, positions [first, position): float32 [n, d].

        Positions before `first` are not to be asked for again.
        """
        self.run(layer)
        rows = self._rows[layer].take(first, self.position).copy()
        self._forget(layer, first)
        return rows

    def state_at(self, layer: int) -> F32:
        """The last position's hidden state after `layer` layers, float32 [d]; forgets nothing."""
        self.run(layer)
        row: F32 = self._rows[layer].take(self.position - 1, self.position)[0].copy()
        return row

    def run_to(self, layer: int) -> int:
        """How many positions have been run up to the boundary `layer`."""
        ends = zip(self._done, self._bounds[1:], strict=True)
        return min((done for done, end in ends if end <= layer), default=self.position)

    def pending_at(self, cut: int) -> int:
        """Positions that asking the exit at `cut` would have to catch up on, at least 1."""
        rows = self.position - self.run_to(cut)
        return max(1, rows, self._exits[cut].pending(self.position))

    def exit_at(self, cut: int) -> ExitResult:
        """What the exit at `cut` makes of the last position."""
        self.run(cut)
        return self._exits[cut].result(self.position)

    def exit_logits(self, cut: int) -> F32:
        """The exit's logits for the last position, float32 [vocabulary], −inf where unknown."""
        self.run(cut)
        return self._exits[cut].logits(self.position)

    def exit_rows(self, cut: int, first: int, *, temperature: float | None = None) -> ExitRows:
        """What the exit at `cut` makes of every position in [first, position).

        For whole texts: several rows share a call, which rounds otherwise than a lone one.
        temperature: instead of the exit's own. Raises IndexError where the exit was asked about
        `first` or a later position before, or nothing is left to ask about.
        """
        self.run(cut)
        return self._exits[cut].rows(first, self.position, temperature)

    def exit_row_logits(self, cut: int, first: int) -> F32:
        """The exit's logits for positions [first, position) as they are before any calibration.

        float32 [n, tokens the exit knows]; their ids are `stage.exits[cut].ids`, None for all.
        Raises IndexError as `exit_rows` does.
        """
        self.run(cut)
        return self._exits[cut].row_logits(first, self.position)

    def logits(self, first: int) -> F32:
        """The model's logits for positions [first, position): float32 [n, vocabulary]."""
        rows = self.hidden_at(self.stage.layers.stop, first)
        return self.stage.logits(rows, exact=self.exact)

    def crop(self, position: int) -> None:
        """Forget every position from `position` on.

        Exits with a window see less than all of it for a while after going back by more than
        `limits.max_draft_tokens`.
        """
        self.position = min(self.position, position)
        self._done = [min(done, position) for done in self._done]
        for rows in self._rows.values():
            rows.crop(position)
        for exit_session in self._exits.values():
            exit_session.crop(position)

    def close(self) -> None:
        """Free the caches."""
        self._caches.clear()
        self._rows.clear()
        self._exits.clear()
        self._fed_from.clear()

    def _run_chain(self, chain: Chain[Any], cache: Cache, rows: F32, position: int) -> F32:
        """Rows through one chain in bounded calls, never a lone row in exact mode.

        Nor is the last of several one in any mode: only what is made a row at a time, for speed,
        depends on how it was made.
        """
        most, made = self.stage.limits.prefill_rows, []
        for start in range(0, len(rows), most):
            part = rows[start : start + most]
            if len(part) % _TILE == 1 and (self.exact or len(rows) > 1):
                # The throw-away row's place in the cache is written again at the next step.
                padded = np.concatenate([part, part[-1:]])
                made.append(chain.run(padded, cache, position + start)[:-1])
            else:
                made.append(chain.run(part, cache, position + start))
        return made[0] if len(made) == 1 else np.concatenate(made)

    def _forget(self, bound: int, wanted: int) -> None:
        """Drop the rows at `bound` before `wanted`, but none that exits or layers have yet to see.

        A crop may go back further, but never before what was run: that is in the caches.
        """
        if bound == self._kept:
            return
        if (i := self._bounds.index(bound)) < len(self._chains):
            wanted = min(wanted, self._done[i])
        if bound in self._exits:
            wanted = min(wanted, self._exits[bound].done)
        for fed in self._fed_from[bound]:  # what is there at its cut is there at all it reads
            wanted = min(wanted, fed.first)
        self._rows[bound].drop_before(min(wanted, self.position - 1))
