"""Batched decoding with one position a slot: the full model's step for the generator.

Every slot has its own position, so slots may start and finish at any time (continuous
batching). The states at the cuts are handed out with the logits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from collm.tune.backbone import Backbone
from collm.tune.layer import KeyValues, rope_tables


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one step yields: `logits_BV` f32 and `states_BCD` f32 (cuts, then the final state)."""

    logits_BV: Tensor
    states_BCD: Tensor


class SlotDecoder:
    """KV caches of `slots` sequences of at most `length` positions, written in place."""

    def __init__(
        self, backbone: Backbone, *, slots: int, length: int, cuts: tuple[int, ...]
    ) -> None:
        self.backbone = backbone
        self.slots = slots
        self.length = length
        self.cuts = cuts
        shape = backbone.shape
        size = (slots, shape.kv_heads, length, shape.head_size)
        self._caches = [(torch.zeros(size), torch.zeros(size)) for _ in backbone.layers]
        self._cos, self._sin = rope_tables(shape, torch.arange(length))

    @torch.no_grad()
    def step(self, ids_B: Tensor, positions_B: Tensor) -> Step:
        """Run one token a slot. What a slot's cache holds beyond its position is never read."""
        write_BT = positions_B.unsqueeze(1)
        rope = (self._cos[write_BT], self._sin[write_BT])
        used = int(positions_B.max()) + 1
        beyond_BS = torch.arange(used) > write_BT
        mask_B11S = torch.zeros(self.slots, used).masked_fill_(beyond_BS, -torch.inf)[:, None, None]
        x_BTD = self.backbone.embedding_VD[ids_B].unsqueeze(1)
        kept = []
        for depth, (layer, (k_BGSK, v_BGSK)) in enumerate(
            zip(self.backbone.layers, self._caches, strict=True), start=1
        ):
            cache = KeyValues(k_BGSK=k_BGSK, v_BGSK=v_BGSK, write_BT=write_BT, mask_B11S=mask_B11S)
            x_BTD = layer(x_BTD, rope, cache)
            if depth in self.cuts:
                kept.append(x_BTD[:, 0])
        kept.append(x_BTD[:, 0])
        logits_BV = self.backbone.norm(x_BTD[:, 0]) @ self.backbone.unembedding_VD.T
        return Step(logits_BV=logits_BV, states_BCD=torch.stack(kept, dim=1))


def sample(logits_BV: Tensor, temperature_B: Tensor, generator: torch.Generator) -> Tensor:
    """One token a row by inversion, i64 `[B]`; temperature 0 is greedy."""
    greedy_B = logits_BV.argmax(dim=-1)
    divisor_B1 = temperature_B.clamp(min=1e-3).unsqueeze(1)
    cumulative_BV = (logits_BV / divisor_B1).softmax(dim=-1).cumsum(dim=-1)
    uniform_B1 = torch.rand(len(logits_BV), 1, generator=generator)
    drawn_B = torch.searchsorted(cumulative_BV, uniform_B1 * cumulative_BV[:, -1:]).squeeze(1)
    drawn_B = drawn_B.clamp(max=logits_BV.shape[1] - 1)
    return torch.where(temperature_B > 0, drawn_B, greedy_B)
