"""Lessons cut into padded batches of like length, in an order fixed by the seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from collm.tune.backbone import Backbone
from collm.tune.corpus import Example
from collm.tune.heads import ExitSpec
from collm.tune.teacher import Lesson


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some lessons padded on the right, where a causal layer never looks."""

    states: dict[int, Tensor]
    """f32 `[B, T, D]` by cut; 0 is the embedding."""
    final_ND: Tensor
    """f32: before the final norm, at the rows that count."""
    rows_BT: Tensor
    """bool: the rows that count."""
    top_NK: Tensor
    """int64: the full model's likeliest tokens there, the likeliest first."""
    log_probs_NK: Tensor
    """f32: their log-probabilities."""

    def inputs(self, spec: ExitSpec) -> Tensor:
        """What an exit reads, `[B, T, D * (1 + fed states)]`."""
        return torch.cat([self.states[cut] for cut in (spec.cut, *spec.feed)], dim=-1)


def collate(
    backbone: Backbone, lessons: list[Lesson], cuts: tuple[int, ...], *, answers_only: bool
) -> Batch:
    """One batch. `cuts` are those of the lessons' states, 0 left out.

    answers_only: count the rows that evaluation counts, not the user turns' as well.
    """
    device = backbone.device
    longest = max(len(lesson.example.ids) for lesson in lessons)
    ids_BT = torch.zeros(len(lessons), longest, dtype=torch.long)
    rows_BT = torch.zeros(len(lessons), longest, dtype=torch.bool)
    states_CBTD = torch.zeros(
        len(cuts) + 1, len(lessons), longest, backbone.architecture.hidden_size, device=device
    )
    top, log_probs = [], []
    for row, lesson in enumerate(lessons):
        example = lesson.example
        length = len(example.ids)
        first = (example.first if answers_only else example.user) - 1
        ids_BT[row, :length] = torch.from_numpy(example.ids)
        rows_BT[row, first:length] = True
        states_CBTD[:, row, :length] = lesson.states_CTD.to(device).float()
        top.append(lesson.top_TK[first:])
        log_probs.append(lesson.log_probs_TK[first:])
    rows_BT = rows_BT.to(device)
    return Batch(
        states={0: backbone.embed(ids_BT.to(device)), **dict(zip(cuts, states_CBTD, strict=False))},
        final_ND=states_CBTD[-1][rows_BT],
        rows_BT=rows_BT,
        top_NK=torch.cat(top).to(device).long(),
        log_probs_NK=torch.cat(log_probs).to(device).float(),
    )


def plan_epoch(examples: list[Example], tokens: int, seed: tuple[int, int]) -> list[list[int]]:
    """Indices of like length together, about `tokens` a batch, padding included; shuffled."""
    generator = np.random.default_rng(seed)
    lengths = np.array([len(example.ids) for example in examples])
    order = np.argsort(lengths + generator.uniform(0, 48, len(lengths)), kind="stable")
    groups: list[list[int]] = []
    current: list[int] = []
    for index in order.tolist():
        if current and (len(current) + 1) * lengths[index] > tokens:
            groups.append(current)
            current = []
        current.append(index)
    groups.append(current)
    return [groups[i] for i in generator.permutation(len(groups))]


def plan(examples: list[Example], tokens: int, batch_tokens: int, seed: int) -> list[list[int]]:
    """Batches, epoch after epoch, until they hold `tokens` tokens."""
    planned: list[list[int]] = []
    count, epoch = 0, 0
    while count < tokens:
        for group in plan_epoch(examples, batch_tokens, (seed, epoch)):
            planned.append(group)
            count += sum(len(examples[index].ids) for index in group)
            if count >= tokens:
                break
        epoch += 1
    return planned


def in_order(lessons: list[Lesson], size: int = 8) -> Iterator[list[Lesson]]:
    """Every lesson once, for measuring."""
    by_length = sorted(lessons, key=lambda lesson: len(lesson.example.ids))
    for start in range(0, len(by_length), size):
        yield by_length[start : start + size]
