"""Qwen2 and Qwen2.5: Llama with a bias on queries, keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from collm.model.architecture import Architecture
from collm.model.families.config import dense_decoder, layer_windows

NORM_OFFSET = 0.0


def architecture(config: Mapping[str, Any]) -> Architecture:
    """The biases are found in the checkpoint; the upper layers may have a window."""
    windows = layer_windows(config, int(config.get("num_hidden_layers", 0)))
    return dense_decoder(config, "qwen2", layer_window=windows)
