"""One answer beside the full model's: whose words they are, how likely, how alike, what it cost.

Not covered: judging what a text says.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import takewhile
from typing import Any

from collm.errors import UsageError
from collm.model.architecture import Architecture
from collm.policy.sampling import log_probability
from collm.runtime.stage import Stage, StageSession

_ROWS = 128
"""Rows of logits held at once; with a vocabulary of 49,152 a row takes 200 kB."""
_NGRAM = 4


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """An answer under the full model."""

    agreed: int
    """Tokens that are the full model's likeliest, given the prompt and the answer before them."""
    logprob: float
    """Sum of the tokens' log-probabilities at temperature 1, in nats."""


class Judge:
    """The full model reading answers to one prompt: the prompt is run once.

    The two-row rule makes every figure what decoding on this machine would give, bit for bit.
    """

    def __init__(self, whole: Stage, prompt_ids: Sequence[int]) -> None:
        self._stage = whole
        self._prompt = len(prompt_ids)
        self._session: StageSession = whole.open(exact=True)
        self._session.append_ids(prompt_ids)
        self._read: dict[tuple[int, ...], Likelihood] = {}

    def read(self, answer: Sequence[int]) -> Likelihood:
        """Teacher-forced: every token of the answer against the full model's logits there.

        The end-of-text token that an answer may have ended with is not part of it.
        """
        ids = tuple(answer)
        if ids not in self._read:
            self._read[ids] = self._run(ids)
        return self._read[ids]

    def _run(self, ids: tuple[int, ...]) -> Likelihood:
        if not ids:
            return Likelihood(agreed=0, logprob=0.0)
        self._session.append_ids(ids[:-1])
        hidden_AD = self._session.hidden_at(self._stage.layers.stop, self._prompt - 1)
        self._session.crop(self._prompt)
        agreed, logprob = 0, 0.0
        for start in range(0, len(ids), _ROWS):
            some = ids[start : start + _ROWS]
            logits_RV = self._stage.logits(hidden_AD[start : start + _ROWS])
            agreed += sum(int(row.argmax()) == i for row, i in zip(logits_RV, some, strict=True))
            logprob += sum(log_probability(row, i) for row, i in zip(logits_RV, some, strict=True))
        return Likelihood(agreed=agreed, logprob=logprob)

    def close(self) -> None:
        """Free the caches."""
        self._session.close()


def same_prefix(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens two texts begin with in common."""
    return sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=False))
    )


def same_places(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """In how many places two texts have the same token."""
    return sum(a == b for a, b in zip(ours, theirs, strict=False))


def repeated_ngrams(ids: Sequence[int], n: int = _NGRAM) -> tuple[int, int]:
    """n-grams that the text had before, and n-grams in all."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return len(grams) - len(set(grams)), len(grams)


# ------------------------------------------------------------------------------------ ROUGE


def needs_rouge() -> None:
    """Refuse to begin without the package that counts ROUGE."""
    if importlib.util.find_spec("rouge_score") is None:
        raise UsageError("ROUGE-L needs the package rouge-score: pip install 'collm[quality]'")


def rouge_l(text: str, reference: str) -> float | None:
    """ROUGE-L F1 (Lin 2004), words without stemming, as google-research's rouge-score counts.

    That package's words are runs of a-z and 0-9, case ignored; None where the reference has none.
    """
    if text == reference:
        return 1.0
    if not re.search(r"[a-zA-Z0-9]", reference):
        return None
    return float(_scorer().score(reference, text)["rougeL"].fmeasure)


@cache
def _scorer() -> Any:
    module = import_module("rouge_score.rouge_scorer")
    return module.RougeScorer(["rougeL"], use_stemmer=False)


# ------------------------------------------------------------------------------ cloud's work


def cloud_flops(arch: Architecture, first_layer: int, rows: int, heads: int) -> float:
    """Floating-point operations of the cloud's matrix products.

    2 · parameters of layers [first_layer, L) · rows + 2 · d · V · heads, where a layer has
    d · h · (2 · heads_q + 2 · heads_kv) + 3 · d · ffn weights (h: head size), `rows` counts the
    positions that ran through the layers, and `heads` those whose logits were computed (Kaplan
    et al., arXiv 2001.08361, section 2.1). Not counted: attention over the context (4 · heads_q ·
    h for each position looked back at and layer), norms, and rows that only pad a call.
    """
    d = arch.hidden_size
    attention = d * arch.head_size * 2 * (arch.heads + arch.kv_heads)
    layers = (arch.layers - first_layer) * (attention + 3 * d * arch.ffn_size)
    return 2.0 * layers * rows + 2.0 * d * arch.vocab_size * heads
