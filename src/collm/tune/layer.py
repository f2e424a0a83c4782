"""One Llama decoder layer in PyTorch, named as Hugging Face names it.

The frozen backbone, the generator and the exit adapters all run this one class, so that an
adapter is by construction "a layer of the model". RoPE is the half-split convention.

Shape suffixes: B sequences, T new positions, S positions in the cache, D hidden size,
H query heads, G key/value heads, R = H / G, K head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """What fixes a decoder layer's tensors and arithmetic."""

    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    ffn: int
    rope_theta: float
    eps: float


@dataclass(frozen=True, kw_only=True)
class KeyValues:
    """The cache of one layer: `k_BGSK`, `v_BGSK`, written in place.

    `write_BT` are the cache positions of the new rows; `mask_B11S` is added to the scores.
    """

    k_BGSK: Tensor
    v_BGSK: Tensor
    write_BT: Tensor
    mask_B11S: Tensor


class RMSNorm(nn.Module):
    """Root-mean-square norm with a weight (Zhang & Sennrich, arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x_BTD: Tensor) -> Tensor:
        return F.rms_norm(x_BTD, self.weight.shape, self.weight, self.eps)


def rope_tables(shape: LayerShape, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines, f32 `[*positions.shape, K]`, for half-split RoPE (arXiv 2104.09864)."""
    exponent = torch.arange(0, shape.head_size, 2, dtype=torch.float64) / shape.head_size
    angle = positions.double().unsqueeze(-1) * shape.rope_theta**-exponent
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE to `x [..., K]` with tables that broadcast against it."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


class Attention(nn.Module):
    """Grouped-query attention: causal over the call, or one new row against a cache."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.shape = shape
        wide, narrow = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
        self.q_proj = nn.Linear(shape.hidden, wide, bias=False)
        self.k_proj = nn.Linear(shape.hidden, narrow, bias=False)
        self.v_proj = nn.Linear(shape.hidden, narrow, bias=False)
        self.o_proj = nn.Linear(wide, shape.hidden, bias=False)

    def forward(
        self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], cache: KeyValues | None = None
    ) -> Tensor:
        """The heads' outputs side by side, `[B, T, H * K]`: the caller applies `o_proj`."""
        s = self.shape
        batch, rows, _ = x_BTD.shape
        cos, sin = (table.unsqueeze(-3) for table in rope)  # [(B,) 1, T, K]
        q_BHTK = self.q_proj(x_BTD).view(batch, rows, s.heads, s.head_size).transpose(1, 2)
        k_BGTK = self.k_proj(x_BTD).view(batch, rows, s.kv_heads, s.head_size).transpose(1, 2)
        v_BGTK = self.v_proj(x_BTD).view(batch, rows, s.kv_heads, s.head_size).transpose(1, 2)
        q_BHTK, k_BGTK = rotate(q_BHTK, cos, sin), rotate(k_BGTK, cos, sin)
        if cache is None:
            out_BHTK = F.scaled_dot_product_attention(
                q_BHTK, k_BGTK, v_BGTK, is_causal=True, enable_gqa=True
            )
        else:
            assert rows == 1, "with a cache, one new row a call: its mask has no causal part"
            where = torch.arange(batch).unsqueeze(1)
            cache.k_BGSK[where, :, cache.write_BT] = k_BGTK.transpose(1, 2)
            cache.v_BGSK[where, :, cache.write_BT] = v_BGTK.transpose(1, 2)
            used = cache.mask_B11S.shape[-1]
            # The R query heads of a group become R rows against one key/value head: no copies.
            q_BGRK = q_BHTK.reshape(batch, s.kv_heads, -1, s.head_size)
            mask = cache.mask_B11S.expand(batch, s.kv_heads, q_BGRK.shape[2], used)
            out_BGRK = F.scaled_dot_product_attention(
                q_BGRK, cache.k_BGSK[:, :, :used], cache.v_BGSK[:, :, :used], attn_mask=mask
            )
            out_BHTK = out_BGRK.reshape(batch, s.heads, rows, s.head_size)
        return out_BHTK.transpose(1, 2).reshape(batch, rows, -1)


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, arXiv 2002.05202)."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.ffn, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.ffn, bias=False)
        self.down_proj = nn.Linear(shape.ffn, shape.hidden, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))
        return out


class DecoderLayer(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden, shape.eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden, shape.eps)
        self.mlp = FeedForward(shape)

    def forward(
        self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], cache: KeyValues | None = None
    ) -> Tensor:
        """f32 to f32; `rope` from `rope_tables` at the rows' positions, `[T, K]` or `[B, T, K]`."""
        mixed_BTD = self.self_attn(self.input_layernorm(x_BTD), rope, cache)
        return self._finish(x_BTD, mixed_BTD)

    def forward_rows(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], rows_BT: Tensor) -> Tensor:
        """As `forward`, but only the rows chosen by the bool mask `rows_BT`: f32 `[N, D]`.

        All rows serve as keys and values; nothing else is computed for those left out.
        """
        mixed_BTD = self.self_attn(self.input_layernorm(x_BTD), rope)
        return self._finish(x_BTD[rows_BT], mixed_BTD[rows_BT])

    def _finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + self.self_attn.o_proj(mixed)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out
