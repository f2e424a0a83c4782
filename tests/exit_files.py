"""Small exit files for the tests, written as `collm.tune` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from collm.model.architecture import Architecture
from collm.model.quantize import quantise_int8

Tensors = dict[str, npt.NDArray[Any]]


def metadata(cut: int, kind: str, **changes: object) -> dict[str, str]:
    """The metadata of a sound exit file."""
    made = {"format": "collm-exit", "version": "1", "cut": cut, "kind": kind, **changes}
    return {key: str(value) for key, value in made.items()}


def exit_tensors(
    arch: Architecture,
    kind: str,
    *,
    layers: int = 1,
    packed: bool = False,
    shortlist: int = 0,
    mapped: bool = False,
    feed: tuple[int, ...] = (),
    seed: int = 0,
) -> Tensors:
    """Random weights. packed: int8 with float16 block scales; shortlist: how many tokens, 0 all;
    mapped: with a linear map before the adapter; feed: earlier cuts that the map reads too.
    """
    random = np.random.default_rng(seed)
    d, ffn = arch.hidden_size, arch.ffn_size
    tensors: Tensors = {"norm.weight": random.normal(1, 0.2, d).astype(np.float32)}

    def matrix(name: str, rows: int, columns: int) -> None:
        values = random.normal(0, 0.1, (rows, columns)).astype(np.float32)
        if packed:
            made = quantise_int8(values)
            tensors[name] = (made.q.astype(np.int16) - 128).astype(np.int8).reshape(rows, columns)
            tensors[f"{name}.scale"] = made.scale.astype(np.float16)
        else:
            tensors[name] = values

    if kind == "linear" or mapped or feed:
        matrix("linear.weight", d, d * (1 + len(feed)))
    if kind == "mlp":
        matrix("mlp.gate_proj.weight", ffn, d)
        matrix("mlp.up_proj.weight", ffn, d)
        matrix("mlp.down_proj.weight", d, ffn)
        norm = random.normal(1, 0.2, d).astype(np.float32)
        tensors["post_attention_layernorm.weight"] = norm
    for i in range(layers if kind == "layer" else 0):
        p, q_size, kv_size = (
            f"layers.{i}",
            arch.heads * arch.head_size,
            arch.kv_heads * arch.head_size,
        )
        matrix(f"{p}.self_attn.q_proj.weight", q_size, d)
        matrix(f"{p}.self_attn.k_proj.weight", kv_size, d)
        matrix(f"{p}.self_attn.v_proj.weight", kv_size, d)
        matrix(f"{p}.self_attn.o_proj.weight", d, q_size)
        matrix(f"{p}.mlp.gate_proj.weight", ffn, d)
        matrix(f"{p}.mlp.up_proj.weight", ffn, d)
        matrix(f"{p}.mlp.down_proj.weight", d, ffn)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{p}.{norm}.weight"] = random.normal(1, 0.2, d).astype(np.float32)
    if shortlist:
        ids = random.choice(arch.vocab_size, shortlist, replace=False)
        tensors["shortlist"] = np.sort(ids).astype(np.int32)
    return tensors


def exit_file(
    path: Path, arch: Architecture, cut: int, kind: str, *, window: int = 0,
    temperature: float = 1.0, layers: int = 1, feed: tuple[int, ...] = (), **tensors: Any,
) -> Path:  # fmt: skip
    """Write a sound exit file."""
    about = metadata(cut, kind, window=window, temperature=temperature, feed=list(feed),
                     layers=layers if kind == "layer" else 0)  # fmt: skip
    save_file(exit_tensors(arch, kind, layers=layers, feed=feed, **tensors), path, about)
    return path
