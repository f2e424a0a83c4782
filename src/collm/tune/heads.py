"""Exit heads in PyTorch: a learned map of the states, an adapter, a norm; read out by the model's
own frozen unembedding.

- `linear`: x + W·[x, fed states]. Nothing else.
- `mlp`: W·[x, fed states], then the model's feed-forward part with its norm, added to it.
- `layer`: W·[x, fed states], then one or more decoder layers, whole context or a sliding window.

Fed states are those at earlier cuts (0: the embedding), which the device has at no cost. W starts
as the ridge regression from these states to the final one, adapters as the model's own last
layers, the norm as the final norm.

Shape suffixes as in `collm.tune.layer`; N are chosen rows, I = D · (1 + fed states).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from collm.errors import UsageError
from collm.tune.backbone import Backbone
from collm.tune.layer import DecoderLayer, FeedForward, RMSNorm, Ropes

KINDS = ("linear", "mlp", "layer")
RIDGE = 1e-4
"""Weight of the ridge penalty, in units of the states' mean square."""


@dataclass(frozen=True, kw_only=True)
class ExitSpec:
    """What an exit is made of. `window` 0 is the whole context, `feed` ascending, below `cut`."""

    cut: int
    kind: str = "layer"
    layers: int = 1
    window: int = 0
    feed: tuple[int, ...] = ()

    def check(self) -> None:
        """Raise UsageError for what cannot be made."""
        if self.kind not in KINDS:
            raise UsageError(f"kind {self.kind!r}: expected one of {', '.join(KINDS)}")
        if not 1 <= self.layers <= 2:
            raise UsageError(f"{self.layers} layers: expected 1 or 2")
        if self.window < 0 or (self.window and self.kind != "layer"):
            raise UsageError(f"window {self.window}: expected a count, and the kind layer")


class ExitHead(nn.Module):
    """Map, adapter and norm of one exit."""

    def __init__(self, backbone: Backbone, spec: ExitSpec) -> None:
        super().__init__()
        arch = backbone.architecture
        d, last = arch.hidden_size, arch.layers
        self.spec = spec
        self.linear = nn.Linear(d * (1 + len(spec.feed)), d, bias=False)
        if spec.kind == "layer":
            first = last - spec.layers
            copies = [backbone.copy_layer(first + i, spec.window) for i in range(spec.layers)]
            self.layers = nn.ModuleList(copies)
        elif spec.kind == "mlp":
            source = backbone.layers[-1]
            name = "pre_feedforward_layernorm" if arch.post_norms else "post_attention_layernorm"
            self.post_attention_layernorm: RMSNorm = copy.deepcopy(getattr(source, name))
            self.mlp: FeedForward = copy.deepcopy(source.mlp)
        self.norm: RMSNorm = copy.deepcopy(backbone.norm)
        self.requires_grad_(True)
        self.to(backbone.device)

    def start_from(self, map_DI: Tensor) -> None:
        """Take the ridge regression's map."""
        self.linear.weight.data.copy_(map_DI)
        if self.spec.kind == "linear":  # which adds the state itself
            self.linear.weight.data[:, : len(map_DI)] -= torch.eye(len(map_DI)).to(map_DI)

    def forward(self, x_BTI: Tensor, ropes: Ropes, rows_BT: Tensor) -> Tensor:
        """Normed states `[N, D]` at the rows of `rows_BT`; times the unembedding: logits."""
        d = self.linear.out_features
        if self.spec.kind == "linear":
            x_NI = x_BTI[rows_BT]
            out_ND = x_NI[:, :d] + self.linear(x_NI)
        elif self.spec.kind == "mlp":
            x_ND = self.linear(x_BTI[rows_BT])
            out_ND = x_ND + self.mlp(self.post_attention_layernorm(x_ND))
        else:
            x_BTD = self.linear(x_BTI)
            *before, last = (layer for layer in self.layers if isinstance(layer, DecoderLayer))
            for layer in before:
                x_BTD = layer(x_BTD, ropes)
            out_ND = last.forward_rows(x_BTD, ropes, rows_BT)
        normed: Tensor = self.norm(out_ND)
        return normed


class RidgeSums:
    """Ridge regression from several inputs to one target, fitted batch by batch, in f64."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.xx_II = torch.zeros(inputs, inputs, dtype=torch.float64)
        self.xy_ID = torch.zeros(inputs, outputs, dtype=torch.float64)

    def add(self, x_NI: Tensor, y_ND: Tensor) -> None:
        """Take in some rows, f32."""
        self.xx_II += (x_NI.T @ x_NI).double().cpu()
        self.xy_ID += (x_NI.T @ y_ND).double().cpu()

    def solve(self) -> Tensor:
        """The map `[D, I]`, f32."""
        penalty = RIDGE * self.xx_II.diagonal().mean().clamp(min=1e-12)
        eye_II = torch.eye(len(self.xx_II), dtype=torch.float64)
        return torch.linalg.solve(self.xx_II + penalty * eye_II, self.xy_ID).T.float()


def needed_cuts(specs: Iterable[ExitSpec]) -> tuple[int, ...]:
    """Every cut whose states the exits read, ascending; 0 is the embedding."""
    return tuple(sorted({cut for spec in specs for cut in (spec.cut, *spec.feed)}))
