"""What the full model says about a corpus: the states exits start from, and what to aim for.

Computed once, kept on disk as f16 shards of 64 examples (about 1.2 kB a token and cut with a
hidden size of 576, plus 200 bytes): a second epoch then costs the exits alone. A shard is used
again only for the very same examples, model and cuts, so that a corpus may grow; one that was
not finished does not exist.

Not covered: corpora whose states do not fit into memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from collm.errors import UsageError
from collm.model.files import write_tensors
from collm.tune.backbone import Backbone
from collm.tune.corpus import Example
from collm.tune.progress import progress_bar

KEPT = 32
"""Of the full model's distribution the likeliest tokens are kept; the rest counts as zero."""
_SHARD = 64
_BATCH = 8
_ROWS = 256
_F16_MAX = 65504.0


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One example with the full model's part in it. T positions, C cuts, K = `KEPT`."""

    example: Example
    states_CTD: Tensor
    """f16: at every cut but 0, then before the final norm."""
    top_TK: Tensor
    """int32: the likeliest next tokens, the likeliest first."""
    log_probs_TK: Tensor
    """f16: their log-probabilities over the full vocabulary."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The full model as a source of lessons. `cuts` ascending, 0 for the embedding left out."""

    backbone: Backbone
    cuts: tuple[int, ...]

    def bytes_of(self, tokens: int) -> int:
        """Disk and memory that the lessons of so many tokens take."""
        width = 2 * (len(self.cuts) + 1) * self.backbone.architecture.hidden_size
        return tokens * (width + 6 * KEPT)

    def lessons(self, examples: list[Example]) -> list[Lesson]:
        """Run a few examples through the full model, padded to the longest."""
        device = self.backbone.device
        longest = max(len(example.ids) for example in examples)
        ids_BT = torch.zeros(len(examples), longest, dtype=torch.long)
        for row, example in enumerate(examples):
            ids_BT[row, : len(example.ids)] = torch.from_numpy(example.ids)
        states_CBTD = self.backbone.states(ids_BT.to(device), self.cuts)
        lessons = []
        for row, example in enumerate(examples):
            states_CTD = states_CBTD[:, row, : len(example.ids)]
            top_TK, log_probs_TK = self._likeliest(states_CTD[-1])
            lessons.append(
                Lesson(
                    example=example,
                    states_CTD=states_CTD.clamp(-_F16_MAX, _F16_MAX).half(),
                    top_TK=top_TK,
                    log_probs_TK=log_probs_TK,
                )
            )
        return lessons

    @torch.no_grad()
    def _likeliest(self, final_TD: Tensor) -> tuple[Tensor, Tensor]:
        ids, log_probs = [], []
        for part_ND in final_TD.split(_ROWS):
            logits_NV = self.backbone.logits(part_ND)
            kept = min(KEPT, logits_NV.shape[1])
            top = logits_NV.topk(kept, dim=-1)
            ids.append(top.indices.int())
            log_probs.append((top.values - logits_NV.logsumexp(dim=-1, keepdim=True)).half())
        return torch.cat(ids), torch.cat(log_probs)


def split_lessons(lessons: list[Lesson]) -> tuple[list[Lesson], list[Lesson]]:
    """What to train on and what to measure on. Raises UsageError unless there is some of both."""
    training = [lesson for lesson in lessons if not lesson.example.held_out]
    held_out = [lesson for lesson in lessons if lesson.example.held_out]
    if not training or not held_out:
        raise UsageError(
            f"{len(training)} examples to train on and {len(held_out)} to measure on: expected "
            "some of both; make a larger corpus with collm synthesize --tokens"
        )
    return training, held_out


def cached_lessons(teacher: Teacher, examples: list[Example], folder: Path) -> list[Lesson]:
    """The lessons of `examples`, from `folder` as far as they are there. Interrupt it at will.

    Raises UsageError when they do not fit into memory.
    """
    tokens = sum(len(example.ids) for example in examples)
    needed, free = teacher.bytes_of(tokens), psutil.virtual_memory().available
    if needed > 0.8 * free:
        raise UsageError(
            f"the states of {tokens} tokens take {needed / 1e9:.1f} GB of memory, "
            f"{free / 1e9:.1f} GB are free; use a smaller corpus or fewer --exits"
        )
    folder.mkdir(parents=True, exist_ok=True)
    lessons: list[Lesson] = []
    with progress_bar() as progress:
        bar = progress.add_task("states of the full model", total=tokens)
        for start in range(0, len(examples), _SHARD):
            part = examples[start : start + _SHARD]
            path = folder / f"states-{start // _SHARD:05d}.safetensors"
            found = _read(path, part, teacher)
            if found is None:
                found = []
                for batch in _batches(part):
                    found += teacher.lessons(batch)
                    progress.advance(bar, sum(len(example.ids) for example in batch))
                found = _write(path, found, teacher)
            else:
                progress.advance(bar, sum(len(example.ids) for example in part))
            lessons += found
    return lessons


def _batches(examples: list[Example]) -> Iterator[list[Example]]:
    """Examples of like length together: little padding."""
    by_length = sorted(examples, key=lambda example: len(example.ids))
    for start in range(0, len(by_length), _BATCH):
        yield by_length[start : start + _BATCH]


def texts_digest(examples: list[Example]) -> str:
    """sha256 of token sequences in their order."""
    ids = b"".join(len(e.ids).to_bytes(4, "big") + e.ids.tobytes() for e in examples)
    return hashlib.sha256(ids).hexdigest()


def _identity(examples: list[Example], teacher: Teacher) -> str:
    """Digest of all that decides a shard's content."""
    said = [texts_digest(examples), teacher.backbone.fingerprint, teacher.cuts, KEPT]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _write(path: Path, lessons: list[Lesson], teacher: Teacher) -> list[Lesson]:
    """Write a shard whole; returns its lessons in the order of the file, by length."""
    tensors = {
        "states": torch.cat([lesson.states_CTD for lesson in lessons], dim=1).cpu(),
        "top": torch.cat([lesson.top_TK for lesson in lessons]).cpu(),
        "log_probs": torch.cat([lesson.log_probs_TK for lesson in lessons]).cpu(),
    }
    identity = _identity([lesson.example for lesson in lessons], teacher)
    arrays = {name: value.numpy() for name, value in tensors.items()}
    write_tensors(path, arrays, {"format": "collm-states", "identity": identity})
    return lessons


def _read(path: Path, examples: list[Example], teacher: Teacher) -> list[Lesson] | None:
    """The lessons of a shard; None where it is missing or was made from something else."""
    ordered = [example for batch in _batches(examples) for example in batch]
    try:
        with safe_open(path, "pt") as shard:
            if (shard.metadata() or {}).get("identity") != _identity(ordered, teacher):
                return None
            states, top, log_probs = (
                shard.get_tensor(name) for name in ("states", "top", "log_probs")
            )
    except (OSError, SafetensorError):
        return None
    lessons, start = [], 0
    for example in ordered:
        span = slice(start, start := start + len(example.ids))
        lessons.append(
            Lesson(
                example=example,
                states_CTD=states[:, span],
                top_TK=top[span],
                log_probs_TK=log_probs[span],
            )
        )
    return lessons
