"""The frozen full model in PyTorch, f32, from any checkpoint that `collm.model` reads.

Not covered: layers other than plain Llama ones (norms on queries and keys, biases, sliding
windows, scaled RoPE); such a checkpoint is refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from torch import Tensor

from collm.errors import SourceError
from collm.model.architecture import Architecture, Rope
from collm.model.sources import Checkpoint, open_checkpoint
from collm.model.tokenizer import TokenizerFiles
from collm.tune.layer import DecoderLayer, LayerShape, RMSNorm


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """The full model, frozen. `unembedding_VD` may be the embedding itself (tied)."""

    shape: LayerShape
    embedding_VD: Tensor
    unembedding_VD: Tensor
    layers: list[DecoderLayer]
    norm: RMSNorm
    tokenizer: TokenizerFiles
    sha256: str

    @property
    def special_ids(self) -> list[int]:
        """Ids of chat markers and other control tokens, ascending."""
        added = json.loads(self.tokenizer.tokenizer_json)["added_tokens"]
        return sorted(int(token["id"]) for token in added if token["special"])


def load_backbone(source: str) -> Backbone:
    """Read a checkpoint into f32 modules (540 MB for SmolLM2-135M).

    `source` is what `collm build` takes too: `smollm2`, a GGUF file, a folder with safetensors.
    Raises `SourceError` for a missing or damaged file and for unsupported layers.
    """
    checkpoint = open_checkpoint(source)
    arch = checkpoint.architecture
    rope = _only_rope(arch, source)
    if checkpoint.norm_offset or checkpoint.has("model.layers.0.self_attn.q_proj.bias"):
        raise SourceError(f"{source}: tuning knows plain Llama layers only, without biases")
    shape = LayerShape(
        hidden=arch.hidden_size,
        heads=arch.heads,
        kv_heads=arch.kv_heads,
        head_size=arch.head_size,
        ffn=arch.ffn_size,
        rope_theta=rope.base,
        eps=arch.norm_epsilon,
    )
    embedding = _tensor(checkpoint, "model.embed_tokens.weight")
    norm = RMSNorm(shape.hidden, shape.eps)
    norm.weight.data = _tensor(checkpoint, "model.norm.weight")
    norm.requires_grad_(False)
    return Backbone(
        shape=shape,
        embedding_VD=embedding,
        unembedding_VD=embedding if arch.tied else _tensor(checkpoint, "lm_head.weight"),
        layers=[_layer(checkpoint, shape, f"model.layers.{i}") for i in range(arch.layers)],
        norm=norm,
        tokenizer=checkpoint.tokenizer(),
        sha256=checkpoint.sha256(),
    )


def _only_rope(arch: Architecture, source: str) -> Rope:
    """The model's RoPE, after a check that its layers are plain Llama ones."""
    plain = (
        arch.activation == "silu"
        and not (arch.qk_norm or arch.post_norms or any(arch.layer_window))
        and arch.embedding_scale == 1.0
        and abs(arch.attention_scale * arch.head_size**0.5 - 1) < 1e-6
        and len(arch.ropes) == 1
        and arch.ropes[0].scaling == "none"
        and arch.ropes[0].dims == arch.head_size
    )
    if not plain:
        raise SourceError(f"{source}: tuning knows plain Llama layers only, not {arch.family}'s")
    return arch.ropes[0]


def _layer(checkpoint: Checkpoint, shape: LayerShape, prefix: str) -> DecoderLayer:
    with torch.device("meta"):  # no time spent on random weights
        layer = DecoderLayer(shape)
    state = {name: _tensor(checkpoint, f"{prefix}.{name}") for name in layer.state_dict()}
    layer.load_state_dict(state, assign=True)
    layer.requires_grad_(False)
    return layer


def _tensor(checkpoint: Checkpoint, name: str) -> Tensor:
    return torch.tensor(checkpoint.floats(name))
