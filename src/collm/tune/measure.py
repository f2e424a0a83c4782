"""How good an exit in training is on held-out text: agreement, divergence, temperature.

Counted at the rows that evaluation counts, against the full model over its full vocabulary.
`collm eval exits` measures the exits as deployed, and more of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from collm.tune.backbone import Backbone
from collm.tune.batches import collate, in_order
from collm.tune.heads import ExitHead
from collm.tune.shortlist import positions_in
from collm.tune.teacher import Lesson

COLDEST, HOTTEST = 0.4, 2.5
"""Between these a temperature is looked for."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One exit on held-out text; shares from 0 to 1."""

    agreement: float
    """Share of rows where exit and full model choose the same token."""
    divergence: float
    """KL(full model || exit) in nats, the exit over its shortlist: infinite mass outside of it
    is left out, the full model's likeliest 32 tokens counted."""
    shortlist_coverage: float
    """Share of the full model's choices that the shortlist contains."""
    rows: int


@torch.no_grad()
def measure(
    backbone: Backbone,
    head: ExitHead,
    lessons: list[Lesson],
    cuts: tuple[int, ...],
    shortlist_S: Tensor,
) -> Measured:
    """Run one exit over held-out lessons."""
    position_V = positions_in(shortlist_S, len(backbone.unembedding_VD))
    unembedding_SD = backbone.unembedding_VD[shortlist_S]
    right = known = rows = 0
    divergence = 0.0
    for part in in_order(lessons):
        batch = collate(backbone, part, cuts, answers_only=True)
        ropes = backbone.ropes(batch.rows_BT.shape[1])
        normed_ND = head(batch.inputs(head.spec), ropes, batch.rows_BT)
        log_probs_NS = (normed_ND @ unembedding_SD.T).log_softmax(dim=-1)
        at_NK = position_V[batch.top_NK]
        right += int((log_probs_NS.argmax(dim=-1) == at_NK[:, 0]).sum())
        known += int((at_NK[:, 0] >= 0).sum())
        exit_NK = log_probs_NS.gather(1, at_NK.clamp(min=0))
        gap_NK = batch.log_probs_NK.exp() * (batch.log_probs_NK - exit_NK)
        divergence += float(gap_NK[at_NK >= 0].sum())
        rows += len(normed_ND)
    return Measured(
        agreement=right / rows,
        divergence=divergence / rows,
        shortlist_coverage=known / rows,
        rows=rows,
    )


@torch.no_grad()
def fit_temperature(
    backbone: Backbone,
    head: ExitHead,
    lessons: list[Lesson],
    cuts: tuple[int, ...],
    shortlist_S: Tensor,
) -> float:
    """Temperature with the least negative log-likelihood of the full model's choices.

    As Guo et al., arXiv 1706.04599. Choices outside the shortlist are left out.
    """
    position_V = positions_in(shortlist_S, len(backbone.unembedding_VD))
    unembedding_SD = backbone.unembedding_VD[shortlist_S]
    normed, chosen = [], []
    for part in in_order(lessons):
        batch = collate(backbone, part, cuts, answers_only=True)
        ropes = backbone.ropes(batch.rows_BT.shape[1])
        at_N = position_V[batch.top_NK[:, 0]]
        normed.append(head(batch.inputs(head.spec), ropes, batch.rows_BT)[at_N >= 0])
        chosen.append(at_N[at_N >= 0])
    parts = list(zip(torch.cat(normed).split(256), torch.cat(chosen).split(256), strict=True))

    def losses(scales: Tensor) -> Tensor:
        """Of every inverse temperature at once, while a chunk's logits are there."""
        total = torch.zeros_like(scales)
        for normed_ND, chosen_N in parts:
            logits_NS = normed_ND @ unembedding_SD.T
            right_N1 = logits_NS.gather(1, chosen_N.unsqueeze(1))
            for place, scale in enumerate(scales):
                total[place] += ((logits_NS - right_N1) * scale).logsumexp(-1).sum()
        return total

    # The loss is convex in 1 / temperature: narrow the bracket around the least of five.
    low, high = 1 / HOTTEST, 1 / COLDEST
    while high / low > 1.01:
        scales = torch.linspace(low, high, 5, device=unembedding_SD.device)
        best = int(losses(scales).argmin())
        low, high = float(scales[max(0, best - 1)]), float(scales[min(4, best + 1)])
    return round(2 / (low + high), 3)
