"""Small GGUF files for the tests, written as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from tests.support import CHAT_TEMPLATE, SPECIAL, tokenizer_json

F32 = npt.NDArray[np.float32]
TypeOf = Callable[[str], str]
"""The GGML type of a matrix, by its GGUF name."""

_ARCHS = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
}


def write_gguf(
    path: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, F32],
    type_of: TypeOf,
    *,
    extra: Callable[[GGUFWriter], None] = lambda writer: None,
    tokenizer: Callable[[GGUFWriter], None] | None = None,
) -> dict[str, F32]:
    """Write; returns the weights, under their Hugging Face names, that the file stands for."""
    model_type = config["model_type"]
    arch = _ARCHS[model_type]
    writer = GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    kv_heads = config["num_key_value_heads"]
    writer.add_name("tiny")
    writer.add_block_count(layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    extra(writer)
    (tokenizer or add_byte_level_tokenizer)(writer)
    names = gguf.get_tensor_name_map(arch, layers)
    meant: dict[str, F32] = {}
    for name, values in weights.items():
        stem, _, suffix = name.rpartition(".")
        stored_name = f"{names.get_name(stem)}.{suffix}"
        stored = values + 1 if model_type == "gemma3_text" and "norm" in name else values
        rows = heads if ".q_proj." in name else kv_heads
        swapped = model_type == "llama" and (".q_proj." in name or ".k_proj." in name)
        if swapped:  # convert_hf_to_gguf.py: LlamaModel.permute
            stored = stored.reshape(rows, 2, -1, *stored.shape[1:]).swapaxes(1, 2)
            stored = stored.reshape(values.shape)
        kind = GGMLQuantizationType[type_of(stored_name) if values.ndim == 2 else "F32"]
        data = gguf.quants.quantize(stored, kind)
        writer.add_tensor(stored_name, data, raw_dtype=kind)
        back = gguf.quants.dequantize(data, kind).reshape(values.shape)
        if swapped:
            back = back.reshape(rows, -1, 2, *values.shape[1:]).swapaxes(1, 2)
            back = back.reshape(values.shape)
        meant[name] = back - 1 if model_type == "gemma3_text" and "norm" in name else back
    _finish(writer)
    return meant


def write_metadata(path: Path, arch: str, add: Callable[[GGUFWriter], None]) -> Path:
    """A GGUF file of metadata and one small tensor."""
    writer = GGUFWriter(path, arch)
    add(writer)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.float32))
    _finish(writer)
    return path


def add_byte_level_tokenizer(writer: GGUFWriter) -> None:
    """The tiny tokenizer of `tests.support`, as SmolLM's is stored."""
    model = json.loads(tokenizer_json())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    control, normal = TokenType.CONTROL, TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([control if token in SPECIAL else normal for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)


SPM_PIECES = (
    "▁",
    "t",
    "h",
    "e",
    "c",
    "l",
    "o",
    "u",
    "d",
    "th",
    "▁th",
    "▁the",
    "▁c",
    "ou",
    "oud",
    "lo",
)


def add_sentencepiece_tokenizer(writer: GGUFWriter) -> None:
    """Control tokens, the 256 bytes, and a few pieces with falling scores."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *SPM_PIECES]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    types += [TokenType.BYTE] * 256 + [TokenType.NORMAL] * len(SPM_PIECES)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [-float(i) for i in range(len(SPM_PIECES))])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def _finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
