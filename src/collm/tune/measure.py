"""How good an exit is on held-out chat: agreement, calibration, precision and coverage.

Counted at the rows that predict answer tokens, against the full model's argmax over the full
vocabulary. Confidence is the largest of softmax(logits / temperature).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from collm.tune.batches import batches, plan_epoch
from collm.tune.corpus import Chat
from collm.tune.heads import ExitHead
from collm.tune.layer import LayerShape, rope_tables

TEMPERATURES = [round(0.4 + 0.01 * i, 2) for i in range(211)]


@dataclass(frozen=True, kw_only=True)
class Readout:
    """Held-out logits of one exit, `logits_NS`, and the full model's choice `argmax_N`."""

    logits_NS: Tensor
    argmax_N: Tensor
    shortlist_S: Tensor

    @property
    def right_N(self) -> Tensor:
        """Where the exit chooses what the full model chooses, bool `[N]`."""
        return self.shortlist_S[self.logits_NS.argmax(dim=-1)] == self.argmax_N

    @property
    def agreement(self) -> float:
        """Share of rows where exit and full model choose the same token."""
        return float(self.right_N.float().mean())

    @property
    def shortlist_coverage(self) -> float:
        """Share of the full model's choices that the shortlist contains."""
        return float(torch.isin(self.argmax_N, self.shortlist_S).float().mean())

    def at_confidence(self, threshold: float, temperature: float) -> tuple[float, float]:
        """Precision and coverage of the rows whose confidence reaches `threshold`."""
        sure_N = _confidence(self.logits_NS, temperature) >= threshold
        precision = float(self.right_N[sure_N].float().mean()) if sure_N.any() else float("nan")
        return precision, float(sure_N.float().mean())

    def calibrated_temperature(self) -> float:
        """Temperature with the least negative log-likelihood of the full model's choices.

        As Guo et al., arXiv 1706.04599. Choices outside the shortlist are left out.
        """
        known_N = torch.isin(self.argmax_N, self.shortlist_S)
        logits_NS = self.logits_NS[known_N]
        labels_N = torch.searchsorted(self.shortlist_S, self.argmax_N[known_N])

        def loss(temperature: float) -> float:
            parts = zip(logits_NS.split(1024), labels_N.split(1024), strict=True)
            return sum(
                float(F.cross_entropy(x / temperature, y, reduction="sum")) for x, y in parts
            )

        # The loss is convex in 1 / temperature, so a ternary search over the grid finds it.
        low, high = 0, len(TEMPERATURES) - 1
        while high - low > 2:
            third = (high - low) // 3
            if loss(TEMPERATURES[low + third]) <= loss(TEMPERATURES[high - third]):
                high -= third
            else:
                low += third
        return min(TEMPERATURES[low : high + 1], key=loss)


def _confidence(logits_NS: Tensor, temperature: float) -> Tensor:
    return torch.cat([(part / temperature).softmax(-1).amax(-1) for part in logits_NS.split(1024)])


@torch.no_grad()
def read_out(
    head: ExitHead,
    place: int,
    chats: list[Chat],
    shape: LayerShape,
    unembedding_SD: Tensor,
    shortlist_S: Tensor,
) -> Readout:
    """Run one exit over chats. `place` is its cut's index among the stored states."""
    logits, argmax = [], []
    for batch in batches(plan_epoch(chats, 4096, None)):
        rope = rope_tables(shape, torch.arange(batch.rows_BT.shape[1]))
        normed_ND = head(batch.states_CBTD[place], rope, batch.rows_BT)
        logits.append(normed_ND @ unembedding_SD.T)
        argmax.append(batch.argmax_N)
    return Readout(logits_NS=torch.cat(logits), argmax_N=torch.cat(argmax), shortlist_S=shortlist_S)
