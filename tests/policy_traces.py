"""Traces for tests of exit policies, made up: two exits whose words mean something together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from collm.tune.trace_file import COHERENCE, StepCosts, Traces


def made_up_traces(
    texts: int = 40, rows: int = 50, *, seed: int = 0, cuts: Sequence[int] = (1, 2)
) -> Traces:
    """The deeper exit is right where the shallower agrees, whatever its confidence says.

    Confidences are noise; agreement of both tells right from wrong in 95 % of the rows.
    """
    random = np.random.default_rng(seed)
    total, exits = texts * rows, len(cuts)
    model = random.integers(3, 300, total).astype(np.int32)
    right = random.random(total) < 0.6
    agree = right ^ (random.random(total) < 0.05)
    last = np.where(right, model, model + 1).astype(np.int32)
    earlier = np.where(agree, last, last + 7).astype(np.int32)
    tokens = np.column_stack([*([earlier] * (exits - 1)), last])
    confidence = random.uniform(0.3, 0.95, (total, exits)).astype(np.float32)
    coherence = np.zeros((total, len(COHERENCE)), np.float32)
    coherence[:, COHERENCE.index("tokens")] = np.tile(np.arange(rows), texts)
    coherence[:, COHERENCE.index("window_confidence")] = 1
    wrong = tokens != model[:, None]
    return Traces(
        fingerprint="f" * 64,
        exits_digest="d" * 64,
        cuts=tuple(cuts),
        costs=StepCosts(
            layers=tuple(0.001 * cut for cut in cuts), exits=(0.001,) * exits, cloud=0.01
        ),
        corpus="made up",
        part="held-out",
        rolled_tokens=12,
        domains=("chat",) * texts,
        starts=np.arange(texts + 1, dtype=np.int64) * rows,
        tokens=tokens,
        confidences=confidence,
        runner_up_confidences=(confidence * 0.3).astype(np.float32),
        entropies=random.uniform(0, 4, (total, exits)).astype(np.float32),
        model_tokens=model,
        model_logprobs=np.full(total, -0.5, np.float32),
        exit_logprobs=np.where(wrong, -3, -0.5).astype(np.float32),
        coherence=coherence,
        drops=np.where(wrong, 0.2, 0).astype(np.float32),
        rolled=wrong,
        rejoined=np.zeros_like(wrong),
    )
