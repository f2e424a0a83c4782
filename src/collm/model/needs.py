"""Which of an artifact's files a device opens: what has to be fetched for it, and no byte more.

Not covered: which exits a mode uses (`collm.session.placed`), files that are no part of an
artifact (policy files).
"""

from __future__ import annotations

from collections.abc import Sequence

from collm.errors import ArtifactError
from collm.model.artifact import check_placement, exits_at
from collm.model.manifest import Manifest
from collm.model.vocabulary import CONFIDENCE

TOKENIZER = "tokenizer.json"


def stage_files(manifest: Manifest, layers: range, exits: Sequence[int] = ()) -> frozenset[str]:
    """Names of the files that a stage of `layers` with exits at the cuts `exits` opens.

    Where embeddings are tied, a stage from layer 0 needs the rows in the full head's data file,
    whatever it leaves out otherwise. Raises PlacementError where the artifact has no such stage or
    exits, ArtifactError where the manifest lacks an entry for one of the files.
    """
    check_placement(manifest, layers.start)
    check_placement(manifest, layers.stop)
    names = set()
    for block in manifest.blocks:
        if block.first in layers:
            names |= _graph(manifest, block.graph)
    if layers.start == 0:
        names.add(manifest.embedding.file)
    heads = set()
    for entry in exits_at(manifest, tuple(exits), layers.stop):
        names.add(entry.norm)
        names |= _graph(manifest, entry.graph) if entry.graph is not None else set()
        heads.add(entry.head)
    if layers.stop == manifest.architecture.layers:
        names.add(manifest.final_norm)
        heads.add("full")
    for name in heads:
        names |= _head(manifest, name)
    return _known(manifest, names)


def edge_files(manifest: Manifest, layers: range | None, exits: Sequence[int]) -> frozenset[str]:
    """What an edge opens: the tokenizer, and its stage's files unless `layers` is None.

    Raises what `stage_files` does.
    """
    stage = stage_files(manifest, layers, exits) if layers is not None else frozenset()
    return _known(manifest, {TOKENIZER}) | stage


def _head(manifest: Manifest, name: str) -> set[str]:
    head = manifest.heads.get(name)
    if head is None:
        raise ArtifactError(f"{manifest.name}: the manifest lists no head {name}")
    names = _graph(manifest, head.graph) | _graph(manifest, CONFIDENCE)
    return names if head.ids is None else {*names, head.ids}


def _graph(manifest: Manifest, name: str) -> set[str]:
    """A graph, and its weights where it has any."""
    data = name.removesuffix(".onnx") + ".data"
    return {name, data} if data in manifest.files else {name}


def _known(manifest: Manifest, names: set[str]) -> frozenset[str]:
    for name in sorted(names):
        if name not in manifest.files:
            raise ArtifactError(f"{manifest.name}: the manifest lists no file {name}")
    return frozenset(names)
