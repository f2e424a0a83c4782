"""What a decoder-only transformer looks like, as far as its graph and its cache depend on it.

Not covered: mixture of experts, encoder-decoder models, learned position embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from collm.errors import ArtifactError

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding of one base, with llama3 or linear scaling where `factor` > 1.

    Source of the llama3 formula: Transformers `modeling_rope_utils._compute_llama3_parameters`.
    """

    base: float
    dims: int
    """Rotated dimensions of a head (even)."""
    scaling: str = "none"
    """`none`, `linear` or `llama3`."""
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192

    def inverse_frequencies(self) -> npt.NDArray[np.float64]:
        """float64 [dims / 2]."""
        exponents = np.arange(0, self.dims, 2, dtype=np.float64) / self.dims
        inv_freq = 1.0 / self.base**exponents
        if self.scaling == "linear":
            return inv_freq / self.factor
        if self.scaling == "llama3":
            wavelength = 2 * math.pi / inv_freq
            low = self.original_context / self.low_freq_factor
            high = self.original_context / self.high_freq_factor
            smooth = (self.original_context / wavelength - self.low_freq_factor) / (
                self.high_freq_factor - self.low_freq_factor
            )
            between = (1 - smooth) * inv_freq / self.factor + smooth * inv_freq
            scaled = np.where(wavelength > low, inv_freq / self.factor, between)
            return np.where(wavelength < high, inv_freq, scaled)
        return inv_freq

    def tables(self, positions: int) -> tuple[F32, F32]:
        """Cosine and sine caches, float32 [positions, dims / 2] each."""
        # float32 angles, as Transformers computes them: at long contexts float64 would differ more.
        inv_freq = self.inverse_frequencies().astype(np.float32)
        angles = np.arange(positions, dtype=np.float32)[:, None] * inv_freq[None, :]
        return np.cos(angles), np.sin(angles)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Everything but the weights. Sizes are counts of elements or positions."""

    family: str
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_size: int
    ffn_size: int
    vocab_size: int
    context_length: int
    norm_epsilon: float
    ropes: tuple[Rope, ...]
    layer_rope: tuple[int, ...]
    """Index into `ropes`, per layer."""
    layer_window: tuple[int, ...]
    """Sliding-window length per layer; 0 attends to the whole context."""
    attention_scale: float
    activation: str = "silu"
    """`silu` or `gelu_tanh`."""
    qk_norm: bool = False
    post_norms: bool = False
    """Gemma's extra norms after attention and after the feed-forward part."""
    embedding_scale: float = 1.0
    tied: bool = True

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Architecture:
        """Read what `to_json` wrote. Raises ArtifactError on anything else."""
        try:
            fields = dict(data)
            fields["ropes"] = tuple(Rope(**rope) for rope in fields["ropes"])
            fields["layer_rope"] = tuple(int(i) for i in fields["layer_rope"])
            fields["layer_window"] = tuple(int(i) for i in fields["layer_window"])
            made = cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"the manifest's architecture is malformed: {error}") from None
        sizes = (made.layers, made.hidden_size, made.heads, made.kv_heads, made.head_size)
        if min(*sizes, made.vocab_size, made.context_length) <= 0 or made.heads % made.kv_heads:
            raise ArtifactError("the manifest's architecture has sizes that fit no model")
        if len(made.layer_rope) != made.layers or len(made.layer_window) != made.layers:
            raise ArtifactError("the manifest's architecture does not describe every layer")
        return made
