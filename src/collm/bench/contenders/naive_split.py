"""The split that CE-CoLLM compares with: every step sends the whole prefix again.

The edge keeps its own cache. The cloud's session is cropped to nothing before each step, which
is a fresh one without the cost of opening it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from collm.bench.contender import STRAW_MAN, Contender, Reply, Surroundings
from collm.config import Sampling
from collm.limits import DEFAULT_LIMITS
from collm.runtime.stage import Stage
from collm.session.client import CloudClient


class NaiveSplit:
    """Hidden states of the whole prefix up, in float32, and one token down."""

    def __init__(self, around: Surroundings) -> None:
        self._artifact = around.artifact
        self._tokenizer = around.artifact.tokenizer()
        self._connect = around.connect
        self._stage = Stage(around.artifact, range(around.placement), threads=around.threads)
        self.placement = self.cloud_first_layer = around.placement

    def answer(self, prompt_ids: Sequence[int], tokens: int, own: Sequence[int]) -> Reply:
        """Greedily; the text comes at the end, as nobody reads at this speed."""
        reply, ids, cut = Reply(), list(prompt_ids), self.placement
        started = time.perf_counter()
        session = self._stage.open()
        session.append_ids(ids)
        rows_TD = np.zeros((0, self._artifact.architecture.hidden_size), np.float32)
        with CloudClient(
            self._connect(),
            fingerprint=self._artifact.fingerprint,
            cut=cut,
            vocabulary=self._artifact.architecture.vocab_size,
            limits=DEFAULT_LIMITS,
        ) as client:
            while True:
                begun = time.perf_counter()
                new_TD = session.hidden_at(cut, len(rows_TD))
                rows_TD = np.concatenate([rows_TD, new_TD])
                reply.edge_seconds += time.perf_counter() - begun
                client.append(ids, rows_TD)
                verdict = client.verify((), Sampling())
                reply.arrivals.append(time.perf_counter() - started)
                reply.token_ids.append(verdict.next_token)
                reply.cloud_seconds += verdict.cloud_seconds
                reply.requests += 1
                if len(reply.token_ids) == tokens:
                    break
                ids.append(verdict.next_token)
                session.append_ids([verdict.next_token])
                client.crop(0)
            reply.cloud_rows, reply.cloud_heads = client.rows_run, client.heads_run
            reply.bytes_up, reply.bytes_down = client.bytes_up, client.bytes_down
        session.close()
        reply.text = self._tokenizer.decode(reply.token_ids)
        return reply


CONTENDERS = (
    Contender(
        name="naive split",
        kind=STRAW_MAN,
        note="the whole prefix's hidden states go up again for every token, and are run again",
        mode="naive",
        start=NaiveSplit,
        is_short=True,
    ),
)
