"""One draft path from plan to artifact: put in, scored, its exit tuned, scored again.

Not covered: choosing its layers (`collm.tune.choosing`); the table of many (`collm.tune.variants`).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from collm.model.artifact import Artifact
from collm.model.draft_entry import DraftEntry
from collm.model.drafts import DraftPlan, add_draft, draft_of
from collm.model.exit_copy import copy_exit
from collm.model.manifest import Manifest
from collm.runtime.draft_stage import DraftStage
from collm.tune.corpus import Example
from collm.tune.draft_scores import DraftScore, score_draft

Tuner = Callable[[DraftPlan], Path]
"""Tunes an exit for a path and returns its file."""


@dataclass(frozen=True, kw_only=True)
class Judges:
    """Held-out text and what the full model says there."""

    examples: Sequence[Example]
    choices: Sequence[npt.NDArray[np.int32]]
    threads: int

    def score(self, artifact: Artifact, name: str) -> DraftScore:
        """A path of the artifact, as deployed."""
        stage = DraftStage(artifact, name, threads=self.threads)
        return score_draft(stage, self.examples, self.choices)


@dataclass(frozen=True, kw_only=True)
class Made:
    """A path that an artifact now has."""

    entry: DraftEntry
    manifest: Manifest
    untuned: DraftScore
    """With the exit of its cut as it was."""
    tuned: DraftScore | None

    @property
    def is_tuned(self) -> bool:
        """Whether it ends in the tuned exit; one that came out worse than it began is not taken."""
        return self.tuned is not None and self.tuned.agreement >= self.untuned.agreement

    @property
    def best(self) -> DraftScore:
        """As it now is."""
        return self.tuned if self.tuned is not None and self.is_tuned else self.untuned


def make_draft(folder: Path, plan: DraftPlan, judges: Judges, tuner: Tuner | None) -> Made:
    """Put a path into the artifact `folder`. Without a tuner it ends in its cut's exit.

    Raises PlacementError, ArtifactError and UsageError.
    """
    artifact = Artifact(folder)
    plan.check(artifact)
    with tempfile.TemporaryDirectory(prefix="collm-draft-") as scratch:
        start = copy_exit(artifact, plan.cut, Path(scratch) / "exit.safetensors")
        untuned, tuned = _put_in(folder, plan, start, judges), None
        if tuner is not None:
            tuned = _put_in(folder, plan, tuner(plan), judges, was=untuned)
            if tuned.agreement < untuned.agreement:
                _put_in(folder, plan, start, judges, known=untuned)
    manifest = Artifact(folder).manifest
    entry = draft_of(manifest, plan.name)
    return Made(entry=entry, manifest=manifest, untuned=untuned, tuned=tuned)


def _put_in(
    folder: Path,
    plan: DraftPlan,
    exit_file: Path,
    judges: Judges,
    *,
    was: DraftScore | None = None,
    known: DraftScore | None = None,
) -> DraftScore:
    """The path with this exit, and how good it is; that is written into the manifest."""
    artifact = Artifact(folder)
    if known is None:
        add_draft(folder, plan, exit_file)
        known = judges.score(Artifact(folder), plan.name)
    add_draft(folder, plan, exit_file, about=_about(plan, artifact, known, was))
    return known


def _about(plan: DraftPlan, artifact: Artifact, score: DraftScore, was: DraftScore | None) -> str:
    made: dict[str, object] = {
        "plan": plan.digest(artifact)[:12],
        "tuned": was is not None,
        "held_out_agreement": round(score.agreement, 4),
        "held_out_rows": score.rows,
        "accepted_of_8": round(score.accepted, 3),
    }
    if was is not None:
        made["held_out_agreement_untuned"] = round(was.agreement, 4)
    return json.dumps(made)
