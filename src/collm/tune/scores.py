"""The deployed exits beside the full model, over held-out text.

The blocks, exits and head run as users run them: ONNX Runtime, quantised as shipped. Each
example goes through once; every counted row yields the full model's choice, and each exit's
token and confidence. Needs no PyTorch.

Not covered: sampled choices, exits fed by the full model's states.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from collm.errors import PlacementError, SourceError
from collm.model.artifact import Artifact
from collm.policy.calibration import Rows
from collm.runtime.stage import Stage
from collm.tune.corpus import Corpus, Example

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]

Progress = Callable[[str, int, int], None]
"""Told what is going on, rows done, and rows in all."""

DEFAULT_ROWS = 20_000
_LOGIT_ROWS = 128
"""Rows of logits held at once; with a vocabulary of 49,152 a row takes 200 kB."""


@dataclass(frozen=True, kw_only=True)
class ExampleScores:
    """One example's counted rows, all arrays [R]; `log_likelihood` lacks the last row."""

    example: Example
    model_tokens: I32
    """The full model's likeliest token."""
    log_likelihood: F64
    """Of the token that the text has next, natural logarithm, over the full vocabulary."""
    exit_tokens: Mapping[int, I32]
    confidences: Mapping[int, F32]

    def rows(self, cut: int) -> Rows:
        """The exit at `cut` on this example."""
        return Rows(
            confidence=self.confidences[cut], right=self.exit_tokens[cut] == self.model_tokens
        )


@dataclass(frozen=True, kw_only=True)
class ExitScores:
    """What `score_exits` found."""

    cuts: tuple[int, ...]
    examples: tuple[ExampleScores, ...]

    @property
    def row_count(self) -> int:
        """Counted rows of all examples."""
        return sum(len(scored.model_tokens) for scored in self.examples)


def exits_to_score(artifact: Artifact, cuts: Sequence[int] | None) -> tuple[int, ...]:
    """`cuts`, checked, or those of all trained exits. Raises PlacementError."""
    entries = artifact.exits(None if cuts is None else tuple(cuts), artifact.architecture.layers)
    trained = tuple(entry.cut for entry in entries if entry.trained)
    untrained = [str(entry.cut) for entry in entries if not entry.trained]
    if cuts is not None and untrained:
        raise PlacementError(
            f"exit {untrained[0]} of {artifact.folder} is untrained; train it with: collm tune"
        )
    if not trained:
        raise PlacementError(
            f"{artifact.folder}: no trained exits; train some with: collm tune, or put one in "
            "with: collm add-exit"
        )
    return trained


def choose_examples(corpus: Corpus, rows: int) -> list[Example]:
    """Held-out examples with about `rows` counted rows, the same share from every domain.

    Within a domain greedy and other text take turns; which examples come first is decided by
    a hash of the text, so a larger `rows` adds to a smaller one's choice.
    """
    queues: dict[str, deque[Example]] = {}
    for domain in sorted({example.domain for example in corpus.held_out}):
        queues[domain] = deque(_by_turns([e for e in corpus.held_out if e.domain == domain]))
    if not queues:
        raise SourceError(
            f"{corpus.path}: no held-out examples; make a larger corpus with: collm synthesize"
        )
    taken = dict.fromkeys(queues, 0)
    chosen: list[Example] = []
    while queues:
        domain = min(queues, key=lambda name: taken[name])
        example = queues[domain].popleft()
        if chosen and sum(taken.values()) + _counted(example) > rows:
            break
        chosen.append(example)
        taken[domain] += _counted(example)
        if not queues[domain]:
            del queues[domain]
    return chosen


def score_exits(
    artifact: Artifact,
    examples: Sequence[Example],
    cuts: Sequence[int],
    *,
    threads: int = 1,
    progress: Progress | None = None,
) -> ExitScores:
    """Run every example, each within the model's context, through all layers and the exits."""
    stage = Stage(artifact, range(artifact.architecture.layers), exits=cuts, threads=threads)
    total = sum(map(_counted, examples))
    scored: list[ExampleScores] = []
    done = 0
    for example in examples:
        if progress is not None:
            progress("scoring", done, total)
        scored.append(_score(stage, example, cuts))
        done += _counted(example)
    if progress is not None:
        progress("scoring", done, total)
    return ExitScores(cuts=tuple(cuts), examples=tuple(scored))


def perplexity(scored: Iterable[ExampleScores]) -> float | None:
    """exp of the full model's mean negative log-likelihood of the text's own tokens."""
    likelihoods = [one.log_likelihood for one in scored]
    joined = np.concatenate(likelihoods) if likelihoods else np.zeros(0)
    return float(np.exp(-joined.mean())) if len(joined) else None


def _score(stage: Stage, example: Example, cuts: Sequence[int]) -> ExampleScores:
    first = example.first - 1
    session = stage.open()
    session.append_ids(example.ids.tolist())
    exits = {cut: session.exit_rows(cut, first) for cut in cuts}
    hidden_RD = session.hidden_at(stage.layers.stop, first)
    tokens, likelihoods = [], []
    for start in range(0, len(hidden_RD), _LOGIT_ROWS):
        logits_RV = stage.logits(hidden_RD[start : start + _LOGIT_ROWS])
        tokens.append(logits_RV.argmax(axis=1).astype(np.int32))
        # The last position has no token after it.
        followers = example.ids[example.first + start :][: len(logits_RV)]
        likelihoods.append(_log_likelihood(logits_RV[: len(followers)], followers))
    session.close()
    return ExampleScores(
        example=example,
        model_tokens=np.concatenate(tokens),
        log_likelihood=np.concatenate(likelihoods),
        exit_tokens={cut: rows.token_ids for cut, rows in exits.items()},
        confidences={cut: rows.confidences for cut, rows in exits.items()},
    )


def _log_likelihood(logits_RV: F32, token_ids: I32) -> F64:
    peak = logits_RV.max(axis=1)
    sums = np.exp(logits_RV - peak[:, None]).sum(axis=1, dtype=np.float64)
    chosen = logits_RV[np.arange(len(token_ids)), token_ids]
    likelihood: F64 = (chosen - peak).astype(np.float64) - np.log(sums)
    return likelihood


def _counted(example: Example) -> int:
    return len(example.ids) - example.first + 1


def _by_turns(examples: Sequence[Example]) -> list[Example]:
    """Greedy and other examples alternating while both last, each in the order of their hashes."""
    ordered = sorted(examples, key=lambda example: example.digest)
    greedy = [e for e in ordered if e.greedy]
    other = [e for e in ordered if not e.greedy]
    paired = [e for pair in zip(greedy, other, strict=False) for e in pair]
    longer = max(greedy, other, key=len)
    return paired + longer[len(paired) // 2 :]
