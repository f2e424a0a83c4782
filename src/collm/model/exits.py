"""Exits: what turns the hidden state at a cut into a guess at the next token.

An exit is a norm and a head behind an optional adapter: `linear`, `mlp` or decoder layers. Adding
an exit file writes its graphs into the artifact and replaces the manifest last, so that an
interrupted addition leaves the artifact as it was. Thresholds are set by themselves, later.

Not covered: what an exit file looks like (`collm.model.exit_file`).
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from collm.errors import ArtifactError, PlacementError
from collm.model.architecture import Architecture
from collm.model.artifact import Artifact
from collm.model.delta import check_exit
from collm.model.draft_entry import DraftEntry
from collm.model.exit_file import ExitFile as ExitFile
from collm.model.files import file_entry
from collm.model.graph import DataFile, GraphBuilder
from collm.model.layers import (
    LayerWeights,
    Matrix,
    cache_inputs,
    decoder_layer,
    feed_forward,
    hidden_input,
    hidden_output,
)
from collm.model.manifest import ExitEntry, FileEntry, HeadEntry, Manifest
from collm.model.vocabulary import CONFIDENCE, RowReader, write_head

F32 = npt.NDArray[np.float32]


def identity_exit(manifest: Manifest, cut: int) -> ExitEntry:
    """An untrained exit: the model's own norm and head applied at `cut`."""
    return ExitEntry(cut=cut, kind="identity", norm=manifest.final_norm, head="full")


def add_exit(folder: Path, path: Path) -> Manifest:
    """Add the exit file `path` to the artifact `folder`, in place of what its cut had."""
    artifact = Artifact(folder)
    manifest, arch = artifact.manifest, artifact.architecture
    file = ExitFile(path)
    check_exit(manifest, file)
    if file.cut not in manifest.cuts:
        raise PlacementError(
            f"{path}: an exit at layer {file.cut}, but the artifact's cuts are "
            f"{', '.join(map(str, manifest.cuts))}"
        )
    if not file.fits(manifest.cuts):
        raise PlacementError(
            f"{path}: an exit that reads layers {', '.join(map(str, file.feed))} too, but the "
            f"artifact's cuts are {', '.join(map(str, manifest.cuts))}"
        )
    if file.kind == "layer" and file.layers > arch.layers:
        raise ArtifactError(f"{path}: {file.layers} layers, the model has only {arch.layers}")
    return install(folder, lambda scratch: _write(scratch, artifact, file))


def install(folder: Path, write: Callable[[Path], Manifest]) -> Manifest:
    """Take files into an artifact, its manifest last, then drop those that nothing uses any more.

    write: puts the files into a folder as they are to lie in the artifact, and returns the manifest
    that names their parts.
    """
    with tempfile.TemporaryDirectory(prefix=".exit-", dir=folder) as scratch:
        made = write(Path(scratch))
        written = [p for p in Path(scratch).rglob("*") if p.is_file()]
        names = {p.relative_to(scratch).as_posix(): file_entry(p) for p in written}
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            os.replace(Path(scratch) / name, folder / name)
    made, unused = _without_unused({**made.files, **names}, made)
    made.write(folder)
    for name in unused:
        (folder / name).unlink(missing_ok=True)
    return made


def set_thresholds(folder: Path, chosen: Mapping[int, tuple[float | None, str]]) -> Manifest:
    """Write, per cut, the confidence from which its exit may answer alone, and how it was chosen.

    chosen: (threshold in (0, 1], or None for never; calibration record, JSON) by cut. Cuts not
    named stay as they are; nothing is written where one has no exit (PlacementError).
    """
    manifest = Manifest.read(folder)
    for cut, (threshold, record) in chosen.items():
        if (entry := manifest.exit_at(cut)) is None:
            offered = ", ".join(str(e.cut) for e in manifest.exits) or "none"
            raise PlacementError(f"threshold for exit {cut}: the artifact has exits at {offered}")
        manifest = manifest.with_exit(replace(entry, threshold=threshold, calibration=record))
    manifest.write(folder)
    return manifest


