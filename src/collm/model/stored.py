"""Reading an artifact's weights back as float32: the model as deployed, for tuning.

Each matrix of a layer is found in its block's graph under the name that `model.layers` gave it
and is split and named as Hugging Face does; quantised ones are dequantised exactly, offsets
included. A graph is parsed once, its large weights are read from the data file beside it as
they are asked for, so that no more than one layer is in memory.

Not covered: exits and shortlist heads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import helper, numpy_helper

from collm.errors import ArtifactError, PlacementError
from collm.model.architecture import Architecture
from collm.model.artifact import Artifact
from collm.model.layers import LayerWeights, Matrix
from collm.model.manifest import BlockEntry
from collm.model.quantize import BLOCK, F32, U8, Quantised
from collm.model.vocabulary import RowReader


class StoredWeights:
    """The weights of an artifact's own model, every file verified before it is read.

    Raises ArtifactError where a file is missing, damaged or not what `collm build` writes.
    """

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        self._arch = artifact.architecture
        self._open: tuple[BlockEntry, StoredGraph] | None = None

    def layer(self, layer: int) -> dict[str, F32]:
        """One decoder layer under its Hugging Face names, without the `model.layers.N.` prefix.

        Matrices are [outputs, inputs]; norm weights are as they are applied (Gemma's 1 + w).
        Raises PlacementError for a layer that the model does not have.
        """
        return float_tensors(self.packed_layer(layer), self._arch)

    def packed_layer(self, layer: int) -> LayerWeights:
        """One decoder layer as it is stored, to be written into another graph.

        Raises PlacementError for a layer that the model does not have.
        """
        block, graph = self._block_of(layer)
        return graph.layer(f"l{layer - block.first}", self._arch)

    def embedding(self) -> F32:
        """float32 [vocabulary, d], before any `embedding_scale`."""
        self._artifact.path(self._artifact.manifest.embedding.file)
        return self._rows("the embedding", head=False)

    def unembedding(self) -> F32:
        """float32 [vocabulary, d]; the embedding's numbers where the two are tied."""
        self._artifact.graph(self._artifact.manifest.heads["full"].graph)
        return self._rows("the unembedding", head=True)

    def final_norm(self) -> F32:
        """float32 [d], as it is applied."""
        name = self._artifact.manifest.final_norm
        weight = self._artifact.floats(name)
        if weight.shape != (self._arch.hidden_size,):
            raise ArtifactError(
                f"{self._artifact.folder / name}: {weight.size} numbers, expected "
                f"{self._arch.hidden_size}; build the artifact again"
            )
        return weight

    def _block_of(self, layer: int) -> tuple[BlockEntry, StoredGraph]:
        if self._open is None or not self._open[0].first <= layer < self._open[0].last:
            blocks = self._artifact.manifest.blocks
            block = next((b for b in blocks if b.first <= layer < b.last), None)
            if block is None:
                raise PlacementError(f"layer {layer}: the model has {self._arch.layers} layers")
            data = self._artifact.path(block.graph.removesuffix(".onnx") + ".data")
            self._open = block, StoredGraph(self._artifact.path(block.graph), data)
        return self._open

    def _rows(self, what: str, *, head: bool) -> F32:
        folder, manifest = self._artifact.folder, self._artifact.manifest
        try:
            if head:
                reader = RowReader.of_head(folder, manifest)
            else:
                reader = RowReader(folder, manifest.embedding, self._arch)
            return reader.floats(np.arange(self._arch.vocab_size))
        except ValueError as error:  # a file too short to be mapped as the manifest says
            raise ArtifactError(
                f"{folder}: {what} is not as the manifest says ({error}); build it again"
            ) from None


def float_tensors(w: LayerWeights, arch: Architecture) -> dict[str, F32]:
    """A layer's weights, dequantised, under their Hugging Face names without any prefix.

    Its feed-forward part may have another number of channels than the architecture's.
    """

    def floats(matrix: Matrix) -> F32:
        return matrix.floats() if isinstance(matrix, Quantised) else matrix

    q_size, kv_size = arch.heads * arch.head_size, arch.kv_heads * arch.head_size
    heads = [q_size, q_size + kv_size]  # where the stacked outputs are cut
    q, k, v = np.split(floats(w.qkv), heads)
    gate, up = np.split(floats(w.gate_up), 2)
    found = {
        "self_attn.q_proj.weight": q,
        "self_attn.k_proj.weight": k,
        "self_attn.v_proj.weight": v,
        "self_attn.o_proj.weight": floats(w.o),
        "mlp.gate_proj.weight": gate,
        "mlp.up_proj.weight": up,
        "mlp.down_proj.weight": floats(w.down),
    }
    if w.qkv_bias is not None:
        biases = np.split(w.qkv_bias, heads)
        found |= {f"self_attn.{x}_proj.bias": b for x, b in zip("qkv", biases, strict=True)}
    # Gemma's `post_attention_layernorm` is another norm than Llama's.
    norm_2 = "pre_feedforward_layernorm" if arch.post_norms else "post_attention_layernorm"
    norms = {"input_layernorm": w.norm_1, norm_2: w.norm_2}
    norms |= {
        f"self_attn.{x}": n
        for x, n in (("q_norm", w.q_norm), ("k_norm", w.k_norm))
        if n is not None
    }
    if w.post_norm_1 is not None and w.post_norm_2 is not None:
        norms["post_attention_layernorm"] = w.post_norm_1
        norms["post_feedforward_layernorm"] = w.post_norm_2
    return found | {f"{name}.weight": norm for name, norm in norms.items()}


class StoredGraph:
    """The named weights of one graph and of the data file beside it, both verified."""

    def __init__(self, path: Path, data: Path) -> None:
        self._path = path
        self._data = data
        try:
            graph = onnx.load_model(path, load_external_data=False).graph
        except (DecodeError, OSError) as error:
            raise ArtifactError(f"{path}: not a readable ONNX graph: {error}") from None
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}

    def has(self, name: str) -> bool:
        return name in self._tensors

    def layer(self, p: str, arch: Architecture) -> LayerWeights:
        """The decoder layer whose weights' names begin with `p`."""
        d, ffn = arch.hidden_size, arch.ffn_size
        q_size, outputs = arch.heads * arch.head_size, arch.kv_heads * arch.head_size * 2
        outputs += q_size

        def norm(name: str, size: int, wanted: bool) -> F32 | None:
            return self.floats(f"{p}.{name}", (size,)) if wanted else None

        bias = f"{p}.qkv.bias"
        return LayerWeights(
            qkv=self.packed(f"{p}.qkv", (outputs, d)),
            qkv_bias=self.floats(bias, (outputs,)) if self.has(bias) else None,
            o=self.packed(f"{p}.o", (d, q_size)),
            gate_up=self.packed(f"{p}.gate_up", (2 * ffn, d)),
            down=self.packed(f"{p}.down", (d, ffn)),
            norm_1=self.floats(f"{p}.norm_1", (d,)),
            norm_2=self.floats(f"{p}.norm_2", (d,)),
            q_norm=norm("q_norm", arch.head_size, arch.qk_norm),
            k_norm=norm("k_norm", arch.head_size, arch.qk_norm),
            post_norm_1=norm("post_norm_1", d, arch.post_norms),
            post_norm_2=norm("post_norm_2", d, arch.post_norms),
        )

    def matrix(self, name: str, shape: tuple[int, int]) -> F32:
        """A matrix [outputs N, inputs K], dequantised where `GraphBuilder.linear` packed it."""
        packed = self.packed(name, shape)
        return packed.floats() if isinstance(packed, Quantised) else packed

    def packed(self, name: str, shape: tuple[int, int]) -> Matrix:
        """A matrix [outputs N, inputs K] as `GraphBuilder.linear` stored it."""
        if not self.has(f"{name}.q"):
            return self.floats(f"{name}.weight", shape)
        n, k = shape
        blocks = k // BLOCK
        bits = self._bits(f"{name}.q")
        q: U8 = self._array(f"{name}.q", (n, blocks, BLOCK * bits // 8), np.uint8)
        scale = self.floats(f"{name}.scale", (n * blocks,)).reshape(n, blocks)
        offset = None
        if self.has(f"{name}.offset"):  # stored as the product with the block sums wants it
            offset = self.floats(f"{name}.offset", (blocks, n)).T
        return Quantised(bits=bits, q=q, scale=scale, offset=offset)

    def floats(self, name: str, shape: tuple[int, ...]) -> F32:
        return self._array(name, shape, np.float32)

    def _bits(self, name: str) -> int:
        bits = int((*self._tensors[name].dims, 0, 0, 0)[2]) * 8 // BLOCK
        if bits not in (4, 8):
            raise ArtifactError(f"{self._path}: {name} has {bits} bits a weight, expected 4 or 8")
        return bits

    def _array(
        self, name: str, shape: tuple[int, ...], dtype: type[np.generic]
    ) -> npt.NDArray[Any]:
        """The weight `name` after a check that it is of this shape and type."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise ArtifactError(f"{self._path}: holds no weight {name}; build the artifact again")
        found = tuple(tensor.dims), tensor.data_type
        if found != (shape, helper.np_dtype_to_tensor_dtype(np.dtype(dtype))):
            raise ArtifactError(
                f"{self._path}: {name} has shape {found[0]} and ONNX type {found[1]}, expected "
                f"{shape} of {dtype.__name__}; build the artifact again"
            )
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            return np.array(numpy_helper.to_array(tensor))
        where = {entry.key: entry.value for entry in tensor.external_data}
        if where.get("location") != self._data.name:
            raise ArtifactError(
                f"{self._path}: {name} is not in {self._data.name}; build the artifact again"
            )
        count = int(np.prod(shape))
        values = np.fromfile(self._data, dtype, count, offset=int(where.get("offset", 0)))
        if len(values) != count:
            raise ArtifactError(f"{self._data}: ends before {name} does; build the artifact again")
        return values.reshape(shape)
