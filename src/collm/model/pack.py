"""Choosing, per matrix, the form in which an artifact keeps a checkpoint's weights."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from collm.errors import SourceError
from collm.model.delta import Delta
from collm.model.layers import LayerWeights, Matrix
from collm.model.quantize import BLOCK, Quantised, concatenate, quantise_int4, quantise_int8
from collm.model.sources.base import Checkpoint

F32 = npt.NDArray[np.float32]

WEIGHTS = ("int4", "int8", "fp32")


class Packer:
    """Reads a checkpoint matrix by matrix and packs it as `weights` says.

    int4 keeps 4-bit source matrices exactly, rounds float ones, and takes int8 for whatever the
    source holds in 5 to 8 bits, so that it never adds an error to an already quantised matrix
    that int8 would not. The embedding is int8 in both.

    delta: what to add to the matrices. Those that it changes take int8 where `weights` is int4:
    they no longer are the source's 4-bit values, and rounding them to 4 bits again would cost
    far more than the delta gains. Raises ArtifactError for a delta of another checkpoint.
    """

    def __init__(self, checkpoint: Checkpoint, weights: str, delta: Delta | None = None) -> None:
        if weights not in WEIGHTS:
            raise SourceError(f"weights {weights!r}: expected one of {', '.join(WEIGHTS)}")
        if delta is not None:
            delta.check(checkpoint.architecture, checkpoint.sha256())
        self._checkpoint = checkpoint
        self._weights = weights
        self._delta = delta

    @property
    def adapted_weights(self) -> str:
        """The form that the matrices changed by the delta take."""
        return "int8" if self._weights == "int4" else self._weights

    def layer(self, layer: int) -> LayerWeights:
        """All weights of one decoder layer."""
        p = f"model.layers.{layer}"
        arch, attention, mlp = self._checkpoint.architecture, f"{p}.self_attn", f"{p}.mlp"
        for matrix in (f"{attention}.o", f"{mlp}.gate", f"{mlp}.up", f"{mlp}.down"):
            if self._checkpoint.has(bias := f"{matrix}_proj.bias"):
                raise SourceError(f"the checkpoint has {bias}, and such a bias is not supported")
        # Gemma has four norms; its `post_attention_layernorm` is another one than Llama's.
        norm_2 = "pre_feedforward_layernorm" if arch.post_norms else "post_attention_layernorm"
        return LayerWeights(
            qkv=self._matrix([f"{attention}.{x}_proj.weight" for x in "qkv"]),
            qkv_bias=self._bias([f"{attention}.{x}_proj.bias" for x in "qkv"]),
            o=self._matrix([f"{attention}.o_proj.weight"]),
            gate_up=self._matrix([f"{mlp}.gate_proj.weight", f"{mlp}.up_proj.weight"]),
            down=self._matrix([f"{mlp}.down_proj.weight"]),
            norm_1=self.norm(f"{p}.input_layernorm.weight"),
            norm_2=self.norm(f"{p}.{norm_2}.weight"),
            q_norm=self.norm(f"{attention}.q_norm.weight") if arch.qk_norm else None,
            k_norm=self.norm(f"{attention}.k_norm.weight") if arch.qk_norm else None,
            post_norm_1=self._post_norm(f"{p}.post_attention_layernorm.weight"),
            post_norm_2=self._post_norm(f"{p}.post_feedforward_layernorm.weight"),
        )

    def norm(self, name: str) -> F32:
        """A norm's weight as it is applied."""
        return self._read(name) + np.float32(self._checkpoint.norm_offset)

    def embedding(self) -> Matrix:
        """[vocabulary, d], int8 or float32."""
        return self._eight_bits(["model.embed_tokens.weight"])

    def unembedding(self) -> Matrix:
        """[vocabulary, d], int8 or float32; the embedding where the two are tied."""
        if self._checkpoint.architecture.tied:
            return self.embedding()
        return self._eight_bits(["lm_head.weight"])

    def _post_norm(self, name: str) -> F32 | None:
        return self.norm(name) if self._checkpoint.architecture.post_norms else None

    def _bias(self, names: list[str]) -> F32 | None:
        if not self._checkpoint.has(names[0]):
            return None
        return np.concatenate([self._read(name) for name in names])

    def _matrix(self, names: list[str]) -> Matrix:
        if self._weights != "int4" or any(self._is_adapted(name) for name in names):
            return self._eight_bits(names)
        packed = [self._packed(name) for name in names]
        exact = [part for part in packed if part is not None and part.bits == 4]
        if len(exact) == len(names):
            return concatenate(exact)
        if any(self._checkpoint.is_quantised(name) for name in names):
            return self._eight_bits(names)
        return quantise_int4(self._floats(names))

    def _eight_bits(self, names: list[str]) -> Matrix:
        if self._weights == "fp32":
            return np.concatenate([self._read(name) for name in names])
        parts: list[Quantised] = []
        for name in names:
            exact = self._packed(name)
            keep = exact is not None and exact.bits == 8
            parts.append(exact if exact and keep else quantise_int8(self._floats([name])))
        return concatenate(parts)

    def _floats(self, names: list[str]) -> F32:
        floats = np.concatenate([self._read(name) for name in names])
        if floats.shape[1] % BLOCK:
            raise SourceError(
                f"{names[0]}: {floats.shape[1]} inputs are no multiple of {BLOCK}, as quantised "
                "weights need; build with --weights fp32"
            )
        return floats

    def _read(self, name: str) -> F32:
        floats = self._checkpoint.floats(name)
        self._check_shape(name, floats.shape)
        if self._delta is not None and self._delta.has(name):
            floats = floats + self._delta.update(name)
        return floats

    def _is_adapted(self, name: str) -> bool:
        return self._delta is not None and self._delta.has(name)

    def _packed(self, name: str) -> Quantised | None:
        if self._is_adapted(name):
            return None
        packed = self._checkpoint.quantised(name)
        if packed is not None:
            self._check_shape(name, packed.shape)
        return packed

    def _check_shape(self, name: str, found: tuple[int, ...]) -> None:
        arch = self._checkpoint.architecture
        d, q_size = arch.hidden_size, arch.heads * arch.head_size
        kv_size = arch.kv_heads * arch.head_size
        expected: tuple[int, ...] = {
            "embed_tokens": (arch.vocab_size, d),
            "lm_head": (arch.vocab_size, d),
            "q_proj": (q_size, d),
            "k_proj": (kv_size, d),
            "v_proj": (kv_size, d),
            "o_proj": (d, q_size),
            "gate_proj": (arch.ffn_size, d),
            "up_proj": (arch.ffn_size, d),
            "down_proj": (d, arch.ffn_size),
            "q_norm": (arch.head_size,),
            "k_norm": (arch.head_size,),
        }.get(name.split(".")[-2], (d,))
        if name.endswith(".bias"):
            expected = expected[:1]
        if found != expected:
            raise SourceError(f"{name} has shape {found}, the configuration says {expected}")
