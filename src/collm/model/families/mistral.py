"""Mistral: Llama with a sliding window on every layer (where the config names one)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from collm.model.architecture import Architecture
from collm.model.families.config import dense_decoder, layer_windows

NORM_OFFSET = 0.0


def architecture(config: Mapping[str, Any]) -> Architecture:
    """Llama's layer; `sliding_window` may be null."""
    windows = layer_windows(config, int(config.get("num_hidden_layers", 0)))
    return dense_decoder(config, "mistral", layer_window=windows)
