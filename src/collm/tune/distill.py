"""Train exits against the full model: all of them in one pass over the shared states.

The backbone is frozen and what it says is computed first (`collm.tune.teacher`), so a step runs
the exits alone. AdamW, linear warm-up, cosine decay, and a moving average of the weights, which
is what is kept. The user's turns are targets too: more text from the same model. The same
settings give the same exits, also when interrupted and resumed, on one machine with as many
threads.

Not covered: several GPUs.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from collm.errors import SourceError, UsageError
from collm.tune.backbone import Backbone
from collm.tune.batches import Batch, collate, plan
from collm.tune.checkpoint import checkpoint_about, load_checkpoint, save_checkpoint
from collm.tune.heads import ExitHead, ExitSpec, RidgeSums
from collm.tune.layer import Ropes
from collm.tune.measure import Measured, measure
from collm.tune.objective import Target, divergence, make_target
from collm.tune.progress import progress_bar
from collm.tune.shortlist import SHORTLIST_MULTIPLE, choose_shortlist, positions_in
from collm.tune.teacher import Lesson, split_lessons, texts_digest

CHECKPOINT_SECONDS = 120.0
_RIDGE_TOKENS = 100_000
_LOOKS = 4
"""Held-out agreement is shown so many times during a run."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """How to train. `tokens` are counted as often as they are seen."""

    tokens: int = 200_000
    shortlist: int = 10_240
    batch_tokens: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.04
    clip: float = 1.0
    averaging: float = 0.99
    negatives: int = 2048
    seed: int = 0

    def check(self) -> None:
        """Raise UsageError for what cannot be trained with any model."""
        if self.shortlist % SHORTLIST_MULTIPLE or self.shortlist < SHORTLIST_MULTIPLE:
            raise UsageError(
                f"shortlist of {self.shortlist}: expected a multiple of {SHORTLIST_MULTIPLE}"
            )


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The exits after training, and how the run went."""

    heads: list[ExitHead]
    shortlist_S: Tensor
    before: list[Measured]
    """The exits before the first step: regression and copied layers."""
    history: list[tuple[int, list[float]]]
    """(tokens seen, held-out agreement of every exit)."""
    steps: int
    tokens: int

    def digest(self) -> str:
        """sha256 of the exits' weights and shortlist."""
        made = hashlib.sha256(self.shortlist_S.cpu().numpy().tobytes())
        for head in self.heads:
            for name, value in head.state_dict().items():
                made.update(name.encode() + value.cpu().numpy().tobytes())
        return made.hexdigest()


def run_settings(
    config: DistillConfig,
    specs: list[ExitSpec],
    backbone: Backbone,
    training: list[Lesson],
    begin: Trained | None,
) -> str:
    """All that must be the same for a checkpoint to be gone on from."""
    said = [
        type(config).__name__,
        asdict(config),
        [asdict(spec) for spec in specs],
        backbone.fingerprint,
        texts_digest([lesson.example for lesson in training]),
        begin.digest() if begin else None,
    ]
    return json.dumps(said)


