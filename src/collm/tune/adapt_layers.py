"""The backbone with a trainable low-rank update in every matrix of its layers.

W + scale · B · A beside the frozen W (LoRA, arXiv 2106.09685); B starts at zero, so that an
untrained student is the original, bit for bit. The frozen weights are the backbone's own tensors:
a student takes no second copy of the model.

Shape suffixes as in `collm.tune.layer`; r is the rank.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from collm.model.delta import matrix_shapes
from collm.tune.backbone import Backbone
from collm.tune.layer import DecoderLayer, Ropes

Factors = dict[str, tuple[Tensor, Tensor]]
"""A [r, K] and B [N, r] by the names of a delta file, `layers.3.self_attn.q_proj`."""


class LowRankLinear(nn.Module):
    """A frozen linear layer and its update."""

    def __init__(
        self, frozen: nn.Linear, rank: int, scale: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        n, k = frozen.weight.shape
        drawn = (torch.rand(rank, k, generator=generator) * 2 - 1) / math.sqrt(k)
        self.frozen, self.scale = frozen, scale
        self.A = nn.Parameter(drawn.to(frozen.weight.device))
        self.B = nn.Parameter(torch.zeros(n, rank, device=frozen.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        update = F.linear(F.linear(x, self.A), self.B)
        out: Tensor = self.frozen(x) + update * self.scale
        return out


class Student(nn.Module):
    """All decoder layers of a backbone, adapted."""

    def __init__(self, backbone: Backbone, rank: int, scale: float, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.scale = scale
        self.updates: dict[str, LowRankLinear] = {}
        layers = []
        for number, original in enumerate(backbone.layers):
            layer = _sharing_copy(original)
            for module in matrix_shapes(backbone.architecture):
                part, name = module.split(".")
                owner = getattr(layer, part)
                made = LowRankLinear(getattr(owner, name), rank, scale, generator)
                setattr(owner, name, made)
                self.updates[f"layers.{number}.{module}"] = made
            layers.append(layer)
        self.layers = nn.ModuleList(layers)

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters to train, by their names in a delta file."""
        return {
            f"{name}.{part}": getattr(update, part)
            for name, update in self.updates.items()
            for part in "AB"
        }

    def forward(
        self,
        x_BTD: Tensor,
        ropes: Ropes,
        cuts: Collection[int],
        skipped: Collection[int] = (),
    ) -> dict[int, Tensor]:
        """The residual stream `[B, T, D]` at `cuts` and after the last layer, by depth.

        skipped: layers to leave out.
        """
        kept = {0: x_BTD}
        for depth, layer in enumerate(self.layers):
            if depth not in skipped:
                x_BTD = layer(x_BTD, ropes)
            if depth + 1 in cuts or depth + 1 == len(self.layers):
                kept[depth + 1] = x_BTD
        return kept

    def round_to_half(self) -> None:
        """Give every factor the values that a delta file stores."""
        for parameter in self.trained.values():
            parameter.data = parameter.data.half().float()

    def factors(self) -> Factors:
        """What a delta file stores: float16, on the CPU."""
        return {
            name: (update.A.detach().half().cpu(), update.B.detach().half().cpu())
            for name, update in self.updates.items()
        }


def dropout_of(layer: int, layers: int, most: float) -> float:
    """Share of the steps that leave out a layer: from 0 at the first to `most` at the last.

    Exponential in the depth, as in LayerSkip (arXiv 2404.16710, section 4.1).
    """
    return most * (math.exp(layer * math.log(2) / max(1, layers - 1)) - 1)


@torch.no_grad()
def merged(
    backbone: Backbone, factors: Mapping[str, tuple[Tensor, Tensor]], scale: float
) -> Backbone:
    """The adapted model as a backbone of its own, updates added to the weights.

    Its fingerprint tells it from the original: no state of one is taken for the other's.
    """
    digest = hashlib.sha256(f"{backbone.fingerprint} {scale!r}".encode())
    layers = [_sharing_copy(layer) for layer in backbone.layers]
    for name, (a_RK, b_NR) in sorted(factors.items()):
        digest.update(name.encode() + a_RK.numpy().tobytes() + b_NR.numpy().tobytes())
        _, number, module = name.split(".", 2)
        linear = layers[int(number)].get_submodule(module)
        assert isinstance(linear, nn.Linear)
        place = linear.weight.device
        delta_NK = (b_NR.float().to(place) @ a_RK.float().to(place)) * scale
        linear.weight = nn.Parameter(linear.weight + delta_NK, requires_grad=False)
    return replace(backbone, layers=layers, fingerprint=digest.hexdigest())


def _sharing_copy(layer: DecoderLayer) -> DecoderLayer:
    """Modules of its own, the parameters the original's."""
    made: DecoderLayer = copy.deepcopy(layer, {id(p): p for p in layer.parameters()})
    return made
