"""Distil exit heads from the full model: KL divergence over the shortlist, all exits in one pass.

The backbone is frozen and its states are in the corpus, so a step runs one decoder layer and the
shortlist's unembedding per exit. AdamW, linear warm-up, cosine decay; a checkpoint now and then.

The user's turns are targets too: more text from the same generation. Held-out figures count the
answers alone.

Not covered: deep feedback.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from collm.errors import SourceError
from collm.tune.backbone import Backbone
from collm.tune.batches import Batch, Split, batches, load_split, plan_epoch
from collm.tune.checkpoint import (
    checkpoint_about,
    load_checkpoint,
    named_parameters,
    save_checkpoint,
)
from collm.tune.corpus import shard_about, shard_paths, summed_mass
from collm.tune.heads import ExitHead, fresh_heads, likeliest_tokens
from collm.tune.layer import rope_tables
from collm.tune.measure import read_out
from collm.tune.progress import progress_bar

CHECKPOINT_SECONDS = 180.0


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """One training run. Lengths are in tokens, `max_steps` stops early for a trial."""

    corpus: Path
    checkpoint: Path
    cuts: tuple[int, ...] = (5, 10, 15, 20)
    shortlist: int = 10240
    epochs: int = 6
    batch_tokens: int = 2048
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    user_rows: bool = True
    warmup: float = 0.04
    clip: float = 1.0
    seed: int = 0
    max_steps: int | None = None
    threads: int = 0  # 0: one a core

    def settings(self, chats: int) -> str:
        """What must be equal for a checkpoint to be resumed.

        Not the number of epochs: a resumed run may be longer or shorter than it was begun.
        """
        kept = (
            "cuts",
            "shortlist",
            "batch_tokens",
            "learning_rate",
            "weight_decay",
            "user_rows",
            "seed",
        )
        return json.dumps({**{name: getattr(self, name) for name in kept}, "chats": chats})


def learning_rate_share(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up over the first `warmup` of the steps, then half a cosine down to zero."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


@torch.no_grad()
def cross_entropy(
    normed_ND: Tensor, unembedding_SD: Tensor, target_NS: Tensor
) -> tuple[float, Tensor]:
    """Mean cross-entropy of exit against target in nats, and its gradient at `normed_ND`.

    Less the target's entropy it is KL(target || exit), with the same gradient: softmax minus
    target, times the unembedding. By hand, since the unembedding is frozen.
    """
    rows = len(normed_ND)
    gradient_ND = torch.empty_like(normed_ND)
    total = 0.0
    for start in range(0, rows, 512):  # chunks that stay in cache
        part = slice(start, start + 512)
        log_probs_NS = (normed_ND[part] @ unembedding_SD.T).log_softmax(dim=-1)
        total -= float(torch.dot(target_NS[part].flatten(), log_probs_NS.flatten()))
        gradient_ND[part] = log_probs_NS.exp_().sub_(target_NS[part]) @ unembedding_SD
    return total / rows, gradient_ND.div_(rows)


@contextmanager
def one_core_each(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of `threads` workers (0: one a core), with PyTorch's own parallelism off meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


class Distiller:
    """Heads, optimizer and schedule of one run.

    One core an exit, not all cores in every product: the exits meet once a step only, so that a
    core lost to another program does not stall the rest at each barrier.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: DistillConfig,
        split: Split,
        steps: int,
        pool: ThreadPoolExecutor,
    ) -> None:
        self.pool = pool
        self.backbone = backbone
        self.config = config
        self.split = split
        self.steps = steps
        self.step_number = 0
        self.rows = 0
        self.heads = fresh_heads(backbone, config.cuts)
        self.optimizer = torch.optim.AdamW(
            list(named_parameters(self.heads).values()),
            lr=config.learning_rate,
            betas=(0.9, 0.95),
            weight_decay=config.weight_decay,
            fused=True,
        )
        mass_V = summed_mass(config.corpus)
        self.shortlist_S = likeliest_tokens(mass_V, config.shortlist, backbone.special_ids)
        self.settings = config.settings(len(split.training))
        if config.checkpoint.is_file():
            about = checkpoint_about(config.checkpoint)
            if about["settings"] != self.settings:
                raise SourceError(
                    f"{config.checkpoint} belongs to a run with other settings, "
                    f"{about['settings']}; delete it or name another --checkpoint"
                )
            self.shortlist_S = load_checkpoint(config.checkpoint, self.heads, self.optimizer)
            self.step_number, self.rows = int(about["step"]), int(about["rows"])
        self.unembedding_SD = backbone.unembedding_VD[self.shortlist_S].contiguous()

    def step(self, batch: Batch) -> list[float]:
        """One update of every exit; returns their losses, KL in nats."""
        share = learning_rate_share(self.step_number, self.steps, self.config.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * share
        rope = rope_tables(self.backbone.shape, torch.arange(batch.rows_BT.shape[1]))
        final_ND = batch.states_CBTD[-1][batch.rows_BT]
        target_NS = torch.cat(list(self.pool.map(self._target, final_ND.split(256))))
        entropy = float(torch.special.entr(target_NS).sum()) / len(target_NS)

        def update(place: int, head: ExitHead) -> float:
            normed_ND = head(batch.states_CBTD[place], rope, batch.rows_BT)
            loss, gradient_ND = cross_entropy(normed_ND.detach(), self.unembedding_SD, target_NS)
            torch.autograd.backward(normed_ND, gradient_ND)
            torch.nn.utils.clip_grad_norm_(head.parameters(), self.config.clip)
            return float(loss - entropy)

        losses = list(self.pool.map(update, range(len(self.heads)), self.heads.values()))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step_number += 1
        self.rows += int(batch.rows_BT.sum())
        return losses

    @torch.no_grad()
    def _target(self, final_ND: Tensor) -> Tensor:
        return (self.backbone.norm(final_ND) @ self.unembedding_SD.T).softmax(dim=-1)

    def agreement(self) -> list[float]:
        """Held-out agreement of every exit, 0 to 1."""
        chats, shape = self.split.held_out, self.backbone.shape

        def measure(place: int, head: ExitHead) -> float:
            readout = read_out(head, place, chats, shape, self.unembedding_SD, self.shortlist_S)
            return float(readout.agreement)

        return list(self.pool.map(measure, range(len(self.heads)), self.heads.values()))

    def save(self) -> None:
        """Write the checkpoint."""
        save_checkpoint(
            self.config.checkpoint,
            self.heads,
            self.optimizer,
            self.shortlist_S,
            step=self.step_number,
            rows=self.rows,
            settings=self.settings,
        )


def distill(backbone: Backbone, config: DistillConfig) -> dict[int, ExitHead]:
    """Train the exits, or go on from the checkpoint; returns them.

    Raises `SourceError` when the corpus is missing or was made for other cuts.
    """
    paths = shard_paths(config.corpus)
    if not paths:
        raise SourceError(
            f"no chat shards in {config.corpus}; run `python -m collm.tune synthesize` first"
        )
    stored = tuple(json.loads(shard_about(paths[0])["cuts"]))
    if stored != config.cuts:
        raise SourceError(f"{config.corpus} holds states at cuts {stored}, asked for {config.cuts}")
    split = load_split(config.corpus)
    plans = [
        plan_epoch(split.training, config.batch_tokens, np.random.default_rng((config.seed, epoch)))
        for epoch in range(config.epochs)
    ]
    steps = sum(len(plan) for plan in plans)
    steps = min(steps, config.max_steps or steps)
    with one_core_each(config.threads) as pool, progress_bar() as progress:
        run = Distiller(backbone, config, split, steps, pool)
        bar = progress.add_task("distilling", total=steps, completed=run.step_number)
        begins, saved = 0, time.monotonic()
        for epoch, plan in enumerate(plans, start=1):
            todo = plan[max(0, run.step_number - begins) : max(0, steps - begins)]
            begins += len(plan)
            losses = []
            for batch in batches(todo, user_rows=config.user_rows):
                losses.append(run.step(batch))
                recent = np.mean(losses[-20:], axis=0)
                progress.update(
                    bar,
                    completed=run.step_number,
                    description=f"KL {_figures(recent.tolist(), '.2f')}",
                )
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    run.save()
                    saved = time.monotonic()
            if losses:
                kl = _figures(np.mean(losses, axis=0).tolist(), ".3f")
                progress.console.print(
                    f"epoch {epoch}: KL {kl}, held-out agreement {_figures(run.agreement(), '.1%')}"
                )
        run.save()
    return run.heads


def _figures(values: list[float], form: str) -> str:
    return " ".join(format(value, form) for value in values)
