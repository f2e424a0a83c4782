"""From an artifact to an adaptation of its model: text, the original's word on it, training, files.

Kept in the work folder as `collm.tune.tuning` does: `corpus.jsonl`, `finals/`,
`adapt-checkpoint`, and the result in `adapted/`, which `collm build --adapt` takes. The artifact
itself stays as it is: an adapted model is another one.
"""

from __future__ import annotations

from collections.abc import Callable

from collm.errors import UsageError
from collm.model.artifact import Artifact
from collm.tune.adapt import adapt
from collm.tune.adapt_export import ExportedAdaptation, export_adapted
from collm.tune.adapt_measure import Look
from collm.tune.adapt_run import AdaptConfig
from collm.tune.backbone import load_backbone
from collm.tune.teacher import Teacher, cached_lessons
from collm.tune.tuning import (
    TuneConfig,
    about_training,
    chosen_examples,
    corpus_for,
    exit_specs,
    exits_to_start_from,
)

HELD_OUT_TOKENS = 8_000
"""Held-out text that every point of the curve is measured on: each runs the model over it."""


def tune_adapted(
    artifact: Artifact,
    config: TuneConfig,
    training: AdaptConfig,
    *,
    said: Callable[[str], None] = lambda line: None,
) -> tuple[ExportedAdaptation, list[Look]]:
    """Train an update of the model with its exits, into `work/adapted`; returns it and the curve.

    Raises UsageError and its kin; nothing is then half-written.
    """
    if artifact.manifest.adaptation:
        raise UsageError(
            f"{artifact.folder}: is adapted already; adapt the artifact of the untouched model"
        )
    specs = exit_specs(artifact, config)
    corpus = corpus_for(artifact, config, said)
    backbone = load_backbone(artifact, device=config.device)
    start = exits_to_start_from(backbone, specs, config)
    examples = chosen_examples(corpus, training.tokens, training.seed, HELD_OUT_TOKENS)
    teacher = Teacher(backbone=backbone, cuts=())
    lessons = cached_lessons(teacher, examples, config.work / "finals")
    checkpoint = config.work / "adapt-checkpoint"
    adapted = adapt(backbone, specs, lessons, (), checkpoint, training, start=start, said=said)
    exported = export_adapted(
        adapted,
        [lesson for lesson in lessons if lesson.example.held_out],
        config.work / "adapted",
        base=artifact.manifest.name,
        about=about_training(corpus, lessons),
    )
    return exported, adapted.history
