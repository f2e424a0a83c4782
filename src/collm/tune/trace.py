"""`collm trace`: the deployed exits beside the full model, recorded row by row.

Every text goes once through the blocks, exits and head as users run them (ONNX Runtime, quantised
as shipped). A row's coherence is that of the text before its token, which the tracker of the token
loop reads. The text is given, not written by a policy, so each of its tokens counts with the
confidence that it would most likely have been emitted with: the deepest exit's where that exit says
this very token, and else the full model's probability of it.

A policy that takes a wrong token would see other rows from there on. What that costs is what
`collm.tune.rollouts` adds. Needs no PyTorch.

Not covered: sampled text, lookups, exits fed by the full model's states.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from collm.errors import SourceError
from collm.model.artifact import Artifact
from collm.policy.coherence import CoherenceTracker, sentence_boundary
from collm.runtime.exits import ExitRows
from collm.runtime.stage import Stage
from collm.tune.corpus import Corpus, Example
from collm.tune.rollouts import (
    TOKENS,
    fill_drops,
    roll_out,
    sample_disagreements,
    seconds_each,
)
from collm.tune.scores import Progress, choose_examples
from collm.tune.trace_file import COHERENCE, StepCosts, Traces, exits_digest

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

_LOGIT_ROWS = 128
_TIMED_PROMPT = 128
_TIMED_STEPS = 40


@dataclass(frozen=True, kw_only=True)
class _TextRows:
    """One text's rows; arrays [R, E], [R] and [R, 8]."""

    tokens: I32
    confidences: F32
    runner_up_confidences: F32
    entropies: F32
    model_tokens: I32
    model_logprobs: F32
    exit_logprobs: F32
    coherence: F32


def examples_to_trace(corpus: Corpus, part: str, rows: int) -> list[Example]:
    """About `rows` counted rows of the `held-out` or `training` part, domains in equal shares."""
    examples = corpus.held_out if part == "held-out" else corpus.training
    if not examples:
        raise SourceError(f"{corpus.path}: no examples in its {part} part; trace the other one")
    offered = [replace(example, held_out=True) for example in examples]
    return choose_examples(replace(corpus, examples=offered), rows)


def trace(
    artifact: Artifact,
    corpus: Path,
    examples: Sequence[Example],
    cuts: Sequence[int],
    *,
    part: str = "held-out",
    rollouts: int = 0,
    seed: int = 0,
    threads: int = 1,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
) -> Traces:
    """Record every example, then roll out `rollouts` disagreements.

    progress: told what is done. announce: told in words what is going to take how long.
    """
    stage = Stage(artifact, range(artifact.architecture.layers), exits=cuts, threads=threads)
    costs = measure_costs(stage, cuts, examples[0].ids.tolist())
    tokenizer = artifact.tokenizer()
    is_boundary = sentence_boundary(lambda token_id: tokenizer.decode([token_id]))
    total = sum(len(example.ids) - example.first + 1 for example in examples)
    texts: list[_TextRows] = []
    done = 0
    for example in examples:
        if progress is not None:
            progress("tracing", done, total)
        texts.append(_trace_text(stage, example, cuts, is_boundary))
        done += len(texts[-1].model_tokens)
    if progress is not None:
        progress("tracing", done, total)
    joined = {
        name: np.concatenate([getattr(text, name) for text in texts])
        for name in _TextRows.__dataclass_fields__
    }
    starts = np.cumsum([0, *(len(text.model_tokens) for text in texts)])
    nothing = np.zeros(joined["tokens"].shape, np.bool_)
    made = Traces(
        fingerprint=artifact.fingerprint,
        exits_digest=exits_digest(artifact, cuts),
        cuts=tuple(cuts),
        costs=costs,
        corpus=str(corpus),
        part=part,
        rolled_tokens=TOKENS,
        domains=tuple(example.domain for example in examples),
        starts=starts.astype(np.int64),
        drops=np.zeros(joined["tokens"].shape, np.float32),
        rolled=nothing,
        rejoined=nothing.copy(),
        **joined,
    )
    return _with_drops(stage, made, examples, rollouts, seed, progress, announce)


def measure_costs(stage: Stage, cuts: Sequence[int], ids: Sequence[int]) -> StepCosts:
    """Medians over single-row steps after a prompt, on this machine, as the token loop runs them.

    The cloud's share is timed on the same machine: what its layers and head take for one row.
    """
    prompt = [ids[i % len(ids)] for i in range(_TIMED_PROMPT)]
    steps = min(_TIMED_STEPS, stage.architecture.context_length - len(prompt))
    session = stage.open(exact=False)
    session.append_ids(prompt)
    layers: list[list[float]] = []
    exits: list[list[float]] = []
    rest: list[float] = []
    for step in range(-1, steps):  # the first one runs the prompt and is not counted
        layers_now, exits_now = [], []
        for cut in cuts:
            started = time.perf_counter()
            session.run(cut)
            ran = time.perf_counter()
            session.exit_at(cut)
            exits_now.append(time.perf_counter() - ran)
            layers_now.append(ran - started)
        started = time.perf_counter()
        session.logits(session.position - 1)
        if step >= 0:
            layers.append(layers_now)
            exits.append(exits_now)
            rest.append(time.perf_counter() - started)
        if step + 1 < steps:
            session.append_ids([ids[step % len(ids)]])
    session.close()
    upto = np.cumsum(np.median(np.array(layers), axis=0))
    after_last = float(np.median(rest))
    return StepCosts(
        layers=tuple(float(seconds) for seconds in upto),
        exits=tuple(float(seconds) for seconds in np.median(np.array(exits), axis=0)),
        cloud=float(upto[-1] - upto[0]) + after_last,
    )


