"""Hugging Face folders: config.json, safetensors (one or several files), tokenizer.json.

Not covered: checkpoints that are quantised themselves (GPTQ, AWQ, bitsandbytes); pickles are
never opened.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer as HubTokenizer

from collm.errors import SourceError
from collm.limits import DEFAULT_LIMITS
from collm.model.families import architecture_of, family
from collm.model.files import sha256_of
from collm.model.quantize import Quantised
from collm.model.tokenizer import TokenizerFiles

F32 = npt.NDArray[np.float32]


class SafetensorsCheckpoint:
    """A folder as a Checkpoint."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.config = read_json(folder / "config.json")
        text = self.config.get("text_config")
        if isinstance(text, dict) and str(text.get("model_type", "")) == "gemma3_text":
            self.config = text
        model_type = str(self.config.get("model_type"))
        where = str(folder / "config.json")
        self.norm_offset = family(model_type, where).NORM_OFFSET
        self.architecture = architecture_of(model_type, self.config, where)
        self.name = folder.resolve().name
        self._files = sorted(folder.glob("*.safetensors"))
        if not self._files:
            raise SourceError(f"{folder}: no *.safetensors files beside config.json")
        self._readers: dict[str, Any] = {}
        for file in self._files:
            try:
                reader = safe_open(file, framework="np")
            except (SafetensorError, OSError, ValueError) as error:
                raise SourceError(f"{file}: truncated or damaged safetensors: {error}") from None
            self._readers |= {_plain(name): (reader, name) for name in reader.keys()}  # noqa: SIM118

    def has(self, name: str) -> bool:
        return name in self._readers

    def floats(self, name: str) -> F32:
        if name not in self._readers:
            raise SourceError(f"{self._folder}: the checkpoint has no tensor {name}")
        reader, stored = self._readers[name]
        try:
            values = np.asarray(reader.get_tensor(stored))
        except (SafetensorError, TypeError) as error:
            raise SourceError(f"{self._folder}: {name} cannot be read: {error}") from None
        return values.astype(np.float32)

    def quantised(self, name: str) -> Quantised | None:
        return None

    def is_quantised(self, name: str) -> bool:
        return False

    def tokenizer(self) -> TokenizerFiles:
        path = self._folder / "tokenizer.json"
        if not path.is_file():
            raise SourceError(f"{self._folder}: no tokenizer.json; save it with the fast tokenizer")
        settings = _optional_json(self._folder / "tokenizer_config.json")
        generation = _optional_json(self._folder / "generation_config.json")
        try:
            tokenizer_json = path.read_text(encoding="utf-8")
            hub = HubTokenizer.from_str(tokenizer_json)
        except Exception as error:  # noqa: BLE001 - the Rust side raises bare Exceptions
            raise SourceError(f"{path}: cannot be read: {error}") from None
        bos, eos = _token(settings.get("bos_token")), _token(settings.get("eos_token"))
        ends = generation.get("eos_token_id", self.config.get("eos_token_id"))
        end_ids = [ends] if isinstance(ends, int) else list(ends or [])
        if (eos_id := hub.token_to_id(eos)) is not None:
            end_ids.append(eos_id)
        template = settings.get("chat_template")
        separate = self._folder / "chat_template.jinja"
        if template is None and separate.is_file():
            template = separate.read_text(encoding="utf-8")
        bos_id = hub.token_to_id(bos)
        adds_bos = settings.get("add_bos_token")
        if adds_bos is None:  # then the tokenizer's own post-processor decides
            adds_bos = hub.encode("").ids[:1] == [bos_id]
        return TokenizerFiles(
            tokenizer_json=tokenizer_json,
            chat_template=template if isinstance(template, str) else None,
            bos_token=bos,
            eos_token=eos,
            bos_id=bos_id if adds_bos else None,
            eos_ids=tuple(dict.fromkeys(int(i) for i in end_ids)),
        )

    def sha256(self) -> str:
        digests = "".join(sha256_of(file) for file in self._files)
        return hashlib.sha256(digests.encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of bounded size. Raises SourceError."""
    try:
        if path.stat().st_size > DEFAULT_LIMITS.max_config_bytes:
            raise SourceError(f"{path}: larger than {DEFAULT_LIMITS.max_config_bytes} bytes")
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file; a model folder needs it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(data, dict):
        raise SourceError(f"{path}: expected a JSON object")
    return data


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _plain(name: str) -> str:
    """Multimodal checkpoints nest the text model."""
    for prefix in ("language_model.", "model.language_model."):
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            return rest if rest.startswith(("model.", "lm_head")) else f"model.{rest}"
    return name


def _token(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""
