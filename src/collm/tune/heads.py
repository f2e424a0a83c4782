"""Exit heads: one decoder layer and a norm, read out by the model's own frozen unembedding.

Shape suffixes as in `collm.tune.layer`; N are chosen rows, S the tokens of the shortlist.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from collm.errors import UsageError
from collm.tune.backbone import Backbone
from collm.tune.layer import DecoderLayer, LayerShape, RMSNorm

SHORTLIST_MULTIPLE = 32


class ExitHead(nn.Module):
    """Adapter and norm of one exit. Starts as a copy of the model's last layer and final norm."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.layers = nn.ModuleList([DecoderLayer(shape)])
        self.norm = RMSNorm(shape.hidden, shape.eps)

    def forward(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], rows_BT: Tensor) -> Tensor:
        """Normed states, f32 `[N, D]`, at the rows of `rows_BT`; times the unembedding: logits."""
        (layer,) = self.layers
        assert isinstance(layer, DecoderLayer)
        normed: Tensor = self.norm(layer.forward_rows(x_BTD, rope, rows_BT))
        return normed


def fresh_heads(backbone: Backbone, cuts: tuple[int, ...]) -> dict[int, ExitHead]:
    """One trainable exit head a cut, each started from the model's own end."""
    heads = {}
    for cut in cuts:
        head = ExitHead(backbone.shape)
        head.layers[0].load_state_dict(copy.deepcopy(backbone.layers[-1].state_dict()))
        head.norm.load_state_dict(copy.deepcopy(backbone.norm.state_dict()))
        heads[cut] = head
    return heads


def likeliest_tokens(mass_V: NDArray[np.float64], size: int, special_ids: list[int]) -> Tensor:
    """The `size` likeliest tokens and every special one among them, ascending, i64 `[S]`.

    Raises `UsageError` unless `size` is a multiple of 32 that holds the special tokens.
    """
    if size % SHORTLIST_MULTIPLE or not len(special_ids) <= size <= len(mass_V):
        raise UsageError(
            f"shortlist of {size}: expected a multiple of {SHORTLIST_MULTIPLE} "
            f"from {len(special_ids)} to {len(mass_V)}"
        )
    ranked = mass_V.copy()
    ranked[special_ids] = np.inf
    chosen = np.sort(np.argsort(-ranked, kind="stable")[:size])
    return torch.from_numpy(chosen)
