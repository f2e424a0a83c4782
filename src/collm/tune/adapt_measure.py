"""What an adaptation gains at the exits and costs at full depth, on held-out text.

Everything is counted at the rows that evaluation counts, dropout off, against the original model:
its full distribution, from the final states that its lessons keep.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from collm.tune.adapt_layers import Student
from collm.tune.backbone import Backbone
from collm.tune.batches import Batch, collate, in_order
from collm.tune.heads import ExitHead, ExitSpec, needed_cuts
from collm.tune.measure import Measured
from collm.tune.shortlist import positions_in
from collm.tune.teacher import Lesson

_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class Look:
    """The adapted model after so many tokens; shares from 0 to 1."""

    tokens: int
    exits: list[Measured]
    """Every exit against the original full model."""
    accepted: list[float]
    """Share of rows where an exit chooses what the *adapted* full model does: what verification
    against it would accept."""
    full_agreement: float
    """Share of rows where adapted and original full model choose the same token."""
    full_divergence: float
    """KL(original || adapted full model) in nats."""
    perplexity: float
    """Of the adapted full model on the text itself."""
    original_perplexity: float

    @property
    def agreement(self) -> list[float]:
        """Every exit's with the original full model."""
        return [measured.agreement for measured in self.exits]

    @property
    def perplexity_ratio(self) -> float:
        """Adapted to original: 1.01 is one percent worse."""
        return self.perplexity / self.original_perplexity

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Look:
        """From what `dataclasses.asdict` made of one."""
        return cls(**{**data, "exits": [Measured(**measured) for measured in data["exits"]]})


def inputs(states: Mapping[int, Tensor], spec: ExitSpec) -> Tensor:
    """What an exit reads, `[B, T, D * (1 + fed states)]`."""
    return torch.cat([states[cut] for cut in (spec.cut, *spec.feed)], dim=-1)


@torch.no_grad()
def look(
    backbone: Backbone,
    student: Student,
    heads: list[ExitHead],
    lessons: list[Lesson],
    cuts: tuple[int, ...],
    shortlist_S: Tensor,
    tokens: int,
) -> Look:
    """Run adapted model and exits over held-out lessons. `cuts` are those of the lessons."""
    position_V = positions_in(shortlist_S, len(backbone.unembedding_VD))
    unembedding_SD = backbone.unembedding_VD[shortlist_S]
    needed = needed_cuts(head.spec for head in heads)
    full = _Full()
    sums = [_Exit() for _ in heads]
    for part in in_order(lessons):
        batch = collate(backbone, part, cuts, answers_only=True)
        ropes = backbone.ropes(batch.rows_BT.shape[1])
        states = student(batch.states[0], ropes, needed)
        final_ND = states[backbone.architecture.layers][batch.rows_BT]
        chosen_N = full.add(backbone, final_ND, batch, _next_tokens(part).to(final_ND.device))
        for head, s in zip(heads, sums, strict=True):
            normed_ND = head(inputs(states, head.spec), ropes, batch.rows_BT)
            s.add(normed_ND @ unembedding_SD.T, batch, position_V, position_V[chosen_N])
    return Look(
        tokens=tokens,
        exits=[s.measured(full.rows) for s in sums],
        accepted=[s.accepted / full.rows for s in sums],
        full_agreement=full.agreed / full.rows,
        full_divergence=full.divergence / full.rows,
        perplexity=math.exp(full.nll / max(1, full.predicted)),
        original_perplexity=math.exp(full.original_nll / max(1, full.predicted)),
    )


def _next_tokens(lessons: list[Lesson]) -> Tensor:
    """The token after every row that counts, −1 where the text ends: int64 `[N]`."""
    parts = [
        torch.cat((torch.from_numpy(e.ids[e.first :]).long(), torch.tensor([-1])))
        for e in (lesson.example for lesson in lessons)
    ]
    return torch.cat(parts)


class _Full:
    """Sums of the full-depth model."""

    def __init__(self) -> None:
        self.rows = self.agreed = self.predicted = 0
        self.divergence = self.nll = self.original_nll = 0.0

    def add(self, backbone: Backbone, final_ND: Tensor, batch: Batch, next_N: Tensor) -> Tensor:
        """Take in the rows of a batch; returns the adapted model's choices `[N]`."""
        chosen = []
        for adapted_ND, original_ND, after_N in zip(
            final_ND.split(_ROWS), batch.final_ND.split(_ROWS), next_N.split(_ROWS), strict=True
        ):
            adapted_NV = backbone.logits(adapted_ND).log_softmax(dim=-1)
            original_NV = backbone.logits(original_ND).log_softmax(dim=-1)
            chosen.append(adapted_NV.argmax(dim=-1))
            known_N1, after_N1 = (after_N >= 0).unsqueeze(1), after_N.clamp(min=0).unsqueeze(1)
            self.nll -= float(adapted_NV.gather(1, after_N1)[known_N1].double().sum())
            self.original_nll -= float(original_NV.gather(1, after_N1)[known_N1].double().sum())
            self.predicted += int(known_N1.sum())
            gap_NV = (original_NV - adapted_NV).mul_(original_NV.exp())
            self.divergence += float(gap_NV.sum())
        chosen_N = torch.cat(chosen)
        self.agreed += int((chosen_N == batch.top_NK[:, 0]).sum())
        self.rows += len(chosen_N)
        return chosen_N


class _Exit:
    """Sums of one exit, as `collm.tune.measure.measure` defines them."""

    def __init__(self) -> None:
        self.right = self.known = self.accepted = 0
        self.divergence = 0.0

    def add(self, logits_NS: Tensor, batch: Batch, position_V: Tensor, adapted_N: Tensor) -> None:
        """Take in a batch. `adapted_N`: the adapted model's choices, as shortlist places."""
        log_probs_NS = logits_NS.log_softmax(dim=-1)
        at_NK = position_V[batch.top_NK]
        best_N = log_probs_NS.argmax(dim=-1)
        self.right += int((best_N == at_NK[:, 0]).sum())
        self.accepted += int((best_N == adapted_N).sum())
        self.known += int((at_NK[:, 0] >= 0).sum())
        exit_NK = log_probs_NS.gather(1, at_NK.clamp(min=0))
        gap_NK = batch.log_probs_NK.exp() * (batch.log_probs_NK - exit_NK)
        self.divergence += float(gap_NK[at_NK >= 0].sum())

    def measured(self, rows: int) -> Measured:
        return Measured(
            agreement=self.right / rows,
            divergence=self.divergence / rows,
            shortlist_coverage=self.known / rows,
            rows=rows,
        )
