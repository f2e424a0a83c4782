"""An exit tuned for a draft path: distilled from the full model, on the states of the path.

It starts from the artifact's exit at the path's cut, which knows the states of all layers: what
is left to learn is what the missing ones change. What the full model says of the text is computed
once for all paths and kept in the work folder. Everything is used again by the same command.

Not covered: tuning the path's layers themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from collm.model.artifact import Artifact
from collm.model.delta import adaptation_of
from collm.model.drafts import DraftPlan
from collm.model.exit_copy import copy_exit
from collm.model.manifest import ExitEntry
from collm.tune.backbone import Backbone
from collm.tune.batches import in_order
from collm.tune.corpus import Corpus
from collm.tune.distill import DistillConfig, distill
from collm.tune.draft_backbone import DraftBackbone, draft_backbone
from collm.tune.export import ExportedExit, export, load_exits
from collm.tune.heads import ExitSpec, needed_cuts
from collm.tune.progress import progress_bar
from collm.tune.teacher import Lesson, Teacher, cached_lessons
from collm.tune.tuning import about_training, chosen_examples

_F16_MAX = 65504.0


@dataclass(frozen=True, kw_only=True)
class School:
    """The full model and what it says of a corpus: the same for every draft path."""

    backbone: Backbone
    corpus: Corpus
    lessons: list[Lesson]
    """With the state before the final norm alone."""


def open_school(
    artifact: Artifact, backbone: Backbone, corpus: Corpus, tokens: int, seed: int, work: Path
) -> School:
    """The lessons of as much of the corpus as a run of so many tokens sees; kept in `work`."""
    examples = chosen_examples(corpus, tokens, seed)
    teacher = Teacher(backbone=backbone, cuts=())
    lessons = cached_lessons(teacher, examples, work / "states-final")
    return School(backbone=backbone, corpus=corpus, lessons=lessons)


def spec_for(entry: ExitEntry, cuts: tuple[int, ...]) -> ExitSpec:
    """The make of an artifact's exit; for an untrained one, what `collm tune` makes there."""
    if entry.kind == "identity":
        return ExitSpec(cut=entry.cut, feed=(0, *(cut for cut in cuts if cut < entry.cut)))
    return ExitSpec(
        cut=entry.cut,
        kind=entry.kind,
        layers=entry.layers or 1,
        window=entry.window,
        feed=entry.feed,
    )


def tune_draft(
    artifact: Artifact,
    plan: DraftPlan,
    school: School,
    training: DistillConfig,
    work: Path,
    *,
    said: Callable[[str], None] = lambda line: None,
) -> ExportedExit:
    """Tune an exit for the path and write it below `work`. `before` is the cut's exit on the path.

    Raises UsageError and its kin.
    """
    training.check()
    entry = artifact.manifest.exit_at(plan.cut)
    assert entry is not None, "an artifact has an exit at every cut"
    spec = spec_for(entry, artifact.manifest.cuts)
    spec.check()
    model = draft_backbone(school.backbone, artifact, plan)
    folder = work / f"{plan.name}-{plan.digest(artifact)[:8]}"
    begin = None
    if entry.kind != "identity":
        start = copy_exit(artifact, plan.cut, folder / f"start-{plan.cut:02d}.safetensors")
        begin = load_exits(model, [start], [spec])
    cuts = tuple(cut for cut in needed_cuts([spec]) if cut)
    lessons = path_lessons(model, school.lessons, cuts)
    trained = distill(
        model, [spec], lessons, cuts, folder / "checkpoint", training, begin=begin, said=said
    )
    (made,) = export(
        model,
        trained,
        [lesson for lesson in lessons if lesson.example.held_out],
        cuts,
        folder / "exit",
        base=artifact.manifest.name,
        about=about_training(school.corpus, lessons) | {"layers": list(plan.layers)},
        adaptation=adaptation_of(artifact.manifest),
    )
    return made


def path_lessons(
    model: DraftBackbone, lessons: list[Lesson], cuts: tuple[int, ...]
) -> list[Lesson]:
    """The lessons with the path's states at `cuts` before the full model's final one."""
    made: dict[int, Lesson] = {}
    with progress_bar() as progress:
        total = sum(len(lesson.example.ids) for lesson in lessons)
        bar = progress.add_task("states of the path", total=total)
        for part in in_order(lessons):
            longest = max(len(lesson.example.ids) for lesson in part)
            ids_BT = torch.zeros(len(part), longest, dtype=torch.long)
            for row, lesson in enumerate(part):
                ids_BT[row, : len(lesson.example.ids)] = torch.from_numpy(lesson.example.ids)
            states_CBTD = model.path_states(ids_BT.to(model.device), cuts)
            for row, lesson in enumerate(part):
                own_CTD = states_CBTD[:, row, : len(lesson.example.ids)]
                own_CTD = own_CTD.clamp(-_F16_MAX, _F16_MAX).half().to(lesson.states_CTD.device)
                both_CTD = torch.cat((own_CTD, lesson.states_CTD[-1:]))
                made[id(lesson)] = replace(lesson, states_CTD=both_CTD)
            progress.advance(bar, sum(len(lesson.example.ids) for lesson in part))
    return [made[id(lesson)] for lesson in lessons]
