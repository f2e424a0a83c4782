"""Transformers as a peer, on the edge alone: plain, and drafting with `assistant_early_exit`.

It drafts with the model's own norm and head after some layer, so of our exits it can use the
places but not the weights. Not covered: its other ways to draft.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from collm.bench.peers import PeerReply
from collm.bench.reference import Reference

_TRIAL_TOKENS = 12


class TransformersPeer:
    """`early_exit`: the layers it drafts with; None: it does not."""

    def __init__(self, reference: Reference, early_exit: int | None) -> None:
        self._reference = reference
        self._early_exit = early_exit
        self.name = "Transformers"
        self.note = "float32 on the edge's core, no cloud"
        if early_exit is not None:
            self.name += ", early exit"
            self.note += f"; drafts with assistant_early_exit={early_exit}, the best of our cuts"

    def answer(self, prompt: Sequence[int], tokens: int) -> PeerReply:
        """Of `generate`, streamed."""
        cpu = time.process_time()
        ids, arrivals = self._reference.streamed(prompt, tokens, self._early_exit)
        return PeerReply(
            token_ids=ids, arrivals=arrivals, near_cpu=time.process_time() - cpu, far_cpu=0.0
        )


def best_early_exit(reference: Reference, cuts: Sequence[int], prompt: Sequence[int]) -> int | None:
    """The cut with the fastest short answer; None of none."""
    times = {cut: reference.streamed(prompt, _TRIAL_TOKENS, cut)[1][-1] for cut in cuts}
    return min(times, key=lambda cut: times[cut], default=None)
