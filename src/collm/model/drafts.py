"""Draft paths: a chain of some of the model's layers that ends in an exit, all in one graph.

The layers are copies, thinned out and in a form of their own, so that a device which loads a
draft path needs no block. Where the exit reads the state at a cut it is given what the path's
layers below that cut have made.

Not covered: choosing the layers and channels, tuning the exit (`collm.tune`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from collm.errors import ArtifactError, PlacementError, UsageError
from collm.model.artifact import Artifact
from collm.model.delta import check_exit
from collm.model.draft_entry import FORMS, NAME, DraftEntry
from collm.model.draft_graph import draft_graph
from collm.model.exits import ExitFile, install, write_norm_and_head
from collm.model.graph import DataFile, GraphBuilder
from collm.model.layers import LayerWeights
from collm.model.manifest import Manifest
from collm.model.stored import StoredWeights
from collm.model.thinning import in_form, keep_channels
from collm.model.vocabulary import CONFIDENCE

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class DraftPlan:
    """What a draft path is to be made of, its exit apart."""

    name: str
    cut: int
    layers: tuple[int, ...]
    weights: str = ""
    """One of `FORMS`; empty: as the artifact has them."""
    channels: Mapping[int, I64] = field(default_factory=dict)
    """Feed-forward channels that a layer keeps, ascending; one not named keeps all."""

    def check(self, artifact: Artifact) -> None:
        """Raise PlacementError or UsageError for what cannot be made of the artifact."""
        manifest = artifact.manifest
        if not NAME.fullmatch(self.name):
            raise UsageError(
                f"draft name {self.name[:80]!r}: expected up to 63 small letters, digits, - or _"
            )
        if self.cut not in manifest.cuts:
            raise PlacementError(
                f"a draft path up to layer {self.cut}: {artifact.folder} has cuts at "
                f"{', '.join(map(str, manifest.cuts))}"
            )
        is_sound = list(self.layers) == sorted(set(self.layers)) and all(
            0 <= layer < self.cut for layer in self.layers
        )
        if not is_sound:
            raise PlacementError(
                f"draft layers {','.join(map(str, self.layers))}: expected ascending layers from 0 "
                f"to {self.cut - 1}"
            )
        form = self.weights or manifest.weights
        if form not in FORMS:
            raise UsageError(f"weights {form!r}: expected one of {', '.join(FORMS)}")
        if form in ("int4", "mixed") and manifest.weights == "int8":
            raise UsageError(
                f"weights {form}: {artifact.folder} holds 8-bit weights, and rounding those again "
                "would cost far more than it saves; build it with --weights int4"
            )

    def layer(self, stored: StoredWeights, layer: int) -> LayerWeights:
        """One of its layers as it is to be written."""
        weights = stored.packed_layer(layer)
        if layer in self.channels:
            weights = keep_channels(weights, self.channels[layer])
        return in_form(weights, self.weights) if self.weights else weights

    def digest(self, artifact: Artifact) -> str:
        """Of all that decides its states."""
        kept = [(layer, self.channels[layer].tolist()) for layer in sorted(self.channels)]
        said = [artifact.fingerprint, self.cut, self.layers, self.weights, kept]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def add_draft(
    folder: Path, plan: DraftPlan, exit_file: Path | None, *, about: str = ""
) -> Manifest:
    """Add a draft path to the artifact `folder`, in place of any of its name.

    exit_file: the exit that it ends in, made for its cut; None: the final norm and head. about:
    how it was made, JSON. Raises PlacementError, ArtifactError and UsageError; nothing is changed
    then.
    """
    artifact = Artifact(folder)
    plan.check(artifact)
    file = None if exit_file is None else ExitFile(exit_file)
    if file is not None:
        check_exit(artifact.manifest, file)
        if file.cut != plan.cut or not file.fits(artifact.manifest.cuts):
            raise ArtifactError(
                f"{exit_file}: an exit at layer {file.cut} that reads layers {list(file.feed)}, "
                f"but the draft path goes up to {plan.cut}; expected one for it"
            )
    if not plan.layers and (file is None or file.kind == "identity"):
        raise PlacementError("a draft path of no layers needs a trained exit that computes one")
    return install(folder, lambda scratch: _write(scratch, artifact, plan, file, about))


def remove_draft(folder: Path, name: str) -> Manifest:
    """Take a draft path out of an artifact. Raises PlacementError where there is none."""
    manifest = Artifact(folder).manifest
    draft_of(manifest, name)
    left = tuple(entry for entry in manifest.drafts if entry.name != name)
    return install(folder, lambda scratch: replace(manifest, drafts=left))


def draft_of(manifest: Manifest, name: str) -> DraftEntry:
    """The draft path of that name. Raises PlacementError with those there are."""
    entry = manifest.draft_named(name)
    if entry is None:
        offered = ", ".join(e.name for e in manifest.drafts) or "none"
        raise PlacementError(
            f"draft path {name[:80]!r}: the artifact has {offered}; make one with: collm compress"
        )
    return entry


def draft_files(manifest: Manifest, name: str) -> tuple[str, ...]:
    """Every file that a device needs which drafts with this path and sends token ids only."""
    entry = draft_of(manifest, name)
    head = manifest.heads[entry.head]
    names = {entry.graph, entry.data, entry.norm, head.graph, CONFIDENCE, manifest.embedding.file}
    names |= {head.graph.removesuffix(".onnx") + ".data", "tokenizer.json"}
    if head.ids:
        names.add(head.ids)
    return tuple(sorted(names))


def draft_bytes(manifest: Manifest, entry: DraftEntry) -> int:
    """Of its layers and adapter, on disk; the head and the embedding are shared with others."""
    return sum(manifest.files[name].bytes for name in (entry.graph, entry.data, entry.norm))


def draft_memory(manifest: Manifest, entry: DraftEntry, positions: int) -> int:
    """Bytes that drafting with it takes: layers, adapter, head and a cache of so many positions.

    The embedding is read through a memory map and not counted.
    """
    arch = manifest.architecture
    head = manifest.heads[entry.head].graph.removesuffix(".onnx") + ".data"
    layers = len(entry.layers) + entry.exit_layers
    caches = 2 * 4 * arch.kv_heads * arch.head_size * layers
    return draft_bytes(manifest, entry) + manifest.files[head].bytes + caches * positions


def best_draft(manifest: Manifest, memory_bytes: int, positions: int) -> DraftEntry | None:
    """Of the paths that fit, the one that was right most often on held-out text; None: none fits.

    memory_bytes: as `draft_memory` counts them.
    """
    fitting = [e for e in manifest.drafts if draft_memory(manifest, e, positions) <= memory_bytes]
    return max(fitting, key=held_out_agreement, default=None)


def held_out_agreement(entry: DraftEntry) -> float:
    """How often it chose what the full model chose, 0 to 1, as was measured when it was made."""
    try:
        return float(json.loads(entry.training or "{}").get("held_out_agreement", 0.0))
    except (ValueError, TypeError, AttributeError):
        return 0.0


def _write(
    scratch: Path, artifact: Artifact, plan: DraftPlan, file: ExitFile | None, about: str
) -> Manifest:
    """Write the path's files under `scratch`; returns the manifest that names it."""
    arch, manifest, stored = artifact.architecture, artifact.manifest, StoredWeights(artifact)
    (scratch / "drafts").mkdir()
    content = plan.digest(artifact) + (
        "" if file is None else hashlib.sha256(file.path.read_bytes()).hexdigest()
    )
    stem = f"drafts/{plan.name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    channels: list[int] = []

    def read(layer: int) -> LayerWeights:
        weights = plan.layer(stored, layer)
        channels.append(weights.down.shape[1])
        return weights

    with DataFile(scratch / f"{stem}.data") as data:
        graph = GraphBuilder(f"draft {plan.name}", data)
        is_packed = manifest.weights != "fp32"
        cuts = tuple(cut for cut in manifest.cuts if cut <= plan.cut)
        draft_graph(graph, arch, plan.layers, cuts, read, file, quantised=is_packed)
        graph.save(scratch / f"{stem}.onnx")
    norm, head = f"{stem}.norm.f32", "full"
    if file is None:
        artifact.floats(manifest.final_norm).tofile(scratch / norm)
    else:
        manifest, head = write_norm_and_head(scratch, artifact, file, norm)
    entry = DraftEntry(
        name=plan.name,
        layers=plan.layers,
        channels=tuple(channels),
        weights=plan.weights or manifest.weights,
        cut=plan.cut,
        kind="identity" if file is None else file.kind,
        exit_layers=0 if file is None else file.layers,
        graph=f"{stem}.onnx",
        norm=norm,
        head=head,
        temperature=1.0 if file is None else file.temperature,
        training=about,
    )
    others = [old for old in manifest.drafts if old.name != plan.name]
    return replace(manifest, drafts=tuple(sorted([*others, entry], key=lambda e: e.name)))
