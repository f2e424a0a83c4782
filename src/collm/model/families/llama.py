"""Llama 2 and 3, SmolLM2 and everything else that says `model_type: llama`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from collm.model.architecture import Architecture
from collm.model.families.config import dense_decoder

NORM_OFFSET = 0.0


def architecture(config: Mapping[str, Any]) -> Architecture:
    """Plain pre-norm decoder, grouped-query attention, SwiGLU."""
    return dense_decoder(config, "llama")
