"""Wave decoding: many sequences of the full model, all at the same position, one token a step.

Sequences start together and leave when they are done (`keep`), so no step masks anything.
Not covered: sequences that join later; prompts in one call (feed them token by token).
"""

from __future__ import annotations

import torch
from torch import Tensor

from collm.tune.backbone import Backbone
from collm.tune.layer import KeyValues


class Decoder:
    """The model with KV caches of at most `slots` sequences of `length` positions.

    Caches are `[slots, G, length, K]`, two a layer, allocated at once and written in place.
    dtype: theirs; bf16 halves memory and traffic where the steps run under bf16 autocast.
    """

    def __init__(
        self, backbone: Backbone, *, slots: int, length: int, dtype: torch.dtype = torch.float32
    ) -> None:
        arch = backbone.architecture
        size = (slots, arch.kv_heads, length, arch.head_size)
        self.position = 0
        """The position that the next step writes."""
        self.length = length
        self._backbone = backbone
        self._caches = [
            [torch.empty(size, dtype=dtype, device=backbone.device) for _ in "kv"]
            for _ in backbone.layers
        ]
        self._tables = backbone.ropes(length)
        self._slots = torch.arange(slots, device=backbone.device)
        """The cache slot of each sequence, in the caller's order: always a prefix of the slots."""

    @torch.no_grad()
    def step(self, ids_B: Tensor) -> Tensor:
        """One token of every sequence: integers `[B]` to the logits after it, f32 `[B, V]`."""
        assert len(ids_B) == len(self._slots), "one token for each sequence still kept"
        assert self.position < self.length, f"the cache of {self.length} positions is full"
        at = self.position
        ropes = tuple((cos[at : at + 1], sin[at : at + 1]) for cos, sin in self._tables)
        ids_S1 = torch.empty_like(ids_B)
        ids_S1[self._slots] = ids_B
        x_S1D = self._backbone.embed(ids_S1.unsqueeze(1))
        for layer, (k_BGSK, v_BGSK) in zip(self._backbone.layers, self._caches, strict=True):
            x_S1D = layer(x_S1D, ropes, KeyValues(k_BGSK=k_BGSK, v_BGSK=v_BGSK, position=at))
        self.position += 1
        return self._backbone.logits(x_S1D[self._slots, 0])

    @torch.no_grad()
    def keep(self, index_B: Tensor) -> None:
        """Go on with these sequences only, in this order: their indices, or a bool mask `[B]`.

        No index twice. Only sequences in slots beyond the new number are copied, into free ones.
        """
        slots = self._slots[index_B.to(self._slots.device)]
        count = len(slots)
        is_free = torch.ones(count, dtype=torch.bool, device=slots.device)
        is_free[slots[slots < count]] = False
        free, moving = is_free.nonzero()[:, 0], slots[slots >= count]
        for cache in (tensor for pair in self._caches for tensor in pair):
            cache[free, :, : self.position] = cache[moving, :, : self.position]
        slots[slots >= count] = free
        self._slots = slots


def sample(logits_BV: Tensor, temperature_B: Tensor, generator: torch.Generator) -> Tensor:
    """One token a row by inversion, i64 `[B]`; temperature 0 is greedy."""
    greedy_B = logits_BV.argmax(dim=-1)
    divisor_B1 = temperature_B.clamp(min=1e-3).unsqueeze(1)
    cumulative_BV = (logits_BV / divisor_B1).softmax(dim=-1).cumsum(dim=-1)
    uniform_B1 = torch.rand(len(logits_BV), 1, generator=generator, device=logits_BV.device)
    drawn_B = torch.searchsorted(cumulative_BV, uniform_B1 * cumulative_BV[:, -1:]).squeeze(1)
    drawn_B = drawn_B.clamp(max=logits_BV.shape[1] - 1)
    return torch.where(temperature_B > 0, drawn_B, greedy_B)
