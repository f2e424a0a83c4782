"""Thresholds with a promise, chosen on one half of the text and checked on the other.

An exit's threshold is the least one at which the expected share of tokens that it answers
otherwise than the full model is at most alpha = 1 − agreement (conformal risk control, see
`collm.policy.calibration`). What it does not answer is the full model's own, so at least
`agreement` of a text's tokens are expected to be the full model's.

The promise is for text like the corpus's, domains mixed evenly, each token judged after the
text as it stands there. Not covered: text of another kind, and what follows once a wrong answer
has been written (in `threshold` and `standalone` modes the text then goes on from it).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from collm.errors import UsageError
from collm.policy.calibration import (
    Rows,
    at_threshold,
    conformal_threshold,
    examples_needed,
    mean_risk,
)
from collm.tune.corpus import Example
from collm.tune.scores import ExampleScores, ExitScores

_SILENT = 2.0
"""A threshold that no confidence reaches."""


@dataclass(frozen=True, kw_only=True)
class Realised:
    """What a threshold does on some examples.

    `agreement` is the mean over examples of the share of tokens that are the full model's;
    `coverage` and `precision` count every row alike, precision is None where nothing is answered.
    """

    examples: int
    rows: int
    agreement: float
    coverage: float
    precision: float | None


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The threshold of one exit; None: it answers nothing."""

    cut: int
    threshold: float | None
    alpha: float
    calibrated: Realised
    checked: Realised | None


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Every exit's threshold. `cascade` is the agreement of all exits together, where asked."""

    agreement: float
    together: bool
    chosen: tuple[Chosen, ...]
    cascade: float | None

    def record(self, chosen: Chosen, corpus_sha256: str) -> str:
        """How one threshold came about, as JSON for the manifest."""
        about: dict[str, Any] = {
            "agreement": self.agreement,
            "together": len(self.chosen) if self.together else 1,
            "corpus_sha256": corpus_sha256,
        }
        kept = asdict(chosen)
        del kept["cut"], kept["threshold"]
        return json.dumps(about | kept | {"risk": 1 - chosen.calibrated.agreement})


def for_check(example: Example) -> bool:
    """Whether an example is kept for the check: decided by a hash of its user turn or text."""
    return example.digest[-1] % 2 == 1


def choose_thresholds(
    scores: ExitScores, agreement: float, *, together: bool = False, check: bool = True
) -> Thresholds:
    """Choose a threshold for every exit scored.

    together: the exits answer in one cascade and share the allowance evenly. check: keep half of
    the examples to see whether the promise holds. Raises UsageError where examples are too few.
    """
    # Rounded, for 1 − 0.9 is not quite 0.1 and would ask for an example more.
    alpha = round(1 - agreement, 12)
    share = len(scores.cuts) if together else 1
    used = [one for one in scores.examples if not (check and for_check(one.example))]
    kept = [one for one in scores.examples if check and for_check(one.example)]
    if len(used) < (needed := examples_needed(alpha / share)):
        half = f", {len(kept)} more are kept for the check (see --no-check)" if check else ""
        raise UsageError(
            f"{len(used)} held-out examples to calibrate on{half}; an agreement of {agreement:g}"
            + (f" of {share} exits together" if share > 1 else "")
            + f" takes {needed}: give more data, raise --limit, or ask for less"
        )
    chosen = []
    for cut in scores.cuts:
        found = conformal_threshold([one.rows(cut) for one in used], alpha, together=share)
        chosen.append(
            Chosen(
                cut=cut,
                threshold=found.threshold,
                alpha=found.alpha,
                calibrated=_realised([one.rows(cut) for one in used], found.threshold),
                checked=_realised([one.rows(cut) for one in kept], found.threshold)
                if kept
                else None,
            )
        )
    thresholds = {one.cut: one.threshold for one in chosen}
    cascade = _cascade(kept or used, thresholds) if together else None
    return Thresholds(agreement=agreement, together=together, chosen=tuple(chosen), cascade=cascade)


def _realised(texts: Sequence[Rows], threshold: float | None) -> Realised:
    joined = Rows.joined(texts)
    at = at_threshold(joined, _SILENT if threshold is None else threshold)
    return Realised(
        examples=len(texts),
        rows=len(joined),
        agreement=1 - mean_risk(texts, threshold),
        coverage=at.coverage,
        precision=at.precision,
    )


def _cascade(scored: Sequence[ExampleScores], thresholds: Mapping[int, float | None]) -> float:
    """Mean agreement where the shallowest exit that is sure answers, else the full model."""
    losses = []
    for one in scored:
        open_R = np.ones(len(one.model_tokens), dtype=bool)
        wrong = 0
        for cut in sorted(thresholds):
            rows, threshold = one.rows(cut), thresholds[cut]
            sure_R = open_R & (rows.confidence >= (_SILENT if threshold is None else threshold))
            wrong += int((sure_R & ~rows.right).sum())
            open_R &= ~sure_R
        losses.append(wrong / len(open_R))
    return 1 - float(np.mean(losses))
