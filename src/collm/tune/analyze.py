"""Measure every layer, then look for the best path of each length.

::

    for each layer: time it, run the text through it, compare what goes in with what comes out
    for each layer: run the text through the others; what do the exits and the head say now?
    from all layers below the cut, take away the one that the exit misses least, until one is left

Every step's result is kept in a file, so that an interrupted run goes on where it stood. Not
covered: trying all subsets; exits tuned for a subset (`collm compress`).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from collm.errors import PlacementError
from collm.model.artifact import Artifact
from collm.runtime.exits import ExitHead
from collm.tune.analysis import Analysis, LayerReport, Subset
from collm.tune.analysis_kept import KnownResults
from collm.tune.corpus import Example
from collm.tune.single_layers import SingleLayers, States, exit_logits

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Progress = Callable[[str, int, int], None]
"""Told what is going on, layer runs done, and layer runs in all."""

KEPT = 32
"""Of the full model's distribution the likeliest tokens are compared."""
_ROWS = 128
_HEAD, _EXIT = 6, 2
"""What scoring by the head or an exit takes, in runs of a layer; for the estimate only."""


@dataclass(frozen=True, kw_only=True)
class AnalyzeConfig:
    """What to analyse on, and where to keep what is known so far."""

    examples: tuple[Example, ...]
    text: str
    """Where the examples came from, in words."""
    cut: int
    """Where paths end; it has an exit."""
    work: Path
    """A JSON file."""
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class _Truth:
    """What the full model says: the likeliest tokens of all counted rows, [R, K]."""

    ids: I64
    log_probs: F32

    @property
    def choices(self) -> I64:
        """[R]."""
        first: I64 = self.ids[:, 0]
        return first


@contextmanager
def analyzer(
    artifact: Artifact, config: AnalyzeConfig, progress: Progress = lambda what, done, total: None
) -> Iterator[Analyzer]:
    """Raises PlacementError where the cut has no exit, UsageError where results cannot be kept."""
    if artifact.manifest.exit_at(config.cut) is None:
        offered = ", ".join(str(entry.cut) for entry in artifact.manifest.exits) or "none"
        raise PlacementError(f"paths up to {config.cut}: {artifact.folder} has exits at {offered}")
    with tempfile.TemporaryDirectory(prefix="collm-layers-") as folder:
        yield Analyzer(artifact, config, Path(folder), progress)


