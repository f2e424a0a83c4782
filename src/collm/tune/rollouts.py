"""What a wrong token costs later: the full model goes on from it, and from its own token.

For a row and an exit that disagree, the text is cut at the row, the exit's token is put there, and
the full model goes on greedily for K tokens. The drop is

    max(0, mean log p(own token, own K tokens after it) − mean log p(exit's token, K after it)),

both under the full model, in nats per token: 0 where the exit's word was as good. A text has
*rejoined* where the K tokens after both are the same.

Drops of disagreements that were not rolled out are the means over the rolled-out ones with a
similar immediate gap (log p of the likeliest token − log p of the exit's): eight quantile bins.

Not covered: sampled continuations, several wrong tokens in one continuation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from collm.runtime.stage import Stage, StageSession

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

TOKENS = 12
"""K: how far a continuation goes."""
_BINS = 8


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """What came of one wrong token."""

    drop: float
    rejoined: bool


class Continuations:
    """Greedy continuations of one text under the full model, from its end to its beginning.

    A continuation leaves the text behind its row changed, so rows have to descend.
    """

    def __init__(self, stage: Stage, ids: Sequence[int], tokens: int = TOKENS) -> None:
        self._session: StageSession = stage.open()
        self._ids = list(ids)
        self._tokens = tokens
        self._run_to = 0
        limit = stage.architecture.context_length
        self._longest = limit - tokens - 1

    def at(self, row: int, own: int, wrong: Sequence[int]) -> list[Rollout] | None:
        """Every token of `wrong` in the place of `own`, the full model's, after position `row`.

        None where the context has no room left.
        """
        if row >= self._longest:
            return None
        kept = row + 1
        if not self._run_to:
            self._session.append_ids(self._ids[:kept])
        else:
            assert kept <= self._run_to
            # The state of the row itself is gone once later ones have been asked for.
            self._session.crop(row)
            self._session.append_ids([self._ids[row]])
        self._run_to = kept
        first = self._logprobs(kept - 1)
        own_tail, own_sum = self._go_on(kept, own)
        made = []
        for token in wrong:
            self._session.crop(kept)
            tail, total = self._go_on(kept, token)
            lost = (float(first[own]) + own_sum) - (float(first[token]) + total)
            made.append(
                Rollout(drop=max(0.0, lost / (self._tokens + 1)), rejoined=tail == own_tail)
            )
        self._session.crop(kept)
        return made

    def close(self) -> None:
        """Free the caches."""
        self._session.close()

    def _go_on(self, at: int, token: int) -> tuple[list[int], float]:
        """The tokens after `token`, put at position `at`, and the sum of their log p."""
        tail: list[int] = []
        total = 0.0
        for step in range(self._tokens):
            self._session.append_ids([token])
            logprobs = self._logprobs(at + step)
            token = int(logprobs.argmax())
            tail.append(token)
            total += float(logprobs[token])
        return tail, total

    def _logprobs(self, position: int) -> F32:
        """The full model's log-probabilities for the token after `position`, the last one."""
        self._session.run(self._session.stage.layers.stop)
        logits: F32 = self._session.logits(position)[-1]
        peak = logits.max()
        logprobs: F32 = logits - (peak + np.log(np.exp(logits - peak).sum()))
        return logprobs


def seconds_each(stage: Stage, ids: Sequence[int], tokens: int = TOKENS) -> float:
    """What rolling out one wrong token takes, the own continuation included; measured once."""
    text = Continuations(stage, ids, tokens)
    row = min(len(ids), 64) - 1
    text.at(row, int(ids[0]), [])  # fills the caches
    started = time.perf_counter()
    text.at(row, int(ids[0]), [int(ids[-1])])
    took = time.perf_counter() - started
    text.close()
    return took


def sample_disagreements(wrong_RE: Bools, count: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """At most `count` of the (row, exit) pairs that disagree, [n, 2], in order of rows."""
    pairs = np.argwhere(wrong_RE)
    if len(pairs) > count:
        chosen = np.random.default_rng(seed).choice(len(pairs), count, replace=False)
        pairs = pairs[np.sort(chosen)]
    return pairs.astype(np.int64)


def fill_drops(gaps_RE: F32, wrong_RE: Bools, rolled_RE: Bools, drops_RE: F32) -> F32:
    """Drops for every disagreement: rolled-out ones as they are, others by their immediate gap.

    Without any roll-out the drop is the gap spread over the K + 1 tokens: as if nothing but the
    wrong token itself were lost.
    """
    filled: F32 = np.where(rolled_RE, drops_RE, 0.0).astype(np.float32)
    missing = wrong_RE & ~rolled_RE
    if not missing.any():
        return filled
    if not rolled_RE.any():
        filled[missing] = gaps_RE[missing] / (TOKENS + 1)
        return filled
    known_gaps, known_drops = gaps_RE[rolled_RE], drops_RE[rolled_RE]
    bins = min(_BINS, max(1, len(known_gaps) // 2))  # none without a member
    edges = np.unique(np.quantile(known_gaps, np.linspace(0, 1, bins + 1)[1:-1]))
    known_bins = np.searchsorted(edges, known_gaps, side="right")
    count = np.bincount(known_bins, minlength=len(edges) + 1)
    total = np.bincount(known_bins, known_drops, minlength=len(edges) + 1)
    means = np.where(count > 0, total / np.maximum(count, 1), known_drops.mean())
    filled[missing] = means[np.searchsorted(edges, gaps_RE[missing], side="right")]
    return filled


Told = Callable[[str, int, int], None]


def roll_out(
    stage: Stage,
    texts: Sequence[tuple[Sequence[int], int]],
    starts: npt.NDArray[np.int64],
    pairs: npt.NDArray[np.int64],
    tokens_RE: I32,
    model_tokens_R: I32,
    progress: Told | None = None,
) -> dict[tuple[int, int], Rollout]:
    """Roll out `pairs` (row, exit). texts: the ids of each, and the position of its first row."""
    found: dict[tuple[int, int], Rollout] = {}
    by_row: dict[int, list[int]] = {}
    for row, exit_index in pairs.tolist():
        by_row.setdefault(row, []).append(exit_index)
    done = 0
    for text, (ids, first) in enumerate(texts):
        rows = sorted((r for r in by_row if starts[text] <= r < starts[text + 1]), reverse=True)
        if not rows:
            continue
        going = Continuations(stage, ids)
        for row in rows:
            # Exits that say the same share a continuation.
            wrong = sorted({int(tokens_RE[row, e]) for e in by_row[row]})
            made = going.at(first + row - int(starts[text]), int(model_tokens_R[row]), wrong)
            for exit_index in by_row[row] if made is not None else []:
                assert made is not None
                found[row, exit_index] = made[wrong.index(int(tokens_RE[row, exit_index]))]
            done += len(by_row[row])
            if progress is not None:
                progress("rolling out", done, len(pairs))
        going.close()
    return found
