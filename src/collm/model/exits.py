"""Exits: what turns the hidden state at a cut into a guess at the next token.

An exit file is safetensors with metadata (format `collm-exit`): a norm, an optional adapter
(`linear`, or decoder layers under their Hugging Face names; int8 with float16 block scales, or
floats), an optional `shortlist` of token ids, and a calibration temperature. Adding one writes
its graphs into the artifact and replaces the manifest last, so that an interrupted addition
leaves the artifact as it was.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from collm.errors import ArtifactError, PlacementError
from collm.limits import DEFAULT_LIMITS
from collm.model.architecture import Architecture
from collm.model.artifact import Artifact
from collm.model.files import file_entry
from collm.model.graph import DataFile, GraphBuilder
from collm.model.layers import LayerWeights, Matrix, layer_chain
from collm.model.manifest import ExitEntry, FileEntry, HeadEntry, Manifest
from collm.model.quantize import BLOCK, Quantised, concatenate
from collm.model.vocabulary import CONFIDENCE, RowReader, write_head

F32 = npt.NDArray[np.float32]

_KINDS = ("identity", "linear", "layer")
_MAX_LAYERS = 4


def identity_exit(manifest: Manifest, cut: int) -> ExitEntry:
    """An untrained exit: the model's own norm and head applied at `cut`."""
    return ExitEntry(cut=cut, kind="identity", norm=manifest.final_norm, head="full")


class ExitFile:
    """An exit file, opened and checked. Raises ArtifactError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if path.stat().st_size > DEFAULT_LIMITS.max_exit_bytes:
                raise ArtifactError(f"{path}: larger than any exit")
            self._reader = safe_open(path, framework="np")
            self.metadata: Mapping[str, str] = self._reader.metadata() or {}
            self._names = set(self._reader.keys())
        except FileNotFoundError:
            raise ArtifactError(f"{path}: no such file; expected an exit (safetensors)") from None
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{path}: not a readable exit file: {error}") from None
        if self.metadata.get("format") != "collm-exit" or self.metadata.get("version") != "1":
            raise ArtifactError(f"{path}: not a CoLLM exit of version 1")
        try:
            self.cut = int(self.metadata["cut"])
            self.kind = self.metadata["kind"]
            self.layers = int(self.metadata.get("layers", 0))
            self.window = int(self.metadata.get("window", 0))
            self.temperature = float(self.metadata.get("temperature", 1.0))
        except (KeyError, ValueError) as error:
            raise ArtifactError(f"{path}: malformed metadata: {error}") from None
        least = 1 if self.kind == "layer" else 0
        if not least <= self.layers <= _MAX_LAYERS:
            raise ArtifactError(f"{path}: {self.layers} layers; expected 1 to {_MAX_LAYERS}")
        sizes_fit = 0 <= self.window <= DEFAULT_LIMITS.max_positions
        if self.kind not in _KINDS or not sizes_fit or not 0.01 < self.temperature < 100:
            raise ArtifactError(f"{path}: metadata out of range (kind {self.kind!r})")

    def has(self, name: str) -> bool:
        """Whether the file holds tensor `name`."""
        return name in self._names

    def tensor(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """A tensor of exactly this shape."""
        if name not in self._names:
            raise ArtifactError(f"{self.path}: tensor {name} is missing")
        found = tuple(self._reader.get_slice(name).get_shape())
        if found != shape:
            raise ArtifactError(f"{self.path}: {name} has shape {found}, expected {shape}")
        return np.asarray(self._reader.get_tensor(name))

    def floats(self, name: str, shape: tuple[int, ...]) -> F32:
        """A tensor as float32."""
        values = self.tensor(name, shape).astype(np.float32)
        if not np.isfinite(values).all():
            raise ArtifactError(f"{self.path}: {name} has values that are not finite")
        return values

    def matrix(self, name: str, shape: tuple[int, int], quantised: bool) -> Matrix:
        """A matrix as the artifact keeps it: int8 blocks, or float32."""
        if not self.has(f"{name}.scale"):
            return self.floats(name, shape)
        n, k = shape
        q = self.tensor(name, shape)
        if q.dtype != np.int8 or k % BLOCK:
            raise ArtifactError(
                f"{self.path}: {name} with scales is {q.dtype} of {k} inputs; expected int8 of a "
                f"multiple of {BLOCK}"
            )
        q = q.astype(np.int16).reshape(n, k // BLOCK, BLOCK) + 128
        scale = self.floats(f"{name}.scale", (n, k // BLOCK))
        packed = Quantised(bits=8, q=q.astype(np.uint8), scale=scale)
        return packed if quantised else packed.floats()

    def shortlist(self, vocabulary: int) -> npt.NDArray[np.int64] | None:
        """Token ids that the exit knows, ascending; None for all."""
        if not self.has("shortlist"):
            return None
        ids = np.asarray(self._reader.get_tensor("shortlist")).astype(np.int64)
        if ids.ndim != 1 or len(ids) < 2 or ids.min() < 0 or ids.max() >= vocabulary:
            raise ArtifactError(f"{self.path}: the shortlist names tokens outside the vocabulary")
        if (np.diff(ids) <= 0).any():
            raise ArtifactError(f"{self.path}: the shortlist is not ascending")
        return ids


def add_exit(folder: Path, path: Path) -> Manifest:
    """Add the exit file `path` to the artifact `folder`, in place of what its cut had."""
    artifact = Artifact(folder)
    manifest, arch = artifact.manifest, artifact.architecture
    file = ExitFile(path)
    if file.cut not in manifest.cuts:
        raise PlacementError(
            f"{path}: an exit at layer {file.cut}, but the artifact's cuts are "
            f"{', '.join(map(str, manifest.cuts))}"
        )
    if file.kind == "layer" and file.layers > arch.layers:
        raise ArtifactError(f"{path}: {file.layers} layers, the model has only {arch.layers}")
    with tempfile.TemporaryDirectory(prefix=".exit-", dir=folder) as scratch:
        made = _write(Path(scratch), artifact, file)
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


def _without_unused(
    files: Mapping[str, FileEntry], manifest: Manifest
) -> tuple[Manifest, list[str]]:
    """The manifest of `files`, less what only a replaced exit used; and the names left out."""
    heads = {
        name: head
        for name, head in manifest.heads.items()
        if name == "full" or any(entry.head == name for entry in manifest.exits)
    }
    used = {manifest.final_norm, CONFIDENCE, *(entry.norm for entry in manifest.exits)}
    graphs = [head.graph for head in heads.values()]
    for graph in (*graphs, *(entry.graph for entry in manifest.exits if entry.graph)):
        used |= {graph, graph.removesuffix(".onnx") + ".data"}
    used |= {head.ids for head in heads.values() if head.ids}
    unused = [n for n in files if n.startswith(("exits/", "heads/")) and n not in used]
    kept = {name: entry for name, entry in files.items() if name not in unused}
    return replace(manifest, heads=heads, files=kept), unused


def _write(scratch: Path, artifact: Artifact, file: ExitFile) -> Manifest:
    """Write the exit's graphs under `scratch`; returns the manifest that names them."""
    manifest, arch = artifact.manifest, artifact.architecture
    (scratch / "exits").mkdir()
    stem = stem_of(file.path)
    d = arch.hidden_size
    norm = file.floats("norm.weight", (d,))
    norm.tofile(scratch / f"{stem}.norm.f32")
    ids = file.shortlist(arch.vocab_size)
    head = "full"
    if ids is not None:
        head = "short-" + hashlib.sha256(ids.tobytes()).hexdigest()[:8]
        artifact.graph(manifest.heads["full"].graph)  # verified, before its rows are copied
        rows = RowReader.of_head(artifact.folder, manifest).matrix(ids)
        graph = write_head(scratch, arch, head, rows)
        ids.astype(np.int32).tofile(scratch / f"heads/{head}.ids")
        entry = HeadEntry(graph=graph, vocabulary=len(ids), ids=f"heads/{head}.ids")
        manifest = replace(manifest, heads={**manifest.heads, head: entry})
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
            temperature=file.temperature,
            trained=True,
            training=file.metadata.get("training", ""),
        )
    )


