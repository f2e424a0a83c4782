"""GGUF files (llama.cpp), memory-mapped and read tensor by tensor.

Tensor names and configuration are brought into Hugging Face's form, so that the rest of the
builder sees one kind of checkpoint. Not covered: split files, mixture of experts.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor
from gguf.quants import dequantize

from collm.errors import SourceError
from collm.model.families import SUPPORTED, architecture_of
from collm.model.files import sha256_of
from collm.model.quantize import Quantised, from_gguf
from collm.model.sources.gguf_tokenizer import gguf_tokenizer
from collm.model.tokenizer import TokenizerFiles

F32 = npt.NDArray[np.float32]

_MODEL_TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}
_FLOAT_TYPES = {"F32", "F16", "BF16"}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA_NAMES = _LAYER_NAMES | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_TOP_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}


class GgufCheckpoint:
    """A GGUF file as a Checkpoint."""

    # llama.cpp's converter stores Gemma's 1 + w already.
    norm_offset = 0.0

    def __init__(self, path: Path, name: str | None = None) -> None:
        self._path = path
        self._fields, self._tensors = _read(path)
        arch = str(self._fields.get("general.architecture"))
        if arch not in _MODEL_TYPES:
            raise SourceError(
                f"{path}: architecture {arch!r} is not supported; "
                f"supported are {', '.join(SUPPORTED)}"
            )
        model_type = _MODEL_TYPES[arch]
        self._names = _GEMMA_NAMES if model_type == "gemma3_text" else _LAYER_NAMES
        self._by_name = {self._hugging_face_name(t.name): t for t in self._tensors}
        self.architecture = architecture_of(model_type, self._config(arch), str(path))
        # llama.cpp stores these projections' rows pairwise interleaved; ours are half-split.
        self._interleaved = arch == "llama"
        self.name = name or str(self._fields.get("general.name") or path.stem)

    def has(self, name: str) -> bool:
        return name in self._by_name

    def is_quantised(self, name: str) -> bool:
        return self._tensor(name).tensor_type.name not in _FLOAT_TYPES

    def floats(self, name: str) -> F32:
        tensor = self._tensor(name)
        try:
            values = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        except NotImplementedError:
            raise SourceError(
                f"{self._path}: {tensor.name} has type {tensor.tensor_type.name}, "
                "which cannot be read; use Q4_0, Q4_1, Q8_0, Q4_K, Q6_K, F16 or F32"
            ) from None
        values = values.reshape(tuple(int(n) for n in reversed(tensor.shape)))
        order = self._row_order(name, values.shape[0])
        return values if order is None else values[order]

    def quantised(self, name: str) -> Quantised | None:
        tensor = self._tensor(name)
        if len(tensor.shape) != 2:
            return None
        rows = np.asarray(tensor.data).view(np.uint8).reshape(int(tensor.shape[1]), -1)
        packed = from_gguf(tensor.tensor_type.name, rows)
        order = self._row_order(name, int(tensor.shape[1]))
        return packed if packed is None or order is None else packed.rows(order)

    def tokenizer(self) -> TokenizerFiles:
        return gguf_tokenizer(self._fields, str(self._path))

    def sha256(self) -> str:
        return sha256_of(self._path)

    def _tensor(self, name: str) -> ReaderTensor:
        try:
            return self._by_name[name]
        except KeyError:
            raise SourceError(f"{self._path}: the file has no tensor for {name}") from None

    def _row_order(self, name: str, rows: int) -> npt.NDArray[np.int64] | None:
        """How to reorder the rows of an interleaved Q or K projection (weight or bias)."""
        match = re.search(r"self_attn\.([qk])_proj", name)
        if not match or not self._interleaved:
            return None
        heads = self.architecture.heads if match[1] == "q" else self.architecture.kv_heads
        half = self.architecture.head_size // 2
        return np.arange(rows).reshape(heads, half, 2).swapaxes(1, 2).reshape(-1)

    def _hugging_face_name(self, name: str) -> str:
        stem, _, suffix = name.rpartition(".")
        if match := re.fullmatch(r"blk\.(\d+)\.(\w+)", stem):
            return f"model.layers.{match[1]}.{self._names.get(match[2], match[2])}.{suffix}"
        return f"{_TOP_NAMES.get(stem, stem)}.{suffix}"

    def _config(self, arch: str) -> dict[str, Any]:
        fields = self._fields

        def get(key: str, default: Any = None) -> Any:
            value = fields.get(f"{arch}.{key}", default)
            if value is None:
                raise SourceError(f"{self._path}: the file's metadata lack {arch}.{key}")
            return value

        heads = int(get("attention.head_count"))
        if heads < 1:
            raise SourceError(
                f"{self._path}: {arch}.attention.head_count is {heads}, expected 1 or more;"
                " the file is damaged, fetch it again"
            )
        hidden = int(get("embedding_length"))
        config: dict[str, Any] = {
            "num_hidden_layers": int(get("block_count")),
            "hidden_size": hidden,
            "num_attention_heads": heads,
            "num_key_value_heads": int(get("attention.head_count_kv", heads)),
            "head_dim": int(get("attention.key_length", hidden // heads)),
            "intermediate_size": int(get("feed_forward_length")),
            "vocab_size": int(self._tensor("model.embed_tokens.weight").shape[1]),
            "max_position_embeddings": int(get("context_length")),
            "rms_norm_eps": float(get("attention.layer_norm_rms_epsilon")),
            "rope_theta": float(get("rope.freq_base", 10_000.0)),
            "tie_word_embeddings": "lm_head.weight" not in self._by_name,
        }
        if (kind := fields.get(f"{arch}.rope.scaling.type", "none")) not in ("none", None):
            config["rope_scaling"] = {"type": kind, "factor": get("rope.scaling.factor", 1.0)}
            config["rope_scaling"]["rope_theta"] = config["rope_theta"]
        if arch == "gemma3":
            config["sliding_window"] = int(get("attention.sliding_window", 512))
            config["hidden_act"] = "gelu_pytorch_tanh"
            # The file does not say; as in llama.cpp, the 27B model (62 layers) differs.
            is_27b = config["num_hidden_layers"] == 62
            config["query_pre_attn_scalar"] = hidden // heads if is_27b else config["head_dim"]
        if "rope_freqs.weight" in self._by_name:
            # llama3 scaling travels as divisors of the frequencies; these are Llama 3.x's.
            factors = self.floats("rope_freqs.weight")
            config["rope_scaling"] = _llama3_scaling(factors, config["rope_theta"])
        return config


def _llama3_scaling(factors: F32, base: float) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "rope_theta": base,
        "factor": float(factors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def _read(path: Path) -> tuple[dict[str, Any], list[ReaderTensor]]:
    """Metadata and tensors, with every tensor checked to lie inside the file."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise SourceError(f"{path}: not a GGUF file and not a folder of safetensors")
    try:
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        tensors = list(reader.tensors)
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError, UnicodeError) as error:
        raise SourceError(
            f"{path}: the GGUF file is truncated or damaged ({error}); fetch it again"
        ) from None
    size = path.stat().st_size
    for tensor in tensors:
        if int(tensor.data_offset) + int(tensor.n_bytes) > size:
            raise SourceError(
                f"{path}: the GGUF file is truncated: {tensor.name} ends beyond byte {size}"
            )
        if tensor.tensor_type not in GGMLQuantizationType:
            raise SourceError(f"{path}: {tensor.name} has an unknown type")
    return fields, tensors
