"""The loss of an exit: cross-entropy to the full model's distribution over a sample of tokens.

Training needs no full softmax. Of the shortlist only the tokens that the full model finds likely
somewhere in the batch are scored, and a random sample of the others, whose logits are raised by
log(others / sampled): so the sample stands for all of them in the sum (sampled softmax, Jean et
al., arXiv 1412.2007). Less the target's entropy it is KL(full model || exit).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LIKELY = 12
"""So many of a row's likeliest tokens are certain to be scored, at every row of the batch."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the exits of one step aim for; C scored tokens."""

    unembedding_CD: Tensor
    correction_C: Tensor
    target_NC: Tensor
    entropy: float
    """Mean of the target's rows, in nats."""


@torch.no_grad()
def make_target(
    top_NK: Tensor,
    log_probs_NK: Tensor,
    unembedding_SD: Tensor,
    position_V: Tensor,
    *,
    negatives: int,
    generator: torch.Generator,
) -> Target:
    """The target of a batch. `position_V` maps tokens to shortlist places, −1 for none.

    negatives: how many tokens to sample from the rest of the shortlist; 0 scores all of it.
    """
    size = len(unembedding_SD)
    at_NK = position_V[top_NK]
    likely = at_NK[:, :LIKELY]
    scored = torch.zeros(size, dtype=torch.bool, device=at_NK.device)
    scored[likely[likely >= 0]] = True
    certain = int(scored.sum())
    if negatives:
        drawn = torch.randint(0, size, (negatives,), generator=generator).to(at_NK.device)
        drawn = drawn.unique()
        drawn = drawn[~scored[drawn]]
    else:
        drawn = (~scored).nonzero()[:, 0]
    candidates_C = torch.cat((scored.nonzero()[:, 0], drawn))
    correction_C = torch.zeros(len(candidates_C), device=at_NK.device)
    if len(drawn):
        correction_C[certain:] = math.log((size - certain) / len(drawn))
    place_S = torch.full((size,), -1, dtype=torch.long, device=at_NK.device)
    place_S[candidates_C] = torch.arange(len(candidates_C), device=at_NK.device)
    place_NK = torch.where(at_NK >= 0, place_S[at_NK], -1)
    probs_NK = torch.where(place_NK >= 0, log_probs_NK.exp(), 0.0)
    # A row whose likely tokens all lie outside the shortlist teaches nothing: its target is 0.
    probs_NK = probs_NK / probs_NK.sum(dim=-1, keepdim=True).clamp(min=1e-9)
    target_NC = torch.zeros(len(at_NK), len(candidates_C), device=at_NK.device)
    target_NC.scatter_add_(1, place_NK.clamp(min=0), probs_NK)
    return Target(
        unembedding_CD=unembedding_SD[candidates_C],
        correction_C=correction_C,
        target_NC=target_NC,
        entropy=float(torch.special.entr(probs_NK).sum()) / len(at_NK),
    )


@torch.no_grad()
def divergence(normed_ND: Tensor, target: Target) -> tuple[float, Tensor]:
    """Mean KL(target || exit) in nats, and its gradient at `normed_ND`.

    The gradient is softmax minus target, times the unembedding: by hand, since that is frozen.
    """
    rows = len(normed_ND)
    logits_NC = torch.addmm(target.correction_C, normed_ND, target.unembedding_CD.T)
    log_probs_NC = logits_NC.log_softmax(dim=-1)
    loss = -float((target.target_NC * log_probs_NC).sum()) / rows
    mass_N1 = target.target_NC.sum(dim=-1, keepdim=True)
    gradient_ND = (log_probs_NC.exp_().mul_(mass_N1).sub_(target.target_NC)) @ target.unembedding_CD
    return loss - target.entropy, gradient_ND.div_(rows)
