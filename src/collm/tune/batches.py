"""Chats in memory, cut into padded batches of like length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from collm.errors import SourceError
from collm.tune.corpus import Chat, read_corpus


@dataclass(frozen=True, kw_only=True)
class Split:
    """Training and held-out chats; a user turn is in one of them only."""

    training: list[Chat]
    held_out: list[Chat]

    @property
    def training_tokens(self) -> int:
        """Tokens in the training chats, prompts included."""
        return sum(len(chat.ids_T) for chat in self.training)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """`states_CBTD` f32 (cuts, then final), `rows_BT` bool: rows that count.

    `argmax_N` i64 is the full model's choice at those rows, in row-major order.
    """

    states_CBTD: Tensor
    rows_BT: Tensor
    argmax_N: Tensor


def load_split(folder: Path) -> Split:
    """Read the corpus. Raises `SourceError` when it has too little to train and to measure on."""
    chats = list(read_corpus(folder))
    split = Split(
        training=[chat for chat in chats if not chat.held_out],
        held_out=[chat for chat in chats if chat.held_out],
    )
    if not split.training or not split.held_out:
        raise SourceError(
            f"{len(chats)} chats in {folder} are too few to train and measure on; "
            "run `python -m collm.tune synthesize` with more --tokens"
        )
    return split


def collate(chats: list[Chat], *, user_rows: bool) -> Batch:
    """Pad to the longest chat, on the right: a causal layer never looks there.

    The rows that predict answer tokens count; with `user_rows` those of the user's turn do too.
    """
    longest = max(len(chat.ids_T) for chat in chats)
    cuts, hidden = chats[0].states_TCD.shape[1:]
    states_CBTD = torch.zeros(cuts, len(chats), longest, hidden)
    rows_BT = torch.zeros(len(chats), longest, dtype=torch.bool)
    argmax = []
    for row, chat in enumerate(chats):
        length = len(chat.ids_T)
        states_CBTD[:, row, :length] = torch.from_numpy(chat.states_TCD).transpose(0, 1).float()
        first = (chat.user if user_rows else chat.answer) - 1
        rows_BT[row, first:length] = True
        argmax.append(chat.argmax_T[first:])
    argmax_N = torch.from_numpy(np.concatenate(argmax)).long()
    return Batch(states_CBTD=states_CBTD, rows_BT=rows_BT, argmax_N=argmax_N)


def plan_epoch(
    chats: list[Chat], tokens: int, generator: np.random.Generator | None
) -> list[list[Chat]]:
    """Group chats of like length, about `tokens` a batch; shuffled when given a generator."""
    noise = generator.uniform(0, 16, len(chats)) if generator else np.zeros(len(chats))
    order = np.argsort([len(chat.ids_T) for chat in chats] + noise, kind="stable")
    groups: list[list[Chat]] = []
    current: list[Chat] = []
    for index in order:
        chat = chats[index]
        if current and (len(current) + 1) * len(chat.ids_T) > tokens:
            groups.append(current)
            current = []
        current.append(chat)
    if current:
        groups.append(current)
    if generator:
        return [groups[i] for i in generator.permutation(len(groups))]
    return groups


def batches(groups: list[list[Chat]], *, user_rows: bool = False) -> Iterator[Batch]:
    """Collate group by group, so that only one batch is in memory as f32."""
    return (collate(group, user_rows=user_rows) for group in groups)