class Analyzer:
    """One analysis under way; made by `analyzer`."""

    def __init__(
        self, artifact: Artifact, config: AnalyzeConfig, folder: Path, progress: Progress
    ) -> None:
        self.artifact, self.config = artifact, config
        arch = artifact.architecture
        self.count, self.entries = arch.layers, artifact.exits(None, arch.layers)
        self.known = KnownResults(config.work, _settings(artifact, config))
        self._total = 1
        self._done, self._progress, self._what = 0, progress, "loading"
        self.layers = SingleLayers(
            artifact, folder, threads=config.threads, told=lambda layer: self._step(0)
        )
        self.firsts = [example.first - 1 for example in config.examples]
        self.exits: dict[int, ExitHead] = {e.cut: self.layers.exit(e) for e in self.entries}

    def run(self) -> Analysis:
        """All of it."""
        n = self.count
        self._total = n + sum(self._layer_runs(layer) for layer in range(n)) + self._search_runs
        self._read()
        at_cuts = {cut: self.states[cut] for cut in (0, *self._cuts())}
        exits = {cut: self._score_exit(cut, at_cuts)[0] for cut in self.exits}
        layers = [self._layer(layer) for layer in range(self.count)]
        subsets = self._search({one.layer: one.decode_seconds for one in layers})
        manifest = self.artifact.manifest
        return Analysis(
            model=manifest.name,
            fingerprint=self.artifact.fingerprint,
            weights=manifest.weights,
            text=self.config.text,
            rows=len(self.truth.ids),
            cut=self.config.cut,
            exits=exits,
            layers=tuple(layers),
            subsets=tuple(subsets),
        )

    def paths(self) -> list[Subset]:
        """The best path of each length, and nothing else."""
        cut = self.config.cut
        self._total = self.count + self._search_runs
        if len(self.known.subsets) < cut:
            self._read()
        if cut in self.known.subsets:
            return self._search({})
        return self._search({layer: self.layers.decode_seconds(layer) for layer in range(cut)})

    def importances(self, layers: Sequence[int]) -> dict[int, F64]:
        """The importance of every feed-forward channel, by layer, and nothing else."""
        self._total, self._what = 2 * len(layers), "feed-forward channels"
        made, states = {}, [self.layers.embed(e.ids) for e in self.config.examples]
        for layer in range(max(layers, default=-1) + 1):
            if layer in layers:
                made[layer] = self.layers.channel_importance(layer, states)
            states = self._run(layer, states)
        return made

    def _read(self) -> None:
        """Run the text through all layers, and hear what the full model says."""
        self.states: list[States] = [[self.layers.embed(e.ids) for e in self.config.examples]]
        self._what = "running the text"
        for layer in range(self.count):
            self.states.append(self._run(layer, self.states[-1]))
        self.truth = self._truth(self.states[-1])

    @property
    def _search_runs(self) -> int:
        return sum(k * (k + 1) // 2 + k * _EXIT for k in range(2, self.config.cut + 1))

    def _step(self, runs: int) -> None:
        self._done += runs
        self._progress(self._what, min(self._done, self._total), self._total)

    def _run(self, layer: int, states: States) -> States:
        made = self.layers.run(layer, states)
        self._step(1)
        return made

    # ---------------------------------------------------------------- one layer

    def _layer(self, layer: int) -> LayerReport:
        arch = self.artifact.architecture
        known = self.known.layers.get(layer)
        if known is not None:
            self._step(self._layer_runs(layer))
            return known
        self._what = f"layer {layer}"
        before, after = self.states[layer], self.states[layer + 1]
        importance = self.layers.channel_importance(layer, before)
        importance /= importance.mean() or 1.0  # a layer may add nothing at all
        seconds = self.layers.decode_seconds(layer)
        self._step(2)
        self._what = f"without layer {layer}"
        states, at_cuts = before, {c: self.states[c] for c in (0, *self._cuts()) if c <= layer}
        for other in range(layer + 1, self.count):
            at_cuts |= {other: states} if other in self._cuts() else {}
            states = self._run(other, states)
        agreement, divergence = self._score_head(states)
        self._step(_HEAD)
        made = LayerReport(
            layer=layer,
            decode_seconds=seconds,
            weight_bytes=self.layers.bytes[layer],
            kv_bytes=2 * 4 * arch.kv_heads * arch.head_size,
            change=_change(before, after),
            full_agreement=agreement,
            full_divergence=divergence,
            exit_agreement={
                cut: self._score_exit(cut, at_cuts)[0] for cut in self.exits if cut > layer
            },
            channels=tuple(float(f"{value:.4g}") for value in importance),
        )
        self._step(_EXIT * len(made.exit_agreement))
        self.known.keep_layer(made)
        return made

    def _layer_runs(self, layer: int) -> int:
        """What `_layer` counts: two of its own, those of the layers after it, scores."""
        exits = sum(cut > layer for cut in self.exits)
        return 2 + self.count - layer - 1 + _HEAD + _EXIT * exits

    def _cuts(self) -> tuple[int, ...]:
        return self.artifact.manifest.cuts

    # ---------------------------------------------------------------- paths

    def _search(self, seconds: Mapping[int, float]) -> list[Subset]:
        found: list[Subset] = []
        for count in range(self.config.cut, 0, -1):
            self._what = f"paths of {count} layers"
            best = self.known.subsets.get(count)
            if best is None:
                best = self._best(found, seconds)
                self.known.keep_subset(best)
            elif found:
                self._step((count + 1) * (count + 2) // 2 + (count + 1) * _EXIT)
            found.append(best)
        return found

    def _best(self, found: list[Subset], seconds: Mapping[int, float]) -> Subset:
        """The subset that lacks one layer of the last one found; at first, the one of all."""
        if not found:
            whole = tuple(range(self.config.cut))
            return self._subset(whole, self._path_states(whole, whole), seconds)
        last = found[-1].layers
        known = self._path_states(last, last)
        tried = []
        for gone in last:
            left = tuple(layer for layer in last if layer != gone)
            tried.append(self._subset(left, self._path_states(left, last, known), seconds))
            self._step(_EXIT)
        return max(tried, key=lambda one: one.log_likelihood)

    def _path_states(
        self, path: tuple[int, ...], last: tuple[int, ...], known: dict[int, States] | None = None
    ) -> dict[int, States]:
        """States before each layer from 0 to the cut, those that the path leaves out included.

        known: those of the path `last`, which holds as far as the two are the same.
        """
        made = {0: self.states[0]}
        for layer in range(self.config.cut):
            if known is not None and _same_up_to(path, last, layer):
                made[layer + 1] = known[layer + 1]
            elif layer in path:
                made[layer + 1] = self._run(layer, made[layer])
            else:
                made[layer + 1] = made[layer]
        return made

    def _subset(
        self, path: tuple[int, ...], states: dict[int, States], seconds: Mapping[int, float]
    ) -> Subset:
        agreement, likelihood = self._score_exit(self.config.cut, states)
        return Subset(
            layers=path,
            agreement=agreement,
            log_likelihood=likelihood,
            decode_seconds=sum(seconds[layer] for layer in path),
            weight_bytes=sum(self.layers.bytes[layer] for layer in path),
        )

    # ---------------------------------------------------------------- scores

    def _truth(self, states: States) -> _Truth:
        ids, log_probs = [], []
        for logits in self._logits(states):
            kept = min(KEPT, logits.shape[1])
            top = np.argpartition(-logits, kept - 1, axis=1)[:, :kept]
            values = np.take_along_axis(logits, top, 1)
            order = np.argsort(-values, axis=1, kind="stable")
            ids.append(np.take_along_axis(top, order, 1))
            log_probs.append(np.take_along_axis(values, order, 1) - _log_sum(logits))
        return _Truth(ids=np.concatenate(ids), log_probs=np.concatenate(log_probs))

    def _score_head(self, states: States) -> tuple[float, float]:
        """Agreement and divergence of the full model's head on other states than its own."""
        at, right, divergence = 0, 0, 0.0
        for logits in self._logits(states):
            rows = slice(at, at := at + len(logits))
            truth = self.truth.log_probs[rows].astype(np.float64)
            found = np.take_along_axis(logits, self.truth.ids[rows], 1) - _log_sum(logits)
            right += int((logits.argmax(1) == self.truth.choices[rows]).sum())
            divergence += float((np.exp(truth) * (truth - found)).sum())
        return right / at, divergence / at

    def _logits(self, states: States) -> Iterator[F32]:
        """Part by part: all of them would not fit into memory."""
        rows = [text[first:] for text, first in zip(states, self.firsts, strict=True)]
        joined = np.concatenate(rows)
        for start in range(0, len(joined), _ROWS):
            yield self.layers.logits(joined[start : start + _ROWS])

    def _score_exit(self, cut: int, states: dict[int, States]) -> tuple[float, float]:
        """Agreement of an exit, and the mean log-likelihood of the choices that it knows."""
        exit_head = self.exits[cut]
        right = at = known = 0
        likelihood = 0.0
        for logits in exit_logits(exit_head, states, self.firsts):
            choices = self.truth.choices[at : at + len(logits)]
            at += len(logits)
            ids = np.arange(logits.shape[1]) if exit_head.ids is None else exit_head.ids
            right += int((ids[logits.argmax(1)] == choices).sum())
            place = np.searchsorted(ids, choices).clip(max=len(ids) - 1)
            knows = ids[place] == choices
            found = np.take_along_axis(logits, place[:, None], 1) - _log_sum(logits)
            likelihood += float(found[knows].sum())
            known += int(knows.sum())
        return right / at, likelihood / max(1, known)


def _settings(artifact: Artifact, config: AnalyzeConfig) -> str:
    """All that decides the results."""
    said = [
        artifact.fingerprint,
        [[entry.cut, entry.graph, entry.norm] for entry in artifact.manifest.exits],
        [[e.digest.hex(), e.first, len(e.ids)] for e in config.examples],
        config.cut,
    ]
    return json.dumps(said)


def _same_up_to(path: tuple[int, ...], other: tuple[int, ...], layer: int) -> bool:
    return [one for one in path if one <= layer] == [one for one in other if one <= layer]


def _change(before: States, after: States) -> float:
    total, rows = 0.0, 0
    for x, y in zip(before, after, strict=True):
        wide, other = x.astype(np.float64), y.astype(np.float64)
        norms = np.linalg.norm(wide, axis=1) * np.linalg.norm(other, axis=1)
        total += float((1 - (wide * other).sum(1) / np.maximum(norms, 1e-30)).sum())
        rows += len(x)
    return total / rows


def _log_sum(logits: F32) -> F32:
    """log Σ exp of each row, float32 [n, 1]."""
    peak = logits.max(1, keepdims=True)
    made: F32 = peak + np.log(np.exp(logits - peak).sum(1, keepdims=True))
    return made
