"""What a mode and a placement come to: the exits an edge uses, and so the files it opens.

The edge itself asks here, and so does what fetches its files beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence

from collm.config import MODES
from collm.errors import PlacementError, PromptError
from collm.model.artifact import check_placement, exits_at
from collm.model.manifest import Manifest
from collm.model.needs import edge_files


def default_placement(manifest: Manifest) -> int:
    """The cut nearest to half the model's layers."""
    half = manifest.architecture.layers / 2
    return min(manifest.cuts, key=lambda cut: abs(cut - half), default=manifest.architecture.layers)


def exits_in_use(
    manifest: Manifest, mode: str, placement: int, exits: Sequence[int] | None
) -> tuple[int, ...]:
    """Cuts of the exits that an edge uses in `mode` with `placement` layers, ascending.

    exits: the cuts wanted, None for all at or below the placement. Raises PromptError for a mode
    that there is not, PlacementError where the artifact or the mode cannot have it so.
    """
    if mode not in MODES:
        raise PromptError(f"mode {mode!r}: expected one of {', '.join(MODES)}")
    check_placement(manifest, placement)
    is_whole = placement == manifest.architecture.layers
    chosen = exits_at(manifest, None if exits is None else tuple(exits), placement)
    if is_whole and mode in ("threshold", "refine"):
        raise PlacementError(
            f"{mode} with all {placement} layers leaves nothing to the cloud; expected a cut: "
            f"{', '.join(map(str, manifest.cuts))}"
        )
    # An exact answer of the whole model needs no guesses.
    guesses = mode != "cloud" and not (mode in ("verified", "auto") and is_whole)
    used = tuple(entry.cut for entry in chosen) if guesses else ()
    if mode in ("standalone", "threshold", "refine") and not used and not is_whole:
        raise PlacementError(
            f"{mode} with {placement} layers has no exit to answer from; expected a "
            f"placement of at least {min(manifest.cuts, default=placement)}"
        )
    return used


def placed_files(
    manifest: Manifest, mode: str, placement: int, exits: Sequence[int] | None
) -> frozenset[str]:
    """Names of the files that an edge opens. Raises what `exits_in_use` does, and ArtifactError."""
    used = exits_in_use(manifest, mode, placement, exits)
    return edge_files(manifest, None if mode == "cloud" else range(placement), used)