def _trace_text(
    stage: Stage, example: Example, cuts: Sequence[int], is_boundary: Callable[[int], bool]
) -> _TextRows:
    first, ids = example.first - 1, example.ids.tolist()
    session = stage.open()
    session.append_ids(ids)
    made: dict[int, ExitRows] = {}
    for cut in cuts:
        if cut == cuts[0]:
            session.run(cut)
            states_TD = session.hidden_at(cut, 0)
        made[cut] = session.exit_rows(cut, first)
    hidden_RD = session.hidden_at(stage.layers.stop, first)
    session.close()
    columns: dict[str, Any] = {
        "tokens": np.stack([made[cut].token_ids for cut in cuts], axis=1),
        "confidences": np.stack([made[cut].confidences for cut in cuts], axis=1),
        "runner_up_confidences": np.stack([made[cut].runner_up_confidences for cut in cuts], 1),
        "entropies": np.stack([made[cut].entropies for cut in cuts], axis=1),
    }
    rows = len(hidden_RD)
    # The last row has no token after it; any will do.
    asked = np.column_stack([columns["tokens"], [*ids[example.first :], 0]])
    model_tokens = np.empty(rows, np.int32)
    model_logprobs = np.empty(rows, np.float32)
    logprobs = np.empty(asked.shape, np.float32)
    for start in range(0, rows, _LOGIT_ROWS):
        part = slice(start, min(start + _LOGIT_ROWS, rows))
        logits_RV = stage.logits(hidden_RD[part])
        best = logits_RV.argmax(axis=1)
        at = np.arange(len(best))
        peak = logits_RV[at, best]
        norm = peak + np.log(np.exp(logits_RV - peak[:, None]).sum(axis=1))
        model_tokens[part], model_logprobs[part] = best, peak - norm
        logprobs[part] = np.take_along_axis(logits_RV, asked[part].astype(np.int64), 1)
        logprobs[part] -= norm[:, None]
    return _TextRows(
        **columns,
        model_tokens=model_tokens,
        model_logprobs=model_logprobs,
        exit_logprobs=logprobs[:, :-1],
        coherence=_coherence(example, columns, logprobs[:, -1], states_TD, is_boundary),
    )


def _coherence(
    example: Example,
    columns: dict[str, Any],
    next_logprobs_R: F32,
    states_TD: F32,
    is_boundary: Callable[[int], bool],
) -> F32:
    """What the tracker reads before each row's token, [R, 8]."""
    ids, first = example.ids.tolist(), example.first
    tracker = CoherenceTracker(is_boundary=is_boundary)
    tracker.read_prompt(ids[:first], states_TD[:first])
    exit_says = columns["tokens"][:, -1].tolist()
    sure, entropy = columns["confidences"][:, -1].tolist(), columns["entropies"][:, -1].tolist()
    probability = np.exp(next_logprobs_R).tolist()
    made = np.zeros((len(exit_says), len(COHERENCE)), np.float32)
    for row in range(len(exit_says)):
        made[row] = astuple(tracker.read())
        if row + first < len(ids):
            token_id = ids[first + row]
            confidence = sure[row] if exit_says[row] == token_id else probability[row]
            tracker.push(token_id, confidence, entropy[row], states_TD[first + row])
    return made


def _with_drops(
    stage: Stage,
    traces: Traces,
    examples: Sequence[Example],
    rollouts: int,
    seed: int,
    progress: Progress | None,
    announce: Callable[[str], None] | None,
) -> Traces:
    wrong_RE = ~traces.right
    pairs = sample_disagreements(wrong_RE, rollouts, seed)
    drops, rolled = traces.drops.copy(), traces.rolled.copy()
    rejoined = traces.rejoined.copy()
    if len(pairs):
        each = seconds_each(stage, examples[0].ids.tolist())
        if announce is not None:
            announce(
                f"rolling out {len(pairs):,} of {int(wrong_RE.sum()):,} disagreements over "
                f"{TOKENS} tokens: about {max(1, round(each * len(pairs) / 60))} min"
            )
        texts = [(example.ids.tolist(), example.first - 1) for example in examples]
        found = roll_out(
            stage, texts, traces.starts, pairs, traces.tokens, traces.model_tokens, progress
        )
        for (row, exit_index), rollout in found.items():
            drops[row, exit_index] = rollout.drop
            rejoined[row, exit_index] = rollout.rejoined
            rolled[row, exit_index] = True
    filled = fill_drops(traces.gaps, wrong_RE, rolled, drops)
    return replace(traces, drops=filled, rolled=rolled, rejoined=rejoined)
