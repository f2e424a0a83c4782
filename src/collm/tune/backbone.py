"""The frozen full model in PyTorch, f32, from an artifact's own files: the weights as deployed.

Quantised weights are dequantised exactly; what differs from the runtime is the rounding of
activations inside its quantised kernels. Not covered: bf16 weights (run under
`torch.autocast` for bf16 arithmetic), models that do not fit into memory in f32.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from torch import Tensor

from collm.model.architecture import Architecture
from collm.model.artifact import Artifact
from collm.model.stored import StoredWeights
from collm.tune.layer import DecoderLayer, RMSNorm, Ropes


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """The full model, frozen. `unembedding_VD` is the embedding itself where they are tied."""

    architecture: Architecture
    layers: list[DecoderLayer]
    norm: RMSNorm
    embedding_VD: Tensor
    unembedding_VD: Tensor
    special_ids: list[int]
    """Ids of chat markers and other control tokens, ascending."""
    fingerprint: str
    """The artifact's."""
    source_sha256: str
    """Digest of the checkpoint that the artifact was built from."""
    device: torch.device

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Input embeddings, f32 `[B, T, D]`."""
        x_BTD = self.embedding_VD[ids_BT]
        scale = self.architecture.embedding_scale
        return x_BTD if scale == 1.0 else x_BTD * scale

    def ropes(self, positions: Tensor | int) -> Ropes:
        """The tables of every RoPE at `positions`, integers `[T]` or `[B, T]`; an int T: 0 to T-1.

        They are the runtime's tables (`Rope.tables`).
        """
        where = torch.arange(positions) if isinstance(positions, int) else positions.cpu()
        count = int(where.max()) + 1 if where.numel() else 0
        made = []
        for rope in self.architecture.ropes:
            half = (torch.from_numpy(table)[where].to(self.device) for table in rope.tables(count))
            cos, sin = (torch.cat((table, table), dim=-1) for table in half)
            made.append((cos, sin))
        return tuple(made)

    @torch.no_grad()
    def states(self, ids_BT: Tensor, cuts: tuple[int, ...]) -> Tensor:
        """The residual stream at each of `cuts`, then before the final norm.

        ids_BT: sequences from position 0; what fills shorter ones up on the right changes no
        other row. Returns f32 `[cuts + 1, B, T, D]` in the order of `cuts`; cut 0 is the embedding.
        """
        last = self.architecture.layers
        assert all(0 <= cut <= last for cut in cuts), f"cuts {cuts} of {last} layers"
        x_BTD = self.embed(ids_BT)
        ropes = self.ropes(ids_BT.shape[1])
        kept = x_BTD.new_empty(len(cuts) + 1, *x_BTD.shape)
        for depth in range(last + 1):
            for place, cut in enumerate((*cuts, last)):
                if cut == depth:
                    kept[place] = x_BTD
            if depth < last:
                x_BTD = self.layers[depth](x_BTD, ropes)
        return kept

    def logits(self, x_ND: Tensor) -> Tensor:
        """Final norm and unembedding: `[..., D]` to `[..., V]`. Gradients reach `x_ND`."""
        logits_NV: Tensor = self.norm(x_ND) @ self.unembedding_VD.T
        return logits_NV

    def copy_layer(self, layer: int, window: int | None = None) -> DecoderLayer:
        """A trainable copy of one layer, where an exit's adapter starts; window as its own."""
        state = self.layers[layer].state_dict()
        copy = new_layer(self.architecture, layer, window, state)
        copy.load_state_dict({name: value.clone() for name, value in state.items()}, assign=True)
        copy.requires_grad_(True)
        return copy


def load_backbone(artifact: Artifact, *, device: str = "cpu") -> Backbone:
    """Read an artifact's model into f32 modules (540 MB for SmolLM2-135M).

    Raises ArtifactError for a missing or damaged file.
    """
    arch, stored, place = artifact.architecture, StoredWeights(artifact), torch.device(device)
    layers = []
    for layer in range(arch.layers):
        state = {n: torch.from_numpy(w).to(place) for n, w in stored.layer(layer).items()}
        module = new_layer(arch, layer, None, state)
        module.load_state_dict(state, assign=True)
        layers.append(module.requires_grad_(False).eval())
    norm = RMSNorm(arch.hidden_size, arch.norm_epsilon)
    norm.load_state_dict({"weight": torch.from_numpy(stored.final_norm())})
    embedding_VD = torch.from_numpy(stored.embedding()).to(place)
    added = json.loads(artifact.path("tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    return Backbone(
        architecture=arch,
        layers=layers,
        norm=norm.requires_grad_(False).to(place),
        embedding_VD=embedding_VD,
        unembedding_VD=embedding_VD
        if arch.tied
        else torch.from_numpy(stored.unembedding()).to(place),
        special_ids=sorted(int(token["id"]) for token in added if token["special"]),
        fingerprint=artifact.fingerprint,
        source_sha256=artifact.manifest.source_sha256,
        device=place,
    )


def new_layer(
    arch: Architecture, layer: int, window: int | None, state: dict[str, Tensor]
) -> DecoderLayer:
    """A layer for the tensors of `state`, which takes no memory and no time until it has them."""
    with torch.device("meta"):
        return DecoderLayer(arch, layer, window, bias="self_attn.q_proj.bias" in state)
