"""Exit files: trained exits as they are handed around, before an artifact takes them in.

Safetensors with metadata (format `collm-exit`, version 1: cut, kind, layers, window, feed,
temperature, training). `feed` is a JSON list of the earlier cuts whose states x' the exit reads too
(0: the embedding): its input is [x, x', …], I = d · (1 + fed cuts) wide. Tensors, matrices being
floats, or int8 with float16 block scales under `NAME.scale`:

- `norm.weight`, the norm before the unembedding; `shortlist`, the token ids that the exit knows;
- `linear.weight` [d, I]: all of the kind `linear` (x + W·input); for the kinds `mlp` and `layer`
  a map from the input to the states that the adapter works on (W·input), optional without a feed;
- kind `mlp`: `post_attention_layernorm.weight` and `mlp.{gate,up,down}_proj.weight`;
- kind `layer`: decoder layers `layers.0.`, `layers.1.`, … under their Hugging Face names.

Not covered: writing them (`collm.tune`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from collm.errors import ArtifactError
from collm.limits import DEFAULT_LIMITS
from collm.model.layers import Matrix
from collm.model.manifest import check_feed
from collm.model.quantize import BLOCK, Quantised, concatenate

F32 = npt.NDArray[np.float32]

_KINDS = ("identity", "linear", "mlp", "layer")
_MAX_LAYERS = 4


class ExitFile:
    """An exit file, opened and checked. Raises ArtifactError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if path.stat().st_size > DEFAULT_LIMITS.max_exit_bytes:
                raise ArtifactError(f"{path}: larger than any exit")
            self._reader = safe_open(path, framework="np")
            self.metadata: Mapping[str, str] = self._reader.metadata() or {}
            self._names = set(self._reader.keys())
        except FileNotFoundError:
            raise ArtifactError(f"{path}: no such file; expected an exit (safetensors)") from None
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{path}: not a readable exit file: {error}") from None
        if self.metadata.get("format") != "collm-exit" or self.metadata.get("version") != "1":
            raise ArtifactError(f"{path}: not a CoLLM exit of version 1")
        try:
            self.cut = int(self.metadata["cut"])
            self.kind = self.metadata["kind"]
            self.layers = int(self.metadata.get("layers", 0))
            self.window = int(self.metadata.get("window", 0))
            self.temperature = float(self.metadata.get("temperature", 1.0))
            self.feed = _feed(self.metadata.get("feed", "[]"), self.cut)
        except (KeyError, ValueError, RecursionError) as error:
            raise ArtifactError(f"{path}: malformed metadata: {error}") from None
        least = 1 if self.kind == "layer" else 0
        if not least <= self.layers <= _MAX_LAYERS:
            raise ArtifactError(f"{path}: {self.layers} layers; expected 1 to {_MAX_LAYERS}")
        sizes_fit = 0 <= self.window <= DEFAULT_LIMITS.max_positions
        if self.kind not in _KINDS or not sizes_fit or not 0.01 < self.temperature < 100:
            raise ArtifactError(f"{path}: metadata out of range (kind {self.kind!r})")
        if self.feed and (self.kind == "identity" or not self.has("linear.weight")):
            raise ArtifactError(
                f"{path}: feed {list(self.feed)} of the kind {self.kind}; expected linear.weight, "
                "and another kind than identity"
            )

    def fits(self, cuts: Collection[int]) -> bool:
        """Whether an artifact with these cuts has all that the exit reads."""
        return {0, *cuts}.issuperset(self.feed) and self.cut in cuts

    def has(self, name: str) -> bool:
        """Whether the file holds tensor `name`."""
        return name in self._names

    def tensor(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """A tensor of exactly this shape."""
        if name not in self._names:
            raise ArtifactError(f"{self.path}: tensor {name} is missing")
        found = tuple(self._reader.get_slice(name).get_shape())
        if found != shape:
            raise ArtifactError(f"{self.path}: {name} has shape {found}, expected {shape}")
        return np.asarray(self._reader.get_tensor(name))

    def floats(self, name: str, shape: tuple[int, ...]) -> F32:
        """A tensor as float32."""
        values = self.tensor(name, shape).astype(np.float32)
        if not np.isfinite(values).all():
            raise ArtifactError(f"{self.path}: {name} has values that are not finite")
        return values

    def matrix(self, name: str, shape: tuple[int, int], quantised: bool) -> Matrix:
        """A matrix as the artifact keeps it: int8 blocks, or float32."""
        if not self.has(f"{name}.scale"):
            return self.floats(name, shape)
        n, k = shape
        q = self.tensor(name, shape)
        if q.dtype != np.int8 or k % BLOCK:
            raise ArtifactError(
                f"{self.path}: {name} with scales is {q.dtype} of {k} inputs; expected int8 of a "
                f"multiple of {BLOCK}"
            )
        q = q.astype(np.int16).reshape(n, k // BLOCK, BLOCK) + 128
        scale = self.floats(f"{name}.scale", (n, k // BLOCK))
        packed = Quantised(bits=8, q=q.astype(np.uint8), scale=scale)
        return packed if quantised else packed.floats()

    def stacked(self, parts: Mapping[str, tuple[int, int]], quantised: bool) -> Matrix:
        """Matrices of the same inputs as one, in this order; `parts` maps names to shapes."""
        found = [self.matrix(name, shape, quantised) for name, shape in parts.items()]
        packed = [part for part in found if isinstance(part, Quantised)]
        if len(packed) == len(found):
            return concatenate(packed)
        return np.concatenate([m.floats() if isinstance(m, Quantised) else m for m in found])

    def shortlist(self, vocabulary: int) -> npt.NDArray[np.int64] | None:
        """Token ids that the exit knows, ascending; None for all."""
        if not self.has("shortlist"):
            return None
        ids = np.asarray(self._reader.get_tensor("shortlist")).astype(np.int64)
        if ids.ndim != 1 or len(ids) < 2 or ids.min() < 0 or ids.max() >= vocabulary:
            raise ArtifactError(f"{self.path}: the shortlist names tokens outside the vocabulary")
        if (np.diff(ids) <= 0).any():
            raise ArtifactError(f"{self.path}: the shortlist is not ascending")
        return ids


def _feed(text: str, cut: int) -> tuple[int, ...]:
    feed = json.loads(text)
    if not isinstance(feed, list):
        raise ValueError(f"feed {text[:80]!r} is not a list")
    check_feed(feed, cut)
    return tuple(feed)
