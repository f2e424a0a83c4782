"""An artifact's exit back as an exit file, to start another from or to put behind other layers.

What `collm.model.exits` wrote is read exactly: an exit that came in packed goes out with the same
integers and scales. Not covered: the threshold and how it was chosen.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from collm.errors import PlacementError
from collm.model.artifact import Artifact
from collm.model.delta import adaptation_of
from collm.model.files import write_tensors
from collm.model.layers import LayerWeights, Matrix
from collm.model.manifest import ExitEntry
from collm.model.quantize import Quantised
from collm.model.stored import StoredGraph

Tensors = dict[str, npt.NDArray[Any]]


def copy_exit(artifact: Artifact, cut: int, path: Path) -> Path:
    """Write the exit at `cut` to the exit file `path`. Raises PlacementError where none is."""
    entry = artifact.manifest.exit_at(cut)
    if entry is None:
        offered = ", ".join(str(e.cut) for e in artifact.manifest.exits) or "none"
        raise PlacementError(f"exit {cut}: {artifact.folder} has exits at {offered}")
    tensors: Tensors = {"norm.weight": artifact.floats(entry.norm)}
    ids = artifact.head_ids(artifact.manifest.heads[entry.head])
    if ids is not None:
        tensors["shortlist"] = ids
    if entry.graph is not None:
        data = artifact.path(entry.graph.removesuffix(".onnx") + ".data")
        _adapter(tensors, StoredGraph(artifact.path(entry.graph), data), artifact, entry)
    about = {
        "format": "collm-exit",
        "version": "1",
        "cut": str(entry.cut),
        "kind": entry.kind,
        "layers": str(entry.layers),
        "window": str(entry.window),
        "feed": json.dumps(entry.feed),
        "temperature": repr(entry.temperature),
        "source_sha256": artifact.manifest.source_sha256,
        "adaptation": adaptation_of(artifact.manifest),
        "training": entry.training,
    }
    write_tensors(path, tensors, about)
    return path


def _adapter(tensors: Tensors, graph: StoredGraph, artifact: Artifact, entry: ExitEntry) -> None:
    arch = artifact.architecture
    d, ffn = arch.hidden_size, arch.ffn_size
    if graph.has("linear.q") or graph.has("linear.weight"):
        _put(tensors, "linear", graph.packed("linear", (d, d * (1 + len(entry.feed)))))
    if entry.kind == "mlp":
        norm = "post_attention_layernorm"
        tensors[f"{norm}.weight"] = graph.floats(norm, (d,))
        _put_split(
            tensors, graph.packed("mlp.gate_up", (2 * ffn, d)), [ffn], ["mlp.gate", "mlp.up"]
        )
        _put(tensors, "mlp.down_proj", graph.packed("mlp.down", (d, ffn)))
    for i in range(entry.layers):
        _layer(tensors, f"layers.{i}", graph.layer(f"l{i}", arch), artifact)


def _layer(tensors: Tensors, p: str, w: LayerWeights, artifact: Artifact) -> None:
    arch = artifact.architecture
    q_size, kv_size = arch.heads * arch.head_size, arch.kv_heads * arch.head_size
    heads = [q_size, q_size + kv_size]
    _put_split(tensors, w.qkv, heads, [f"{p}.self_attn.{x}" for x in "qkv"])
    if w.qkv_bias is not None:
        for x, bias in zip("qkv", np.split(w.qkv_bias, heads), strict=True):
            tensors[f"{p}.self_attn.{x}_proj.bias"] = bias
    _put(tensors, f"{p}.self_attn.o_proj", w.o)
    _put_split(tensors, w.gate_up, [arch.ffn_size], [f"{p}.mlp.gate", f"{p}.mlp.up"])
    _put(tensors, f"{p}.mlp.down_proj", w.down)
    # Gemma's `post_attention_layernorm` is another norm than Llama's.
    norm_2 = "pre_feedforward_layernorm" if arch.post_norms else "post_attention_layernorm"
    norms = {
        "input_layernorm": w.norm_1,
        norm_2: w.norm_2,
        "self_attn.q_norm": w.q_norm,
        "self_attn.k_norm": w.k_norm,
    }
    if arch.post_norms:
        norms |= {
            "post_attention_layernorm": w.post_norm_1,
            "post_feedforward_layernorm": w.post_norm_2,
        }
    tensors.update({f"{p}.{n}.weight": norm for n, norm in norms.items() if norm is not None})


def _put_split(tensors: Tensors, matrix: Matrix, at: list[int], names: list[str]) -> None:
    """A stacked matrix, part by part; `at`: the outputs before which it is split."""
    outputs = matrix.shape[0]
    for name, index in zip(names, np.split(np.arange(outputs), at), strict=True):
        part = matrix.rows(index) if isinstance(matrix, Quantised) else matrix[index]
        _put(tensors, f"{name}_proj", part)


def _put(tensors: Tensors, name: str, matrix: Matrix) -> None:
    if not isinstance(matrix, Quantised):
        tensors[f"{name}.weight"] = matrix
        return
    n, k = matrix.shape
    tensors[f"{name}.weight"] = (matrix.q.astype(np.int16) - 128).astype(np.int8).reshape(n, k)
    tensors[f"{name}.weight.scale"] = matrix.scale.astype(np.float16)
