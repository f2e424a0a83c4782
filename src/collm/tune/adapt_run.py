"""One run of an adaptation: student, exits, optimizer, schedule, and its checkpoint.

A step: run the adapted backbone once, some of its later layers left out; read it at every cut by
that cut's exit and at the end by the model's own head; one backward pass over all of them.
`collm.tune.adapt` is what calls it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from collm.errors import SourceError, UsageError
from collm.model.delta import MAX_RANK
from collm.tune.adapt_layers import Student, dropout_of
from collm.tune.adapt_measure import Look, inputs, look
from collm.tune.backbone import Backbone
from collm.tune.batches import Batch, collate, plan
from collm.tune.checkpoint import checkpoint_about, load_checkpoint, save_checkpoint
from collm.tune.distill import DistillConfig, Trained, learning_rate_share, run_settings
from collm.tune.heads import ExitHead, ExitSpec, RidgeSums, needed_cuts
from collm.tune.objective import Target, divergence, make_target
from collm.tune.shortlist import choose_shortlist, positions_in
from collm.tune.teacher import Lesson

_RIDGE_TOKENS = 30_000


@dataclass(frozen=True, kw_only=True)
class AdaptConfig(DistillConfig):
    """How to train; `learning_rate` is the exits'. SmolLM2-135M's delta takes 0.61 MB a rank."""

    rank: int = 16
    alpha: float = 32.0
    """The update counts alpha / rank times."""
    low_rank_learning_rate: float = 5e-4
    full_weight: float = 4.0
    """Weight of the loss at full depth; every exit's is 1."""
    layer_dropout: float = 0.02
    """Share of the steps that leave out the last layer; see `dropout_of`. Of SmolLM2-135M's 30
    layers 0.1 leaves out 1.3 a step; without one of layers 12 to 25 the full depth is 0.15 to 0.24
    nats from the original, without the last 1.8."""
    looks: int = 6
    """Points of the curve."""

    def check(self) -> None:
        """Raise UsageError for what cannot be trained."""
        super().check()
        if not 1 <= self.rank <= MAX_RANK:
            raise UsageError(f"rank {self.rank}: expected 1 to {MAX_RANK}")
        if not (self.alpha > 0 and self.full_weight > 0 and 0 <= self.layer_dropout < 1):
            raise UsageError(
                f"alpha {self.alpha:g}, weight at full depth {self.full_weight:g}, layer dropout "
                f"{self.layer_dropout:g}: expected the first two above 0, the last from 0 to 1"
            )


