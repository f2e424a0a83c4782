"""Qwen3 (dense): Llama with an RMS norm over each query and key head before RoPE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from collm.model.architecture import Architecture
from collm.model.families.config import dense_decoder, layer_windows

NORM_OFFSET = 0.0


def architecture(config: Mapping[str, Any]) -> Architecture:
    """`head_dim` is a field of its own here."""
    windows = layer_windows(config, int(config.get("num_hidden_layers", 0)))
    return dense_decoder(config, "qwen3", layer_window=windows, qk_norm=True)