def _without_unused(
    files: Mapping[str, FileEntry], manifest: Manifest
) -> tuple[Manifest, list[str]]:
    """The manifest of `files`, less what only a replaced exit used; and the names left out."""
    guessers: tuple[ExitEntry | DraftEntry, ...] = (*manifest.exits, *manifest.drafts)
    heads = {
        name: head
        for name, head in manifest.heads.items()
        if name == "full" or any(entry.head == name for entry in guessers)
    }
    used = {manifest.final_norm, CONFIDENCE, *(entry.norm for entry in guessers)}
    graphs = [head.graph for head in heads.values()]
    for graph in (*graphs, *(entry.graph for entry in guessers if entry.graph)):
        used |= {graph, graph.removesuffix(".onnx") + ".data"}
    used |= {head.ids for head in heads.values() if head.ids}
    unused = [n for n in files if n.startswith(("exits/", "heads/", "drafts/")) and n not in used]
    kept = {name: entry for name, entry in files.items() if name not in unused}
    return replace(manifest, heads=heads, files=kept), unused


def _write(scratch: Path, artifact: Artifact, file: ExitFile) -> Manifest:
    """Write the exit's graphs under `scratch`; returns the manifest that names them."""
    manifest, arch = artifact.manifest, artifact.architecture
    (scratch / "exits").mkdir()
    stem = stem_of(file.path)
    manifest, head = write_norm_and_head(scratch, artifact, file, f"{stem}.norm.f32")
    if file.kind != "identity":
        with DataFile(scratch / f"{stem}.data") as data:
            graph_builder = GraphBuilder(f"exit at {file.cut}", data)
            _adapter(graph_builder, arch, file, quantised=manifest.weights != "fp32")
            graph_builder.save(scratch / f"{stem}.onnx")
    return manifest.with_exit(
        ExitEntry(
            cut=file.cut,
            kind=file.kind,
            norm=f"{stem}.norm.f32",
            head=head,
            graph=None if file.kind == "identity" else f"{stem}.onnx",
            layers=file.layers if file.kind == "layer" else 0,
            window=file.window,
            feed=file.feed,
            temperature=file.temperature,
            trained=True,
            training=file.metadata.get("training", ""),
        )
    )


def write_norm_and_head(
    scratch: Path, artifact: Artifact, file: ExitFile, norm: str
) -> tuple[Manifest, str]:
    """Write an exit's norm as `norm`, and its shortlist's head where it has one.

    Returns the manifest that lists the head, and the head's name.
    """
    manifest, arch = artifact.manifest, artifact.architecture
    file.floats("norm.weight", (arch.hidden_size,)).tofile(scratch / norm)
    ids = file.shortlist(arch.vocab_size)
    if ids is None:
        return manifest, "full"
    head = "short-" + hashlib.sha256(ids.tobytes()).hexdigest()[:8]
    artifact.graph(manifest.heads["full"].graph)  # verified, before its rows are copied
    rows = RowReader.of_head(artifact.folder, manifest).matrix(ids)
    graph = write_head(scratch, arch, head, rows)
    ids.astype(np.int32).tofile(scratch / f"heads/{head}.ids")
    entry = HeadEntry(graph=graph, vocabulary=len(ids), ids=f"heads/{head}.ids")
    return replace(manifest, heads={**manifest.heads, head: entry}), head


def _adapter(g: GraphBuilder, arch: Architecture, file: ExitFile, *, quantised: bool) -> None:
    x = hidden_input(g, arch, 1 + len(file.feed))
    if file.kind == "layer":
        cache_inputs(g, arch, adapter_layers(arch, file))
    write_adapter(g, arch, file, x, quantised=quantised)


def adapter_layers(arch: Architecture, file: ExitFile) -> range:
    """The adapter's layers are of the kind of the model's last ones (RoPE, norms, activation)."""
    return range(arch.layers - (file.layers if file.kind == "layer" else 0), arch.layers)