def _adapter(g: GraphBuilder, arch: Architecture, file: ExitFile, *, quantised: bool) -> None:
    d = arch.hidden_size
    if file.kind == "linear":
        x = g.input("hidden", ["rows", d])
        y = g.linear(x, "linear", file.matrix("linear.weight", (d, d), quantised))
        g.node("Add", [x, y], ["hidden_out"])
        g.output("hidden_out", ["rows", d])
        return
    # The adapter's layers are of the kind of the model's last ones (RoPE, norms, activation).
    layers = range(arch.layers - file.layers, arch.layers)

    def read(layer: int) -> LayerWeights:
        return _layer_weights(file, arch, layer - layers.start, quantised)

    layer_chain(g, arch, layers, read, windows=(file.window,) * file.layers)


def _layer_weights(file: ExitFile, arch: Architecture, i: int, quantised: bool) -> LayerWeights:
    p, d, ffn = f"layers.{i}", arch.hidden_size, arch.ffn_size
    q_size, kv_size = arch.heads * arch.head_size, arch.kv_heads * arch.head_size

    def stack(*parts: tuple[str, tuple[int, int]]) -> Matrix:
        found = [file.matrix(f"{p}.{name}_proj.weight", shape, quantised) for name, shape in parts]
        packed = [part for part in found if isinstance(part, Quantised)]
        if len(packed) == len(found):
            return concatenate(packed)
        return np.concatenate([m.floats() if isinstance(m, Quantised) else m for m in found])

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
