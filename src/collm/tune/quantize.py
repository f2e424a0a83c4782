"""Symmetric blockwise int8 for exit adapters: w = q * scale, blocks of 32 along a row."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 32
Q_MAX = 127


def quantize(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """`weight_NK` f32 to `q_NK` int8 and `scale` f16 `[N, K / 32]`.

    The integers are rounded against the scale as f16 stores it, so nothing is lost twice.
    Raises `ValueError` when K is no multiple of 32 or a weight is too large for an f16 scale.
    """
    rows, columns = weight_NK.shape
    if columns % BLOCK:
        raise ValueError(f"rows of {columns}: expected a multiple of {BLOCK}")
    blocks = weight_NK.view(rows, columns // BLOCK, BLOCK)
    scale = (blocks.abs().amax(dim=-1) / Q_MAX).half()
    if not torch.isfinite(scale).all():
        raise ValueError("a weight is not finite, or too large for an f16 scale")
    # The least f16 keeps all-zero blocks from dividing by zero; their integers are 0 all the same.
    scale = scale.clamp(min=2.0**-24)
    q = (blocks / scale.float().unsqueeze(-1)).round().clamp(-Q_MAX, Q_MAX)
    return q.to(torch.int8).view(rows, columns), scale


def dequantize(q_NK: Tensor, scale: Tensor) -> Tensor:
    """The f32 weights that `quantize` stands for."""
    rows, columns = q_NK.shape
    blocks = q_NK.view(rows, columns // BLOCK, BLOCK).float()
    return (blocks * scale.float().unsqueeze(-1)).view(rows, columns)
