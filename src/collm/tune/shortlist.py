"""The tokens that exits can choose from: fewer rows of the unembedding to multiply."""

from __future__ import annotations

import torch
from torch import Tensor

from collm.errors import UsageError
from collm.tune.teacher import Lesson

SHORTLIST_MULTIPLE = 32


def choose_shortlist(
    lessons: list[Lesson], size: int, special_ids: list[int], vocabulary: int
) -> Tensor:
    """The `size` tokens with the most probability in the lessons, special ones included; int64.

    Raises UsageError where it cannot hold the special tokens.
    """
    size = min(size, vocabulary - vocabulary % SHORTLIST_MULTIPLE)
    if size < len(special_ids):
        raise UsageError(
            f"shortlist of {size}: the model has {len(special_ids)} special tokens to hold"
        )
    mass_V = torch.zeros(vocabulary, dtype=torch.float64)
    for lesson in lessons:
        probs = lesson.log_probs_TK.double().exp().flatten().cpu()
        mass_V.index_add_(0, lesson.top_TK.long().flatten().cpu(), probs)
    mass_V[special_ids] = torch.inf
    return mass_V.argsort(descending=True, stable=True)[:size].sort().values


def positions_in(shortlist_S: Tensor, vocabulary: int) -> Tensor:
    """Where each token of the vocabulary is in the shortlist, −1 for nowhere: int64 `[V]`."""
    position_V = torch.full((vocabulary,), -1, dtype=torch.long, device=shortlist_S.device)
    position_V[shortlist_S] = torch.arange(len(shortlist_S), device=shortlist_S.device)
    return position_V
