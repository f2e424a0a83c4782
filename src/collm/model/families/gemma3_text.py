"""Gemma 3 text: scaled embeddings, 1 + w norms before and after each part, QK norm,
five sliding-window layers to one global, each kind with a RoPE base of its own.

Not covered: the vision tower; logit soft-capping (Gemma 3 has none).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from collm.errors import SourceError
from collm.model.architecture import Architecture, Rope
from collm.model.families.config import dense_decoder, layer_windows, rope_from

NORM_OFFSET = 1.0


def architecture(config: Mapping[str, Any]) -> Architecture:
    """RoPE 0 is the global layers', RoPE 1 the sliding ones'."""
    if config.get("final_logit_softcapping") or config.get("attn_logit_softcapping"):
        raise SourceError("config of gemma3_text: logit soft-capping is not supported")
    layers = int(config.get("num_hidden_layers", 0))
    head_size = int(config.get("head_dim") or 256)
    types = config.get("layer_types") or [
        "full_attention" if (i + 1) % int(config.get("sliding_window_pattern", 6)) == 0
        else "sliding_attention"
        for i in range(layers)
    ]  # fmt: skip
    scalar = float(config.get("query_pre_attn_scalar", 256))
    return dense_decoder(
        {**config, "layer_types": types},
        "gemma3_text",
        head_size=head_size,
        ropes=_ropes(config, head_size),
        layer_rope=tuple(int(kind == "sliding_attention") for kind in types),
        layer_window=layer_windows({**config, "layer_types": types}, layers),
        attention_scale=scalar**-0.5,
        activation="gelu_tanh",
        qk_norm=True,
        post_norms=True,
        embedding_scale=float(config["hidden_size"]) ** 0.5,
        tied=bool(config.get("tie_word_embeddings", True)),
    )


def _ropes(config: Mapping[str, Any], head_size: int) -> tuple[Rope, Rope]:
    where = "config of gemma3_text"
    both = config.get("rope_parameters") or {}
    if "full_attention" in both:  # Transformers 5 keeps one set per layer type
        kinds = ("full_attention", "sliding_attention")
        full, local = (rope_from({"rope_parameters": both[k]}, head_size, where) for k in kinds)
        return full, local
    full = rope_from({"rope_theta": 1_000_000.0, **config}, head_size, where)
    return full, Rope(base=float(config.get("rope_local_base_freq", 10_000.0)), dims=head_size)
