"""Model families: one file each, its name is the `model_type` of Hugging Face.

A family file offers `architecture(config)`, from a Hugging Face `config.json` (GGUF metadata
are brought into that form first), and `NORM_OFFSET`, what its norm weights lack of the
factor that is applied (Gemma stores w, applies 1 + w).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol, cast

from collm.errors import SourceError
from collm.limits import DEFAULT_LIMITS
from collm.model.architecture import Architecture

SUPPORTED = ("gemma3_text", "llama", "mistral", "qwen2", "qwen3")


class Family(Protocol):
    """What a family file offers."""

    NORM_OFFSET: float

    def architecture(self, config: Mapping[str, Any]) -> Architecture:
        """Read a `config.json`."""
        ...


def family(model_type: str, where: str) -> Family:
    """The family of a `model_type`; SourceError names the supported ones."""
    if model_type not in SUPPORTED:
        raise SourceError(
            f"{where}: architecture {model_type!r} is not supported; "
            f"supported are {', '.join(SUPPORTED)}"
        )
    return cast(Family, import_module(f"{__name__}.{model_type}"))


def architecture_of(model_type: str, config: Mapping[str, Any], where: str) -> Architecture:
    """Read a `config.json`. Raises SourceError for whatever is missing or makes no model."""
    chosen = family(model_type, where)
    try:
        layers = int(config["num_hidden_layers"])
        if not 0 < layers <= DEFAULT_LIMITS.max_layers:  # before anything is made per layer
            raise ValueError(f"num_hidden_layers {layers}")
        return chosen.architecture(config)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise SourceError(
            f"{where}: missing or malformed field ({error}), as a model of type {model_type}"
        ) from None