class Adapter:
    """Student, exits, optimizer and schedule of one run."""

    def __init__(
        self,
        backbone: Backbone,
        specs: list[ExitSpec],
        training: list[Lesson],
        held_out: list[Lesson],
        cuts: tuple[int, ...],
        config: AdaptConfig,
        start: Trained | None,
    ) -> None:
        self.backbone, self.training, self.held_out = backbone, training, held_out
        self.cuts, self.config, self.start_from = cuts, config, start
        self.needed = needed_cuts(specs)
        self.step_number = self.tokens = 0
        self.history: list[Look] = []
        self.is_whole = True
        """False for as long as an interruption would leave weights of two steps."""
        self.student = Student(backbone, config.rank, config.alpha / config.rank, config.seed)
        self.heads = [ExitHead(backbone, spec) for spec in specs]
        exits = {f"{h.spec.cut}.{n}": p for h in self.heads for n, p in h.named_parameters()}
        updates = self.student.trained
        self.trained = {**exits, **updates}
        for parameter in self.trained.values():  # a skipped layer gets zeros, not nothing
            parameter.grad = torch.zeros_like(parameter)
        self.averaged = {name: p.detach().clone() for name, p in self.trained.items()}
        self.rates = [config.learning_rate, config.low_rank_learning_rate]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(exits.values()), "weight_decay": config.weight_decay},
                {"params": list(updates.values()), "weight_decay": 0.0},
            ],
            betas=(0.9, 0.95),
            fused=True,
        )
        vocabulary = len(backbone.unembedding_VD)
        chosen_S = (
            choose_shortlist(training, config.shortlist, backbone.special_ids, vocabulary)
            if start is None
            else start.shortlist_S
        )
        self.shortlist_S = chosen_S.to(backbone.device)
        self.position_V = positions_in(self.shortlist_S, vocabulary)
        self.unembedding_SD = backbone.unembedding_VD[self.shortlist_S].contiguous()
        examples = [lesson.example for lesson in training]
        self.plan = plan(examples, config.tokens, config.batch_tokens, config.seed)
        counts = [sum(len(examples[i].ids) for i in group) for group in self.plan]
        self.seen = [0, *np.cumsum(counts).tolist()]
        self.settings = run_settings(config, specs, backbone, training, start)

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        lessons = [self.training[index] for index in self.plan[step]]
        return collate(self.backbone, lessons, self.cuts, answers_only=False)

    @torch.no_grad()
    def start(self) -> None:
        """Where the exits begin: as trained on the frozen model, or fitted by regression."""
        if self.start_from is not None:
            for head, trained in zip(self.heads, self.start_from.heads, strict=True):
                head.load_state_dict(trained.state_dict())
        else:
            self._fit()
        for name, parameter in self.trained.items():
            self.averaged[name].copy_(parameter)
        self.history = [self.look()]

    def _fit(self) -> None:
        d, last = self.backbone.architecture.hidden_size, self.backbone.architecture.layers
        sums = [RidgeSums(head.linear.in_features, d) for head in self.heads]
        for step in range(len(self.plan)):
            batch = self.batch(step)
            ropes = self.backbone.ropes(batch.rows_BT.shape[1])
            states = self.student(batch.states[0], ropes, self.needed)
            for head, s in zip(self.heads, sums, strict=True):
                s.add(inputs(states, head.spec)[batch.rows_BT], states[last][batch.rows_BT])
            if self.seen[step + 1] > _RIDGE_TOKENS:
                break
        for head, s in zip(self.heads, sums, strict=True):
            head.start_from(s.solve())

    def step(self) -> list[float]:
        """One update of everything; returns the losses, KL in nats: the exits', then full depth."""
        config, step, arch = self.config, self.step_number, self.backbone.architecture
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        drawn = torch.rand(arch.layers, generator=generator).tolist()
        skipped = {
            layer
            for layer in range(arch.layers)
            if drawn[layer] < dropout_of(layer, arch.layers, config.layer_dropout)
        }
        batch = self.batch(step)
        exit_target, full_target = self._targets(batch, generator)
        ropes = self.backbone.ropes(batch.rows_BT.shape[1])
        states = self.student(batch.states[0], ropes, self.needed, skipped)
        outputs = [head(inputs(states, head.spec), ropes, batch.rows_BT) for head in self.heads]
        losses, gradients = [], []
        for normed_ND in outputs:
            loss, gradient_ND = divergence(normed_ND.detach(), exit_target)
            losses.append(loss)
            gradients.append(gradient_ND)
        outputs.append(self.backbone.norm(states[arch.layers][batch.rows_BT]))
        loss, gradient_ND = divergence(outputs[-1].detach(), full_target)
        losses.append(loss)
        gradients.append(gradient_ND * config.full_weight)
        if not all(math.isfinite(loss) for loss in losses):
            raise UsageError(
                f"the loss is no longer a number at step {step} (learning rates "
                f"{config.learning_rate:g} and {config.low_rank_learning_rate:g}); nothing was "
                "written; lower them"
            )
        self.optimizer.zero_grad(set_to_none=False)
        torch.autograd.backward(outputs, gradients)
        with self._whole():
            self._update(len(batch.final_ND))
        return losses

    def _targets(self, batch: Batch, generator: torch.Generator) -> tuple[Target, Target]:
        """What exits aim for, over the shortlist, and the full depth, over the vocabulary."""
        size, negatives = len(self.backbone.unembedding_VD), self.config.negatives
        likely = batch.top_NK, batch.log_probs_NK
        exits = make_target(
            *likely, self.unembedding_SD, self.position_V, negatives=negatives, generator=generator
        )
        everywhere_V = torch.arange(size, device=batch.top_NK.device)
        full = make_target(
            *likely,
            self.backbone.unembedding_VD,
            everywhere_V,
            negatives=negatives,
            generator=generator,
        )
        # The likeliest tokens alone would teach the final answer to forget its tail, at the cost
        # of perplexity: its target is the original's own distribution over the scored tokens.
        with torch.no_grad():
            normed_ND = self.backbone.norm(batch.final_ND)
            logits_NC = torch.addmm(full.correction_C, normed_ND, full.unembedding_CD.T)
            target_NC = logits_NC.softmax(dim=-1)
            entropy = float(torch.special.entr(target_NC).sum()) / len(target_NC)
        return exits, replace(full, target_NC=target_NC, entropy=entropy)

    def _update(self, rows: int) -> None:
        config, step = self.config, self.step_number
        for head in self.heads:
            torch.nn.utils.clip_grad_norm_(head.parameters(), config.clip)
        torch.nn.utils.clip_grad_norm_(self.student.trained.values(), config.clip)
        share = learning_rate_share(step, len(self.plan), config.warmup)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * share
        self.optimizer.step()
        keep = min(config.averaging, (step + 1) / (step + 10))
        names = list(self.trained)
        with torch.no_grad():
            torch._foreach_lerp_(
                [self.averaged[n] for n in names], [self.trained[n] for n in names], 1 - keep
            )
        self.step_number += 1
        self.tokens += rows

    def look(self) -> Look:
        """Measure the averages on the held-out lessons."""
        self.swap()
        try:
            return self._look()
        finally:
            self.swap()

    def _look(self) -> Look:
        tokens: int = self.seen[self.step_number]
        where = (self.backbone, self.student, self.heads, self.held_out, self.cuts)
        seen: Look = look(*where, self.shortlist_S, tokens)
        return seen

    def finish(self) -> Look:
        """Keep the averages, rounded as a delta file rounds them, and measure these."""
        self.swap()
        self.student.round_to_half()
        return self._look()

    def swap(self) -> None:
        """Exchange weights and averages."""
        with self._whole():
            for name, parameter in self.trained.items():
                parameter.data, self.averaged[name] = self.averaged[name], parameter.data

    @contextmanager
    def _whole(self) -> Iterator[None]:
        self.is_whole = False
        yield
        self.is_whole = True

    def save(self, path: Path) -> None:
        """Write the checkpoint."""
        about = {
            "step": str(self.step_number),
            "tokens": str(self.tokens),
            "settings": self.settings,
            "history": json.dumps([asdict(seen) for seen in self.history]),
        }
        save_checkpoint(path, self.trained, self.averaged, self.optimizer, about, {})

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint. Raises SourceError when it belongs to another run."""
        about = checkpoint_about(path)
        if about.get("settings") != self.settings:
            raise SourceError(
                f"{path}: belongs to a run with other settings or data; "
                "delete it or name another --work"
            )
        self.step_number, self.tokens = int(about["step"]), int(about["tokens"])
        self.history = [Look.from_json(seen) for seen in json.loads(about["history"])]
        load_checkpoint(path, self.trained, self.averaged, self.optimizer, self.step_number)