def learning_rate_share(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up over the first `warmup` of the steps, then half a cosine down to zero."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


@contextmanager
def cores_for(exits: int) -> Iterator[ThreadPoolExecutor]:
    """A pool with a worker an exit, PyTorch's own threads shared among them.

    One core an exit, not all cores in every product: the exits meet once a step only, so that a
    core lost to another program does not stall the rest at every barrier.
    """
    before = torch.get_num_threads()
    share = max(1, before // exits)
    torch.set_num_threads(share)
    try:
        with ThreadPoolExecutor(
            min(exits, before), initializer=torch.set_num_threads, initargs=(share,)
        ) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


class Distiller:
    """Heads, optimizer and schedule of one run."""

    def __init__(
        self,
        backbone: Backbone,
        specs: list[ExitSpec],
        training: list[Lesson],
        held_out: list[Lesson],
        cuts: tuple[int, ...],
        config: DistillConfig,
        pool: ThreadPoolExecutor,
        begin: Trained | None = None,
    ) -> None:
        self.backbone, self.training, self.held_out = backbone, training, held_out
        self.cuts, self.config, self.pool = cuts, config, pool
        self.step_number = 0
        self.tokens = 0
        self.settled = True
        """Whether weights, averages and counts belong to one and the same step."""
        self.history: list[tuple[int, list[float]]] = []
        self.heads = [ExitHead(backbone, spec) for spec in specs]
        self.trained = {
            f"{head.spec.cut}.{name}": parameter
            for head in self.heads
            for name, parameter in head.named_parameters()
        }
        self.averaged = {name: p.detach().clone() for name, p in self.trained.items()}
        self.optimizer = torch.optim.AdamW(
            list(self.trained.values()),
            lr=config.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.begin = begin
        self.shortlist_S = (
            begin.shortlist_S
            if begin
            else choose_shortlist(
                training, config.shortlist, backbone.special_ids, len(backbone.unembedding_VD)
            ).to(backbone.device)
        )
        self.position_V = positions_in(self.shortlist_S, len(backbone.unembedding_VD))
        self.unembedding_SD = backbone.unembedding_VD[self.shortlist_S].contiguous()
        self.plan = plan(
            [lesson.example for lesson in training], config.tokens, config.batch_tokens, config.seed
        )
        counts = [sum(len(training[i].example.ids) for i in group) for group in self.plan]
        self.seen = [0, *np.cumsum(counts).tolist()]
        """Tokens of the batches before each step, as the budget counts them."""
        self.settings = run_settings(config, specs, backbone, training, begin)

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        lessons = [self.training[index] for index in self.plan[step]]
        return collate(self.backbone, lessons, self.cuts, answers_only=False)

    def start(self) -> None:
        """Where every exit begins: those given, or maps fitted by regression."""
        if self.begin:
            for head, given in zip(self.heads, self.begin.heads, strict=True):
                head.load_state_dict(given.state_dict())
        else:
            self._fit_maps()
        for name, parameter in self.trained.items():
            self.averaged[name].copy_(parameter.detach())

    def _fit_maps(self) -> None:
        d = self.backbone.architecture.hidden_size
        sums = [RidgeSums(head.linear.in_features, d) for head in self.heads]
        tokens = 0
        for step in range(len(self.plan)):
            batch = self.batch(step)
            for head, s in zip(self.heads, sums, strict=True):
                s.add(batch.inputs(head.spec)[batch.rows_BT], batch.final_ND)
            tokens += len(batch.final_ND)
            if tokens > _RIDGE_TOKENS:
                break
        for head, s in zip(self.heads, sums, strict=True):
            head.start_from(s.solve())

    def step(self) -> list[float]:
        """One update of every exit; returns their losses, KL in nats."""
        config, step = self.config, self.step_number
        share = learning_rate_share(step, len(self.plan), config.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * share
        batch = self.batch(step)
        target = make_target(
            batch.top_NK,
            batch.log_probs_NK,
            self.unembedding_SD,
            self.position_V,
            negatives=config.negatives,
            generator=torch.Generator().manual_seed(config.seed * 1_000_003 + step),
        )
        ropes = self.backbone.ropes(batch.rows_BT.shape[1])
        losses = list(
            self.pool.map(lambda head: self._update(head, batch, target, ropes), self.heads)
        )
        if not all(math.isfinite(loss) for loss in losses):
            raise UsageError(
                f"the loss is no longer a number at step {step} (learning rate "
                f"{config.learning_rate:g}); no exit was written; lower --learning-rate"
            )
        self.settled = False
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            keep = min(config.averaging, (step + 1) / (step + 10))
            names = list(self.trained)
            torch._foreach_lerp_(
                [self.averaged[n] for n in names], [self.trained[n] for n in names], 1 - keep
            )
        self.step_number += 1
        self.tokens += len(batch.final_ND)
        self.settled = True
        return losses

    def _update(self, head: ExitHead, batch: Batch, target: Target, ropes: Ropes) -> float:
        normed_ND = head(batch.inputs(head.spec), ropes, batch.rows_BT)
        loss: float
        loss, gradient_ND = divergence(normed_ND.detach(), target)
        torch.autograd.backward(normed_ND, gradient_ND)
        torch.nn.utils.clip_grad_norm_(head.parameters(), self.config.clip)
        return loss

    def measure(self, *, averaged: bool = True) -> list[Measured]:
        """Every exit on the held-out lessons."""
        with self._averages(averaged):
            return list(
                self.pool.map(
                    lambda head: measure(
                        self.backbone, head, self.held_out, self.cuts, self.shortlist_S
                    ),
                    self.heads,
                )
            )

    @contextmanager
    def _averages(self, wanted: bool) -> Iterator[None]:
        """The moving averages in the heads, for as long as it lasts."""
        if wanted:
            self.swap()
        try:
            yield
        finally:
            if wanted:
                self.swap()

    def swap(self) -> None:
        """Exchange weights and averages."""
        for name, parameter in self.trained.items():
            parameter.data, self.averaged[name] = self.averaged[name], parameter.data

    def save(self, path: Path, before: list[Measured]) -> None:
        """Write the checkpoint."""
        about = {
            "step": str(self.step_number),
            "tokens": str(self.tokens),
            "settings": self.settings,
            "before": json.dumps([asdict(measured) for measured in before]),
            "history": json.dumps(self.history),
        }
        extra = {"shortlist": self.shortlist_S}
        save_checkpoint(path, self.trained, self.averaged, self.optimizer, about, extra)

    def resume(self, path: Path) -> list[Measured]:
        """Go on from a checkpoint; returns what was measured before the first step.

        Raises SourceError when it belongs to another run.
        """
        about = checkpoint_about(path)
        if about["settings"] != self.settings:
            raise SourceError(
                f"{path}: belongs to a run with other settings or data; "
                "delete it or name another --work"
            )
        self.step_number, self.tokens = int(about["step"]), int(about["tokens"])
        self.history = [(tokens, shares) for tokens, shares in json.loads(about["history"])]
        load_checkpoint(path, self.trained, self.averaged, self.optimizer, self.step_number)
        return [Measured(**measured) for measured in json.loads(about["before"])]


def distill(
    backbone: Backbone,
    specs: list[ExitSpec],
    lessons: list[Lesson],
    cuts: tuple[int, ...],
    checkpoint: Path,
    config: DistillConfig,
    *,
    begin: Trained | None = None,
    said: Callable[[str], None] = lambda line: None,
) -> Trained:
    """Train the exits of `specs`, or go on from the checkpoint.

    cuts: those of the lessons' states. begin: exits to start from. Raises UsageError when there
    is nothing to train or to measure on, when the loss becomes NaN or the disk is full; the last
    checkpoint then stays.
    """
    training, held_out = split_lessons(lessons)
    with cores_for(len(specs)) as pool, progress_bar() as progress:
        run = Distiller(backbone, specs, training, held_out, cuts, config, pool, begin)
        if checkpoint.is_file():
            before = run.resume(checkpoint)
        else:
            run.start()
            before = run.measure(averaged=False)
            said(f"untrained: held-out agreement {figures([m.agreement for m in before])}")
        steps = len(run.plan)
        looks = {steps * look // _LOOKS for look in range(1, _LOOKS + 1)}
        bar = progress.add_task(
            "training", total=config.tokens, completed=run.seen[run.step_number]
        )
        saved = time.monotonic()
        recent: list[list[float]] = []
        try:
            while run.step_number < steps:
                recent = [*recent[-49:], run.step()]
                loss = ", ".join(f"{value:.2f}" for value in np.mean(recent, axis=0))
                progress.update(
                    bar, completed=run.seen[run.step_number], description=f"training, KL {loss}"
                )
                if run.step_number in looks:
                    agreement = [measured.agreement for measured in run.measure()]
                    run.history.append((run.tokens, agreement))
                    said(
                        f"{run.seen[run.step_number]:,} tokens: KL {loss}, "
                        f"held-out agreement {figures(agreement)}"
                    )
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    run.save(checkpoint, before)
                    saved = time.monotonic()
        except KeyboardInterrupt:
            if run.settled:  # else an update is half done: the checkpoint before it stays
                run.save(checkpoint, before)
            said(f"stopped at step {run.step_number} of {steps}; the same command goes on")
            raise
        run.save(checkpoint, before)
        run.swap()
    return Trained(
        heads=run.heads,
        shortlist_S=run.shortlist_S,
        before=before,
        history=run.history,
        steps=run.step_number,
        tokens=run.tokens,
    )


def figures(shares: list[float]) -> str:
    """Shares as percentages, one an exit."""
    return ", ".join(f"{share:.1%}" for share in shares)
