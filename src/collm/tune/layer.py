"""One decoder layer in PyTorch, of any family that `collm build` takes, named as Hugging Face
names it.

The frozen backbone, the generator and the exit adapters all run this one class, so that an
adapter is by construction "a layer of the model", and computes what `model.layers` writes as
ONNX: norms hold the weight as it is applied, RoPE is the half-split convention, a window of W
lets a position see itself and the W - 1 before it.

Shape suffixes: B sequences, T new positions, N chosen rows, S positions in the cache, D hidden
size, H query heads, G key/value heads, R = H / G, K head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from collm.model.architecture import Architecture

Ropes = tuple[tuple[Tensor, Tensor], ...]
"""Cosines and sines at the rows' positions, per RoPE of the architecture: f32 [T, dims] or
[B, T, dims]. `Backbone.ropes` makes them."""


@dataclass(frozen=True, kw_only=True)
class KeyValues:
    """The cache of one layer: `k_BGSK` and `v_BGSK`, written in place at `position`.

    The buffers may hold more sequences and positions than are in use.
    """

    k_BGSK: Tensor
    v_BGSK: Tensor
    position: int


class RMSNorm(nn.Module):
    """Root-mean-square norm with a weight (Zhang & Sennrich, arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x_BTD: Tensor) -> Tensor:
        # Under autocast the heads' norms are given bf16: norms are computed as their weight is.
        x_BTD = x_BTD.to(self.weight.dtype)
        return F.rms_norm(x_BTD, self.weight.shape, self.weight, self.eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE to the first `dims` of `x [..., K]`; tables [..., dims] broadcast against it."""
    dims = cos.shape[-1]
    turned, rest = x[..., :dims], x[..., dims:]
    low, high = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-high, low), dim=-1) * sin
    return (torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention: causal over the call, or one new row a sequence and its cache."""

    def __init__(self, arch: Architecture, layer: int, window: int, bias: bool) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_size = arch.heads, arch.kv_heads, arch.head_size
        self.scale = arch.attention_scale
        self.rope = arch.layer_rope[layer]
        self.window = window
        wide, narrow = arch.heads * arch.head_size, arch.kv_heads * arch.head_size
        self.q_proj = nn.Linear(arch.hidden_size, wide, bias=bias)
        self.k_proj = nn.Linear(arch.hidden_size, narrow, bias=bias)
        self.v_proj = nn.Linear(arch.hidden_size, narrow, bias=bias)
        self.o_proj = nn.Linear(wide, arch.hidden_size, bias=False)
        if arch.qk_norm:
            self.q_norm = RMSNorm(arch.head_size, arch.norm_epsilon)
            self.k_norm = RMSNorm(arch.head_size, arch.norm_epsilon)
        self.qk_norm = arch.qk_norm

    def forward(self, x_BTD: Tensor, ropes: Ropes, cache: KeyValues | None = None) -> Tensor:
        """The heads' outputs side by side, `[B, T, H * K]`: the caller applies `o_proj`."""
        batch, rows, _ = x_BTD.shape
        q_BTHK = self.q_proj(x_BTD).view(batch, rows, self.heads, self.head_size)
        k_BTGK = self.k_proj(x_BTD).view(batch, rows, self.kv_heads, self.head_size)
        v_BTGK = self.v_proj(x_BTD).view(batch, rows, self.kv_heads, self.head_size)
        if self.qk_norm:
            q_BTHK, k_BTGK = self.q_norm(q_BTHK), self.k_norm(k_BTGK)
        cos, sin = (table.unsqueeze(-2) for table in ropes[self.rope])  # [(B,) T, 1, dims]
        q_BTHK = rotate(q_BTHK, cos, sin).to(v_BTGK.dtype)
        k_BTGK = rotate(k_BTGK, cos, sin).to(v_BTGK.dtype)
        if cache is None:
            return self._causal(q_BTHK, k_BTGK, v_BTGK).reshape(batch, rows, -1)
        assert rows == 1, "with a cache, one new row a call: attention has no causal part"
        return self._cached(q_BTHK[:, 0], k_BTGK[:, 0], v_BTGK[:, 0], cache).view(batch, 1, -1)

    def _causal(self, q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor) -> Tensor:
        rows = q_BTHK.shape[1]
        mask_TT = None
        if 0 < self.window < rows:
            at = torch.arange(rows, device=q_BTHK.device)
            behind_TT = at.unsqueeze(1) - at
            mask_TT = (behind_TT >= 0) & (behind_TT < self.window)
        out_BHTK = F.scaled_dot_product_attention(
            q_BTHK.transpose(1, 2),
            k_BTGK.transpose(1, 2),
            v_BTGK.transpose(1, 2),
            attn_mask=mask_TT,
            is_causal=mask_TT is None,
            scale=self.scale,
            enable_gqa=self.heads != self.kv_heads,
        )
        return out_BHTK.transpose(1, 2)

    def _cached(self, q_BHK: Tensor, k_BGK: Tensor, v_BGK: Tensor, cache: KeyValues) -> Tensor:
        batch, end = len(q_BHK), cache.position + 1
        cache.k_BGSK[:batch, :, cache.position] = k_BGK
        cache.v_BGSK[:batch, :, cache.position] = v_BGK
        first = max(0, end - self.window) if self.window else 0
        # The R query heads of a group become R rows against one key/value head: no copies.
        q_BGRK = q_BHK.view(batch, self.kv_heads, -1, self.head_size)
        return F.scaled_dot_product_attention(
            q_BGRK.to(cache.k_BGSK.dtype),
            cache.k_BGSK[:batch, :, first:end],
            cache.v_BGSK[:batch, :, first:end],
            scale=self.scale,
        )


class FeedForward(nn.Module):
    """Gated feed-forward part: SwiGLU or GeGLU (Shazeer, arXiv 2002.05202)."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(arch.hidden_size, arch.ffn_size, bias=False)
        self.up_proj = nn.Linear(arch.hidden_size, arch.ffn_size, bias=False)
        self.down_proj = nn.Linear(arch.ffn_size, arch.hidden_size, bias=False)
        self.is_gelu = arch.activation == "gelu_tanh"

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate = self.gate_proj(x_BTD)
        gate = F.gelu(gate, approximate="tanh") if self.is_gelu else F.silu(gate)
        out: Tensor = self.down_proj(gate * self.up_proj(x_BTD))
        return out


class DecoderLayer(nn.Module):
    """Layer `layer` of a model of this architecture: RoPE, norms and activation are its.

    window: positions that a row sees, itself included, in place of the layer's own; 0 is the
    whole context. bias: whether queries, keys and values have one; None is as the family has it.
    """

    def __init__(
        self, arch: Architecture, layer: int, window: int | None = None, *, bias: bool | None = None
    ) -> None:
        super().__init__()
        window = arch.layer_window[layer] if window is None else window
        bias = arch.family == "qwen2" if bias is None else bias
        d, eps = arch.hidden_size, arch.norm_epsilon
        self.input_layernorm = RMSNorm(d, eps)
        self.self_attn = Attention(arch, layer, window, bias)
        self.post_attention_layernorm = RMSNorm(d, eps)
        self.mlp = FeedForward(arch)
        self.post_norms = arch.post_norms
        if arch.post_norms:
            self.pre_feedforward_layernorm = RMSNorm(d, eps)
            self.post_feedforward_layernorm = RMSNorm(d, eps)

    def forward(self, x_BTD: Tensor, ropes: Ropes, cache: KeyValues | None = None) -> Tensor:
        """f32 `[B, T, D]` to the same; `ropes` at the rows' positions.

        cache: then T is 1 and every sequence is at `cache.position`.
        """
        mixed_BTD = self.self_attn(self.input_layernorm(x_BTD), ropes, cache)
        return self._finish(x_BTD, mixed_BTD)

    def forward_rows(self, x_BTD: Tensor, ropes: Ropes, rows_BT: Tensor) -> Tensor:
        """As `forward`, but only the rows chosen by the bool mask `rows_BT`: f32 `[N, D]`.

        All rows serve as keys and values; nothing else is computed for those left out.
        """
        mixed_BTD = self.self_attn(self.input_layernorm(x_BTD), ropes)
        return self._finish(x_BTD[rows_BT], mixed_BTD[rows_BT])

    def _finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The rest of the layer, row by row: `x` and `mixed` are `[..., D]` and `[..., H * K]`."""
        branch = self.self_attn.o_proj(mixed)
        if not self.post_norms:
            x = x + branch
            out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
            return out
        # Gemma's four norms; its `post_attention_layernorm` is another one than Llama's.
        x = x + self.post_attention_layernorm(branch)
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
