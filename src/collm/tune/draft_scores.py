"""Draft paths as deployed: how often they are right, how fast they are, what memory they take.

Needs no PyTorch. Agreement is teacher-forced over given text; time is measured in turns, so that
what else the machine does meets every path alike.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from collm.errors import CollmError
from collm.model.artifact import Artifact
from collm.policy.calibration import Drafting, Rows, simulate_drafting
from collm.runtime.draft_stage import DraftStage
from collm.runtime.stage import Stage
from collm.tune.corpus import Example

I32 = npt.NDArray[np.int32]
Told = Callable[[str, int, int], None]

DRAFTED = 8
"""Tokens of one draft."""
_ROWS = 128
_PROMPT, _STEPS = 128, 24
_MEMORY_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class DraftScore:
    """One path on held-out text."""

    agreement: float
    rows: int
    drafting: Drafting
    """With drafts of `DRAFTED`, sure or not, on greedy text where there is some."""

    @property
    def accepted(self) -> float:
        """Drafted tokens that stand, a round."""
        return self.drafting.tokens_per_round - 1


def model_choices(
    artifact: Artifact, examples: Sequence[Example], *, threads: int, told: Told
) -> list[I32]:
    """The full model's likeliest tokens at the counted rows of every example."""
    stage = Stage(artifact, range(artifact.architecture.layers), threads=threads)
    made = []
    for number, example in enumerate(examples):
        told("the full model reads", number, len(examples))
        session = stage.open()
        session.append_ids(example.ids.tolist())
        hidden = session.hidden_at(stage.layers.stop, example.first - 1)
        parts = [
            stage.logits(hidden[start : start + _ROWS]).argmax(1).astype(np.int32)
            for start in range(0, len(hidden), _ROWS)
        ]
        made.append(np.concatenate(parts))
        session.close()
    return made


def score_draft(
    stage: DraftStage, examples: Sequence[Example], choices: Sequence[I32]
) -> DraftScore:
    """Let a path guess at every counted row."""
    rows = []
    for example, truth in zip(examples, choices, strict=True):
        session = stage.open()
        session.append_ids(example.ids.tolist())
        made = session.exit_rows(stage.cut, example.first - 1)
        rows.append(Rows(confidence=made.confidences, right=made.token_ids == truth))
        session.close()
    greedy = [row for row, example in zip(rows, examples, strict=True) if example.greedy]
    right = Rows.joined(rows).right
    return DraftScore(
        agreement=float(right.mean()),
        rows=len(right),
        drafting=simulate_drafting(greedy or rows, 0.0, DRAFTED),
    )


def decode_seconds(
    stages: Mapping[str, DraftStage], rounds: int, told: Told = lambda what, done, total: None
) -> dict[str, list[float]]:
    """Median seconds a drafted token takes each path, round by round; in a round all take turns."""
    names = list(stages)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):  # the first round warms up
        turn = number % max(1, len(names))
        for at, name in enumerate([*names[turn:], *names[:turn]]):
            told("timing", number * len(names) + at, (rounds + 1) * len(names))
            seconds = _decode(stages[name])
            if number:
                times[name].append(seconds)
    return times


def _decode(stage: DraftStage) -> float:
    context, vocabulary = stage.architecture.context_length, stage.architecture.vocab_size
    steps = min(_STEPS, context // 4)
    session = stage.open()
    random = np.random.default_rng(0)
    prompt = random.integers(0, vocabulary, min(_PROMPT, context - steps - 1))
    session.append_ids(prompt.tolist())
    token = session.exit_at(stage.cut).token_id
    times = []
    for _ in range(steps):
        started = time.perf_counter()
        session.append_ids([token])
        token = session.exit_at(stage.cut).token_id
        times.append(time.perf_counter() - started)
    session.close()
    return statistics.median(times)  # a step that something else held up says nothing


def memory_bytes(artifact: Artifact, name: str) -> int:
    """What a process grows by that loads the path and drafts a little. Raises CollmError."""
    command = [sys.executable, "-m", __name__, str(artifact.folder), name]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_MEMORY_SECONDS, check=False
    )
    try:
        return int(json.loads(done.stdout)["bytes"])
    except (ValueError, KeyError, TypeError):
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise CollmError(f"the process that loads draft path {name} ended with: {said}") from None


def _measure_memory(folder: str, name: str) -> None:
    import psutil

    artifact = Artifact(folder)
    before = psutil.Process().memory_info().rss
    stage = DraftStage(artifact, name)
    _decode(stage)
    print(json.dumps({"bytes": psutil.Process().memory_info().rss - before}))


if __name__ == "__main__":
    _measure_memory(*sys.argv[1:3])
