"""Writes a wave of chats: all from the first to the last token together, one position a step.

A chat whose next token is known already (template, given prompt) is fed it; the others draw one.
A finished chat leaves the batch. Randomness is a chat's own, by (seed, its number, position), so
it does not depend on the chats beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from collm.tune.backbone import Backbone
from collm.tune.chat_form import ChatForm
from collm.tune.decode import Decoder

_OPEN, _WHOLE, _DROPPED = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class Seat:
    """A chat to be written."""

    start: Sequence[int]
    """The tokens it begins with."""
    user: int
    """Where the user turn begins."""
    answer: int
    """Where the answer begins; 0: the model writes the user turn first."""
    greedy: bool
    limit: int
    """Most tokens in all."""
    noise: tuple[int, ...]
    """Keys of its random numbers."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """A chat as written: ids i32 `[T]`, and where its answer begins."""

    ids: NDArray[np.int32]
    answer: int


@dataclass(frozen=True, kw_only=True)
class Style:
    """How chats are written."""

    max_user: int
    user_temperature: float
    answer_temperature: float


def write_wave(
    backbone: Backbone,
    form: ChatForm,
    seats: Sequence[Seat],
    style: Style,
    eos_ids: frozenset[int],
    told: Callable[[int], None] = lambda tokens: None,
) -> list[Written | None]:
    """The chats of `seats` in their order; None for one that did not come out as a chat.

    told: called after every step with how many tokens the wave has so far.
    """
    wave = _Wave(backbone, form, seats, style, eos_ids)
    while wave.rows.size and wave.position + 1 < wave.ids_BL.shape[1]:
        wave.step()
        told(wave.tokens)
    return [
        Written(ids=wave.ids_BL[row, : wave.known_B[row]].copy(), answer=int(wave.answer_B[row]))
        if wave.state_B[row] == _WHOLE
        else None
        for row in range(len(seats))
    ]


class _Wave:
    """The chats as arrays: ids `[B, L]`, of which the first `known_B` are there."""

    def __init__(
        self,
        backbone: Backbone,
        form: ChatForm,
        seats: Sequence[Seat],
        style: Style,
        eos_ids: frozenset[int],
    ) -> None:
        self.form, self.style = form, style
        count, length = len(seats), max(seat.limit for seat in seats)
        self.ids_BL = np.zeros((count, length), np.int32)
        for ids_L, seat in zip(self.ids_BL, seats, strict=True):
            ids_L[: len(seat.start)] = seat.start
        self.known_B = np.array([len(seat.start) for seat in seats])
        self.user_B = np.array([seat.user for seat in seats])
        self.answer_B = np.array([seat.answer for seat in seats])
        self.limit_B = np.array([seat.limit for seat in seats])
        self.greedy_B = np.array([seat.greedy for seat in seats])
        self.state_B = np.full(count, _OPEN)
        self.uniform_BL = np.stack(
            [np.random.default_rng(seat.noise).random(length, np.float32) for seat in seats]
        )
        self.is_end_V = np.zeros(backbone.architecture.vocab_size, bool)
        self.is_end_V[[*backbone.special_ids, *eos_ids]] = True
        self.rows = np.arange(count)
        """The chats in the decoder, in its order."""
        self.decoder = Decoder(backbone, slots=count, length=length)
        self.device = backbone.device

    @property
    def position(self) -> int:
        """The position that the next step feeds."""
        return self.decoder.position

    @property
    def tokens(self) -> int:
        """Tokens of chats that are whole or still open, up to the position."""
        good_B = self.state_B != _DROPPED
        return int(np.minimum(self.known_B, self.position + 1)[good_B].sum())

    def step(self) -> None:
        """Feed a token of every chat, and decide the next where it is not known."""
        at = self.position + 1
        fed_B = torch.from_numpy(self.ids_BL[self.rows, at - 1].astype(np.int64))
        logits_BV = self.decoder.step(fed_B.to(self.device))
        drawing = np.flatnonzero((self.known_B[self.rows] == at) & (self.state_B[self.rows] == 0))
        if drawing.size:
            rows = self.rows[drawing]
            self._take(rows, self._draw(logits_BV, drawing, rows, at), at)
        going = self.state_B[self.rows] == _OPEN
        if going.sum() <= 0.75 * len(self.rows):
            self.rows = self.rows[going]
            if self.rows.size:
                self.decoder.keep(torch.from_numpy(np.flatnonzero(going)))

    def _draw(
        self, logits_BV: Tensor, drawing: NDArray[np.int64], rows: NDArray[np.int64], at: int
    ) -> NDArray[np.int64]:
        """The next token of `rows`, which are at `drawing` among the logits."""
        answering = self.answer_B[rows] > 0
        sampled = ~(answering & self.greedy_B[rows])
        tokens = np.empty(len(rows), np.int64)
        if not sampled.all():
            best = logits_BV[torch.from_numpy(drawing[~sampled]).to(self.device)].argmax(dim=-1)
            tokens[~sampled] = best.cpu().numpy()
        if sampled.any():
            style = self.style
            heat = np.where(answering[sampled], style.answer_temperature, style.user_temperature)
            chosen_RV = logits_BV[torch.from_numpy(drawing[sampled]).to(self.device)]
            tokens[sampled] = draw(chosen_RV, heat, self.uniform_BL[rows[sampled], at])
        return tokens

    def _take(self, rows: NDArray[np.int64], tokens: NDArray[np.int64], at: int) -> None:
        """Put the drawn tokens at index `at`; some end their chat or user turn."""
        ends, answering = self.is_end_V[tokens], self.answer_B[rows] > 0
        over = rows[answering & ends]
        self.state_B[over] = np.where(at > self.answer_B[over], _WHOLE, _DROPPED)
        goes_on = ~(answering & ends)
        self.ids_BL[rows[goes_on], at] = tokens[goes_on]
        self.known_B[rows[goes_on]] = at + 1
        full = rows[goes_on & answering & (self.limit_B[rows] == at + 1)]
        self.state_B[full] = _WHOLE
        for row, end in zip(rows[~answering], ends[~answering], strict=True):
            self._user_token(int(row), bool(end), at)

    def _user_token(self, row: int, is_end: bool, at: int) -> None:
        """The user turn has a new last token: does it end there?"""
        user, end = int(self.user_B[row]), self.form.end
        start = at + 1 - len(end)
        if start >= user and tuple(self.ids_BL[row, start : at + 1].tolist()) == end:
            if start == user:
                self.state_B[row] = _DROPPED  # it says nothing
            else:
                self._answer_next(row, start)
        elif is_end:
            self.state_B[row] = _DROPPED
        elif at + 1 - user >= self.style.max_user:
            self._answer_next(row, at + 1)

    def _answer_next(self, row: int, turn_end: int) -> None:
        answer = turn_end + len(self.form.suffix)
        self.ids_BL[row, turn_end:answer] = self.form.suffix
        self.known_B[row] = self.answer_B[row] = answer


def draw(
    logits_RV: Tensor, temperature_R: NDArray[np.float64], uniform_R: NDArray[np.float32]
) -> NDArray[np.int64]:
    """One token a row by inversion of the distribution's sum at `uniform_R`, 0 to 1."""
    device = logits_RV.device
    heat_R1 = torch.from_numpy(temperature_R).to(device, logits_RV.dtype).unsqueeze(1)
    summed_RV = (logits_RV / heat_R1).softmax(dim=-1).cumsum(dim=-1)
    at_R1 = torch.from_numpy(uniform_R).to(device).unsqueeze(1) * summed_RV[:, -1:]
    drawn_R = torch.searchsorted(summed_RV, at_R1, right=True).squeeze(1)
    # Rounding may put `at` on the very sum; the last token with any probability is meant then.
    last_R = torch.searchsorted(summed_RV, summed_RV[:, -1:].contiguous()).squeeze(1)
    tokens: NDArray[np.int64] = torch.minimum(drawn_R, last_R).cpu().numpy()
    return tokens
