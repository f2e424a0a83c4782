"""Our side of `collm bench engine`: the stages loaded, and what is measured of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from collm.bench.contestants import Contestant, StageDecode, StagePrefill, Work
from collm.bench.engine_report import EngineOptions
from collm.model.artifact import Artifact
from collm.runtime.stage import Stage

EXACT, FAST = "exact", "fast"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """What is measured of ours."""

    whole: Stage
    standalone: Stage | None
    cut: int | None

    @property
    def standalone_name(self) -> str:
        return f"standalone exit@{self.cut}"


def load_stages(artifact: Artifact, options: EngineOptions) -> Stages:
    """The whole model, and the layers up to the standalone exit. Raises PlacementError."""
    layers, threads = artifact.architecture.layers, options.threads
    cut = options.exit
    if cut is None:
        offered = [entry.cut for entry in artifact.manifest.exits if entry.cut < layers]
        cut = default_exit(offered, layers)
    alone = None
    if cut is not None:
        alone = Stage(artifact, range(cut), exits=(cut,), threads=threads)
    return Stages(whole=Stage(artifact, range(layers), threads=threads), standalone=alone, cut=cut)


def our_contestants(stages: Stages, options: EngineOptions, work: Work) -> list[Contestant]:
    """Decode and prefill at full depth, exact and fast; decode from the exit."""
    made: list[Contestant] = []
    for name, exact in ((EXACT, True), (FAST, False)):
        made.append(
            StageDecode(
                name=name,
                stage=stages.whole,
                exact=exact,
                cut=None,
                threads=options.threads,
                work=work,
            )
        )
        made.append(
            StagePrefill(
                name=name, stage=stages.whole, exact=exact, threads=options.threads, work=work
            )
        )
    if stages.standalone is not None:
        made.append(
            StageDecode(
                name=stages.standalone_name,
                stage=stages.standalone,
                exact=False,
                cut=stages.cut,
                threads=options.threads,
                work=work,
            )
        )
    return made


def default_exit(cuts: Sequence[int], layers: int) -> int | None:
    """The exit nearest to half the model's layers, None where there is none."""
    return min(cuts, key=lambda cut: abs(2 * cut - layers), default=None)
