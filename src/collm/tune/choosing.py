"""Which layers and channels a draft path is to have: named, or chosen by what they are worth.

Needs no PyTorch. Not covered: trying what tuned exits would make of every choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from collm.errors import PlacementError, UsageError
from collm.model.artifact import Artifact
from collm.model.drafts import DraftPlan
from collm.tune.analysis import Analysis, Subset, important_channels
from collm.tune.analyze import AnalyzeConfig, analyzer
from collm.tune.corpus import Corpus, Example

POSITIONS = 1024
"""Of the caches that a path within a bound of memory has room for."""
Told = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the user asked for. At most one of `layers`, `drop` and `memory_bytes`."""

    name: str
    cut: int
    layers: tuple[int, ...] | None = None
    drop: int = 0
    memory_bytes: int = 0
    """Of layers, exit, head and a cache of `POSITIONS`; 0: any."""
    ffn: float = 1.0
    """Share of the feed-forward channels to keep."""
    loose: bool = False
    """Keep the best channels, and not the best groups of 32 neighbours."""
    weights: str = ""

    def check(self, artifact: Artifact) -> None:
        """Raise PlacementError or UsageError for what cannot be chosen, before any work."""
        ways = [self.layers is not None, self.drop > 0, self.memory_bytes > 0]
        if sum(ways) > 1:
            raise UsageError("give one of --layers, --drop and --memory")
        if not 0 < self.ffn <= 1:
            raise UsageError(f"--ffn {self.ffn:g}: expected a share above 0 and up to 1")
        if not 0 <= self.drop < self.cut:
            raise UsageError(f"--drop {self.drop}: expected 0 to {self.cut - 1} of {self.cut}")
        layers = tuple(range(self.cut)) if self.layers is None else self.layers
        plan = DraftPlan(name=self.name, cut=self.cut, layers=layers, weights=self.weights)
        plan.check(artifact)


def choose(
    artifact: Artifact,
    wanted: Wanted,
    examples: list[Example],
    work: Path,
    *,
    threads: int,
    analysis: Analysis | None = None,
    told: Told = lambda what, done, total: None,
) -> DraftPlan:
    """The plan. examples: to choose by, where no analysis says enough. work: a folder for results.

    Raises PlacementError and UsageError.
    """
    wanted.check(artifact)
    if analysis is not None and analysis.cut != wanted.cut:
        raise UsageError(
            f"the analysis is of paths up to {analysis.cut}, not {wanted.cut}; make one with "
            f"collm analyze --cut {wanted.cut}"
        )
    layers = tuple(range(wanted.cut)) if wanted.layers is None else wanted.layers
    chooses_layers = wanted.drop > 0 or wanted.memory_bytes > 0
    importances: dict[int, list[float]] = {}
    if analysis is not None:
        importances = {one.layer: list(one.channels) for one in analysis.layers}
        if chooses_layers:
            layers = _layers(artifact, wanted, list(analysis.subsets))
    elif chooses_layers or wanted.ffn < 1:
        config = AnalyzeConfig(
            examples=tuple(examples),
            text="",
            cut=wanted.cut,
            work=work / f"paths-{wanted.cut:02d}.json",
            threads=threads,
        )
        with analyzer(artifact, config, told) as run:
            if chooses_layers:
                layers = _layers(artifact, wanted, run.paths())
            if wanted.ffn < 1:
                found = run.importances(layers)
                importances = {layer: values.tolist() for layer, values in found.items()}
    channels = {}
    if wanted.ffn < 1:
        for layer in layers:
            kept = important_channels(importances[layer], wanted.ffn, loose=wanted.loose)
            if len(kept) < len(importances[layer]):
                channels[layer] = np.array(kept, np.int64)
    return DraftPlan(
        name=wanted.name,
        cut=wanted.cut,
        layers=layers,
        weights=wanted.weights,
        channels=channels,
    )


def _layers(artifact: Artifact, wanted: Wanted, subsets: list[Subset]) -> tuple[int, ...]:
    if wanted.drop:
        count = wanted.cut - wanted.drop
        return next(one.layers for one in subsets if len(one.layers) == count)
    manifest, arch = artifact.manifest, artifact.architecture
    entry = manifest.exit_at(wanted.cut)
    if entry is None:
        raise PlacementError(f"{artifact.folder} has no exit at {wanted.cut}")
    parts = [manifest.heads[entry.head].graph, *([entry.graph] if entry.graph else [])]
    fixed = sum(manifest.files[name.removesuffix(".onnx") + ".data"].bytes for name in parts)
    cache = 2 * 4 * arch.kv_heads * arch.head_size * POSITIONS
    fitting = [
        one
        for one in subsets
        if fixed + one.weight_bytes + cache * (len(one.layers) + entry.layers)
        <= wanted.memory_bytes
    ]
    if not fitting:
        least = min(one.weight_bytes for one in subsets) + fixed + cache * (1 + entry.layers)
        raise UsageError(
            f"--memory: {wanted.memory_bytes:,} bytes are too few for one layer and the exit at "
            f"{wanted.cut}, which take {least:,}; give more, or a shallower --upto"
        )
    return max(fitting, key=lambda one: one.log_likelihood).layers


def examples_to_choose_by(corpus: Corpus, rows: int) -> list[Example]:
    """Training examples with about `rows` counted rows, in an order that their text decides."""
    made, counted = [], 0
    for example in sorted(corpus.training, key=lambda one: one.digest):
        if counted >= rows:
            break
        made.append(example)
        counted += len(example.ids) - example.first + 1
    return made
