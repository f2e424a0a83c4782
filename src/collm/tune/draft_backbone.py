"""The frozen model with a draft path in it: the states are the path's, the target is the model's.

An exit that is tuned on it learns to guess the full model's tokens from what the path makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from collm.model.artifact import Artifact
from collm.model.drafts import DraftPlan
from collm.model.stored import StoredWeights, float_tensors
from collm.tune.backbone import Backbone, new_layer
from collm.tune.layer import DecoderLayer


@dataclass(frozen=True, kw_only=True)
class DraftBackbone(Backbone):
    """A backbone whose states at cuts are those of a path; `layers` are the model's own."""

    path: Mapping[int, DecoderLayer]
    """The path's layers, thinned out and dequantised, by the layer of the model they come from."""

    @torch.no_grad()
    def path_states(self, ids_BT: Tensor, cuts: tuple[int, ...]) -> Tensor:
        """What the path's layers below each of `cuts`, ascending, make: f32 `[cuts, B, T, D]`."""
        x_BTD, ropes = self.embed(ids_BT), self.ropes(ids_BT.shape[1])
        kept = x_BTD.new_empty(len(cuts), *x_BTD.shape)
        first = 0
        for place, cut in enumerate(cuts):
            for layer in range(first, cut):
                if layer in self.path:
                    x_BTD = self.path[layer](x_BTD, ropes)
            kept[place], first = x_BTD, cut
        return kept


def draft_backbone(backbone: Backbone, artifact: Artifact, plan: DraftPlan) -> DraftBackbone:
    """The artifact's backbone with the path of `plan`. Its fingerprint is the path's, too."""
    stored, path = StoredWeights(artifact), {}
    for layer in plan.layers:
        weights = plan.layer(stored, layer)
        arch = replace(artifact.architecture, ffn_size=weights.down.shape[1])
        state = {
            name: torch.from_numpy(values).to(backbone.device)
            for name, values in float_tensors(weights, arch).items()
        }
        module = new_layer(arch, layer, None, state)
        module.load_state_dict(state, assign=True)
        path[layer] = module.requires_grad_(False).eval()
    own = {field.name: getattr(backbone, field.name) for field in fields(Backbone)}
    own["fingerprint"] = f"{backbone.fingerprint} {plan.digest(artifact)}"
    return DraftBackbone(**own, path=path)
