"""Write an adaptation: `delta.safetensors` and the exits trained with it, in one folder.

`collm build --adapt FOLDER` takes both in. The exits are calibrated and measured on the adapted
model, whose choices are what they meet once deployed; what the adaptation costs against the
original is in the delta's report.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from collm.model.delta import DELTA, write_delta
from collm.model.files import sha256_of
from collm.tune.adapt import Adapted
from collm.tune.batches import in_order
from collm.tune.export import ExportedExit, export
from collm.tune.heads import needed_cuts
from collm.tune.teacher import Lesson, Teacher


@dataclass(frozen=True, kw_only=True)
class ExportedAdaptation:
    """What was written."""

    delta: Path
    exits: list[ExportedExit]


def report(adapted: Adapted) -> dict[str, object]:
    """What a delta says of itself: its cost at full depth, its exits, the curve."""
    result = adapted.history[-1]
    cuts = [head.spec.cut for head in adapted.trained.heads]
    return {
        "tokens": result.tokens,
        "full_agreement": round(result.full_agreement, 5),
        "full_divergence": round(result.full_divergence, 6),
        "perplexity": round(result.perplexity, 4),
        "original_perplexity": round(result.original_perplexity, 4),
        "perplexity_ratio": round(result.perplexity_ratio, 5),
        "held_out_tokens": result.exits[0].rows if result.exits else 0,
        "cuts": cuts,
        "curve": [
            {
                "tokens": seen.tokens,
                "agreement": [round(share, 4) for share in seen.agreement],
                "accepted": [round(share, 4) for share in seen.accepted],
                "full_agreement": round(seen.full_agreement, 4),
                "perplexity_ratio": round(seen.perplexity_ratio, 5),
            }
            for seen in adapted.history
        ],
    }


def export_adapted(
    adapted: Adapted,
    held_out: list[Lesson],
    folder: Path,
    *,
    base: str,
    about: dict[str, object],
) -> ExportedAdaptation:
    """Write delta and exits into `folder`, the delta first.

    held_out: the original model's lessons, for their texts. base: the model's name; about: what
    the exit files say of their training. Raises UsageError where the disk does not take them.
    """
    delta = folder / DELTA
    write_delta(
        delta,
        {name: (a.numpy(), b.numpy()) for name, (a, b) in adapted.factors.items()},
        source_sha256=adapted.backbone.source_sha256,
        base=base,
        scale=adapted.scale,
        report=report(adapted),
    )
    cuts = tuple(cut for cut in needed_cuts(h.spec for h in adapted.trained.heads) if cut)
    teacher = Teacher(backbone=adapted.backbone, cuts=cuts)
    lessons: list[Lesson] = []
    for part in in_order(held_out):
        lessons += teacher.lessons([lesson.example for lesson in part])
    exits = export(
        adapted.backbone,
        adapted.trained,
        lessons,
        cuts,
        folder,
        base=base,
        about=about,
        adaptation=sha256_of(delta),
    )
    return ExportedAdaptation(delta=delta, exits=exits)
