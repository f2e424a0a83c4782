"""How long a tuning run will take here, from a few timed steps on made-up tokens."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from collm.model.artifact import Artifact
from collm.tune.backbone import load_backbone
from collm.tune.corpus import Example
from collm.tune.decode import Decoder
from collm.tune.distill import Distiller, cores_for
from collm.tune.heads import needed_cuts
from collm.tune.teacher import Teacher
from collm.tune.tuning import REPEATS, TuneConfig, exit_specs

_LENGTH = 192
_EXAMPLES = 12
_SLOTS = 128


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds by part, and what stays on disk in bytes."""

    writing: float
    """0 where a corpus is given."""
    states: float
    training: float
    bytes: int

    @property
    def total(self) -> float:
        """Seconds in all, loading and measuring left out."""
        return self.writing + self.states + self.training


def estimate(artifact: Artifact, config: TuneConfig) -> Estimate:
    """Time a little of each part and scale it up; nothing is written."""
    specs = exit_specs(artifact, config)
    backbone = load_backbone(artifact, device=config.device)
    cuts = tuple(cut for cut in needed_cuts(specs) if cut)
    teacher = Teacher(backbone=backbone, cuts=cuts)
    examples = _made_up(artifact)
    sample = _EXAMPLES * _LENGTH
    tokens = config.training.tokens
    written = tokens // REPEATS if config.data is None else tokens
    began = time.perf_counter()
    lessons = teacher.lessons(examples)
    per_state = (time.perf_counter() - began) / sample
    settings = replace(config.training, tokens=sample)
    with cores_for(len(specs)) as pool:
        run = Distiller(backbone, specs, lessons, lessons[:1], cuts, settings, pool)
        run.step()
        began = time.perf_counter()
        while run.step_number < len(run.plan):
            run.step()
    per_token = (time.perf_counter() - began) / (run.seen[-1] - run.seen[1])
    writing = 0.0
    if config.data is None:
        decoder = Decoder(backbone, slots=_SLOTS, length=8)
        ids_B = torch.zeros(_SLOTS, dtype=torch.long, device=backbone.device)
        decoder.step(ids_B)
        began = time.perf_counter()
        for _ in range(3):
            decoder.step(ids_B)
        writing = (time.perf_counter() - began) / (3 * _SLOTS) * written
    return Estimate(
        writing=writing,
        states=per_state * written,
        training=per_token * tokens,
        bytes=teacher.bytes_of(written),
    )


def _made_up(artifact: Artifact) -> list[Example]:
    generator = np.random.default_rng(0)
    length = min(_LENGTH, artifact.architecture.context_length)
    shape = (_EXAMPLES, length)
    ids = generator.integers(0, artifact.architecture.vocab_size, shape, dtype=np.int32)
    return [
        Example(ids=row, domain="made-up", greedy=None, user=1, first=1, held_out=False)
        for row in ids
    ]
