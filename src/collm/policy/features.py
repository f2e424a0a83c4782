"""What a learned policy sees: numbers made from an observation, alike in training and at the edge.

For every exit of the policy a slot of its own: whether it was asked, the logit of its confidence,
its margin, entropy and runner-up, and whether it says what the last reading says; 0 where it was
not asked. Which exit is in question, as one of E. How many of those asked agree with it, in a row
and in all. How the text so far hangs together. All are scaled to about −3 … 3 by fixed figures.

`features` is plain Python for one observation, since a few dozen numbers cost less that way than a
dozen numpy calls; `feature_rows` is the same for arrays, and a test holds the two together.

Not covered: the tokens themselves, lookups (they have no exit).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from collm.policy.observation import Observation

F32 = npt.NDArray[np.float32]

PER_EXIT = ("asked", "logit", "margin", "entropy", "runner_up", "agrees")
ABOUT_TEXT = (
    "settled", "mean_logprob", "window_logprob", "window_confidence", "repetition",
    "entropy_trend", "drift", "boundary",
)  # fmt: skip
_LEAST = 1e-4
"""Confidences are taken to be at least this and at most 1 − this."""
_SETTLED = 16.0
"""Tokens after which figures about the text are worth most of what they ever will be."""


def names(cuts: Sequence[int]) -> tuple[str, ...]:
    """Of every feature, in order."""
    slots = [f"{cut}:{name}" for cut in cuts for name in PER_EXIT]
    return (*slots, *(f"is:{cut}" for cut in cuts), "in_a_row", "agreeing", *ABOUT_TEXT, "bias")


def features(seen: Observation, cuts: Sequence[int]) -> list[float] | None:
    """One observation's features; None where the last reading is of no exit of `cuts`."""
    readings = seen.readings
    last = readings[-1]
    if last.cut not in cuts:
        return None
    token_id = last.token_id
    made: list[float] = []
    asked = {reading.cut: reading for reading in readings}
    for cut in cuts:
        reading = asked.get(cut)
        if reading is None:
            made += _ABSENT
            continue
        sure, second = reading.confidence, reading.runner_up_confidence
        bounded = min(max(sure, _LEAST), 1 - _LEAST)
        entropy = reading.entropy
        made += (
            1.0,
            math.log(bounded / (1 - bounded)) / 3,
            sure - second,
            0.0 if entropy != entropy else entropy / 3,
            second * 2,
            1.0 if reading.token_id == token_id else 0.0,
        )
    made += [1.0 if cut == last.cut else 0.0 for cut in cuts]
    in_a_row = agreeing = others = 0
    unbroken = True
    for reading in readings[-2::-1]:
        if reading.cut not in cuts:
            continue
        others += 1
        same = reading.token_id == token_id
        agreeing += same
        unbroken = unbroken and same
        in_a_row += unbroken
    text = seen.coherence
    made += (
        in_a_row / 2,
        agreeing / others if others else 0.0,
        text.tokens / (text.tokens + _SETTLED),
        max(text.mean_logprob, -4.0),
        max(text.window_logprob, -4.0),
        text.window_confidence * 2 - 1,
        text.repetition * 2,
        min(max(text.entropy_trend, -0.5), 0.5) * 4,
        text.drift * 2,
        1 / (1 + text.since_boundary),
        1.0,
    )
    return made


_ABSENT = (0.0,) * len(PER_EXIT)


def feature_rows(
    tokens: npt.NDArray[np.int32],
    confidences: F32,
    runner_ups: F32,
    entropies: F32,
    coherence: F32,
    asked: int,
) -> F32:
    """Features of R positions after `asked` of their E exits: [R, F].

    The first four are [R, E], coherence [R, 8] in the order of `Coherence`'s fields. Computed in
    float64, as `features` is, and rounded once.
    """
    rows, exits = tokens.shape
    slots = np.zeros((rows, exits, len(PER_EXIT)))
    sure = confidences[:, :asked].astype(np.float64)
    second = runner_ups[:, :asked].astype(np.float64)
    bounded = np.clip(sure, _LEAST, 1 - _LEAST)
    same = tokens[:, :asked] == tokens[:, asked - 1 : asked]
    slots[:, :asked, 0] = 1
    slots[:, :asked, 1] = np.log(bounded / (1 - bounded)) / 3
    slots[:, :asked, 2] = sure - second
    slots[:, :asked, 3] = np.nan_to_num(entropies[:, :asked].astype(np.float64) / 3)
    slots[:, :asked, 4] = second * 2
    slots[:, :asked, 5] = same
    which = np.zeros((rows, exits))
    which[:, asked - 1] = 1
    earlier = same[:, : asked - 1][:, ::-1]
    in_a_row = np.cumprod(earlier, axis=1).sum(axis=1)
    agreeing = earlier.mean(axis=1) if asked > 1 else np.zeros(rows)
    told, mean, window, sureness, repetition, trend, drift, boundary = coherence.astype(
        np.float64
    ).T
    about = [
        in_a_row / 2,
        agreeing,
        told / (told + _SETTLED),
        np.maximum(mean, -4),
        np.maximum(window, -4),
        sureness * 2 - 1,
        repetition * 2,
        np.clip(trend, -0.5, 0.5) * 4,
        drift * 2,
        1 / (1 + boundary),
        np.ones(rows),
    ]
    return np.column_stack([slots.reshape(rows, -1), which, *about]).astype(np.float32)
