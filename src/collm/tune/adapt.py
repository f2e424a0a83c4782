"""Exit-friendly adaptation: a low-rank update of the backbone, trained together with its exits.

The exits' losses reach into the layers below their cuts, so that the decision moves earlier; a
loss at full depth holds the final answer to the *original* model's; later layers are left out of
a step more often than early ones (after LayerSkip, arXiv 2404.16710: the idea, none of its code).
The same settings give the same update, also when interrupted and resumed, on one machine with as
many threads.

Not covered: layers that an adapted model could then do without; several GPUs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from collm.tune.adapt_layers import Factors, merged
from collm.tune.adapt_measure import Look
from collm.tune.adapt_run import AdaptConfig, Adapter
from collm.tune.backbone import Backbone
from collm.tune.distill import CHECKPOINT_SECONDS, Trained, figures
from collm.tune.heads import ExitSpec
from collm.tune.progress import progress_bar
from collm.tune.teacher import Lesson, split_lessons


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """An adapted model and its exits."""

    backbone: Backbone
    """The update, as a delta file stores it, merged into the weights."""
    factors: Factors
    scale: float
    rank: int
    trained: Trained
    """The exits, as `distill` gives them; agreement is with the original model."""
    history: list[Look]
    """The curve: before the first step, several times during the run, and the result as stored."""


def adapt(
    backbone: Backbone,
    specs: list[ExitSpec],
    lessons: list[Lesson],
    cuts: tuple[int, ...],
    checkpoint: Path,
    config: AdaptConfig,
    *,
    start: Trained | None = None,
    said: Callable[[str], None] = lambda line: None,
) -> Adapted:
    """Train an update of `backbone` together with the exits of `specs`, or go on.

    lessons: the original model's; of their states the final ones are needed alone, so
    `Teacher(backbone=backbone, cuts=())` makes the smallest that do. cuts: those of the lessons.
    start: exits of the same specs that `distill` trained on the frozen model.
    Raises UsageError when there is nothing to train or to measure on, when a loss becomes NaN or
    the disk is full; the last checkpoint then stays.
    """
    config.check()
    training, held_out = split_lessons(lessons)
    run = Adapter(backbone, specs, training, held_out, cuts, config, start)
    if checkpoint.is_file():
        run.resume(checkpoint)
    else:
        run.start()
        said(_line(run.history[0]))
    _train(run, checkpoint, said)
    result = run.finish()
    said(_line(result))
    history = [*run.history, result]
    factors = run.student.factors()
    return Adapted(
        backbone=merged(backbone, factors, run.student.scale),
        factors=factors,
        scale=run.student.scale,
        rank=config.rank,
        trained=Trained(
            heads=run.heads,
            shortlist_S=run.shortlist_S,
            before=history[0].exits,
            history=[(seen.tokens, seen.agreement) for seen in history[1:]],
            steps=run.step_number,
            tokens=run.tokens,
        ),
        history=history,
    )


def _train(run: Adapter, checkpoint: Path, said: Callable[[str], None]) -> None:
    steps, looks = len(run.plan), run.config.looks
    look_at = {steps * n // looks for n in range(1, looks)} - {0, steps}
    saved = time.monotonic()
    recent: list[list[float]] = []
    with progress_bar() as progress:
        bar = progress.add_task("adapting", total=run.seen[-1], completed=run.seen[run.step_number])
        try:
            while run.step_number < steps:
                recent = [*recent[-49:], run.step()]
                *exits, full = np.mean(recent, axis=0)
                loss = ", ".join(f"{value:.2f}" for value in exits)
                progress.update(
                    bar,
                    completed=run.seen[run.step_number],
                    description=f"adapting, KL {loss}; full depth {full:.3f}",
                )
                if run.step_number in look_at:
                    run.history.append(run.look())
                    said(_line(run.history[-1]))
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    run.save(checkpoint)
                    saved = time.monotonic()
        except KeyboardInterrupt:
            if run.is_whole:  # else the last checkpoint is what is kept
                run.save(checkpoint)
            said(f"stopped at step {run.step_number} of {steps}; the same command goes on")
            raise
    run.save(checkpoint)


def _line(seen: Look) -> str:
    return (
        f"{seen.tokens} tokens: exits {figures(seen.agreement)}, full depth "
        f"{seen.full_agreement:.1%}, perplexity × {seen.perplexity_ratio:.4f}"
    )