def write_adapter(
    g: GraphBuilder,
    arch: Architecture,
    file: ExitFile,
    x: str,
    *,
    quantised: bool,
    first_slot: int = 0,
) -> None:
    """The adapter of an exit, from the states `x` that it reads to the output `hidden_out`.

    x: float32 [rows, d · (1 + fed cuts)], the exit's own cut first. first_slot: caches before this
    number are others'.
    """
    d, states = arch.hidden_size, 1 + len(file.feed)
    mapped = ""
    if file.has("linear.weight") or file.kind == "linear":
        matrix = file.matrix("linear.weight", (d, d * states), quantised)
        mapped = g.linear(x, "linear", matrix)
    if file.kind == "linear":
        if states > 1:  # the cut's own state comes first
            x = g.op("Slice", x, g.integers(0), g.integers(d), g.integers(1))
        hidden_output(g, arch, x, mapped)
    elif file.kind == "mlp":
        _feed_forward(g, arch, file, quantised, mapped or x)
    else:
        x, branch = mapped or x, ""
        for i, layer in enumerate(adapter_layers(arch, file)):
            weights = _layer_weights(file, arch, i, quantised)
            slot = first_slot + i
            x, branch = decoder_layer(g, arch, slot, layer, file.window, weights, x, branch)
        hidden_output(g, arch, x, branch)


def _feed_forward(
    g: GraphBuilder, arch: Architecture, file: ExitFile, quantised: bool, x: str
) -> None:
    """The kind `mlp`: a feed-forward part behind a norm, added to the residual stream."""
    d, ffn, norm = arch.hidden_size, arch.ffn_size, "post_attention_layernorm"
    both = {"mlp.gate_proj.weight": (ffn, d), "mlp.up_proj.weight": (ffn, d)}
    gate_up = file.stacked(both, quantised)
    down = file.matrix("mlp.down_proj.weight", (d, ffn), quantised)
    normed = g.rms_norm(x, norm, file.floats(f"{norm}.weight", (d,)), arch.norm_epsilon)
    hidden_output(g, arch, x, feed_forward(g, arch, "mlp", normed, gate_up, down))


def _layer_weights(file: ExitFile, arch: Architecture, i: int, quantised: bool) -> LayerWeights:
    p, d, ffn = f"layers.{i}", arch.hidden_size, arch.ffn_size
    q_size, kv_size = arch.heads * arch.head_size, arch.kv_heads * arch.head_size

    def stack(*parts: tuple[str, tuple[int, int]]) -> Matrix:
        return file.stacked({f"{p}.{x}_proj.weight": shape for x, shape in parts}, quantised)

    def norm(name: str, size: int) -> F32:
        return file.floats(f"{p}.{name}.weight", (size,))

    biases = [f"{p}.self_attn.{x}_proj.bias" for x in "qkv"]
    sizes = (q_size, kv_size, kv_size)
    has_bias = file.has(biases[0])
    post, norm_2 = arch.post_norms, "post_attention_layernorm"
    return LayerWeights(
        qkv=stack(*((f"self_attn.{x}", (n, d)) for x, n in zip("qkv", sizes, strict=True))),
        qkv_bias=np.concatenate(
            [file.floats(b, (n,)) for b, n in zip(biases, sizes, strict=True)]
        ) if has_bias else None,
        o=stack(("self_attn.o", (d, q_size))),
        gate_up=stack(("mlp.gate", (ffn, d)), ("mlp.up", (ffn, d))),
        down=stack(("mlp.down", (d, ffn))),
        norm_1=norm("input_layernorm", d),
        norm_2=norm("pre_feedforward_layernorm" if post else norm_2, d),
        q_norm=norm("self_attn.q_norm", arch.head_size) if arch.qk_norm else None,
        k_norm=norm("self_attn.k_norm", arch.head_size) if arch.qk_norm else None,
        post_norm_1=norm(norm_2, d) if post else None,
        post_norm_2=norm("post_feedforward_layernorm", d) if post else None,
    )  # fmt: skip


def stem_of(path: Path) -> str:
    """The name, without ending, of an exit file's parts inside an artifact."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    return f"exits/{ExitFile(path).cut:03d}-{digest}"


def shipped_exits(source_sha256: str) -> list[Path]:
    """Exits that come with CoLLM for this very checkpoint, by its digest."""
    root = Path(__file__).parent.parent / "assets" / "exits"
    files = sorted(root.glob("*/exit-*.safetensors"))
    return [p for p in files if ExitFile(p).metadata.get("source_sha256") == source_sha256]
