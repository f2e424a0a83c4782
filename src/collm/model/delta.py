"""Deltas: a low-rank update of a model's matrices that lets its exits answer earlier.

`delta.safetensors` (format `collm-delta`, version 1) holds, for a matrix W [N, K] of a layer, the
float16 factors `layers.3.self_attn.q_proj.A` [r, K] and `.B` [N, r]; the adapted model has
W + scale · B · A in its place (LoRA, arXiv 2106.09685). Metadata: `source_sha256` of the one
checkpoint that it fits, `base` (its name), `rank`, `scale`, and `report`, a JSON object that says
what the adaptation costs at full depth. All seven matrices of SmolLM2-135M's 30 layers take
0.61 MB a rank: 9.8 MB at rank 16, 14.7 MB at 24.

Not covered: training one (`collm.tune.adapt`); the embedding, norms and biases, which stay.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from collm.errors import ArtifactError
from collm.limits import DEFAULT_LIMITS
from collm.model.architecture import Architecture
from collm.model.exit_file import ExitFile
from collm.model.files import sha256_of, write_tensors
from collm.model.manifest import Manifest

F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]

DELTA = "delta.safetensors"
"""A delta's name in the folder that `collm tune --adapt` writes, beside its exits."""
MAX_RANK = 1024
_FORMAT, _VERSION = "collm-delta", "1"
_NAME = re.compile(r"(layers\.(0|[1-9]\d{0,4})\.((?:self_attn|mlp)\.[a-z]+_proj))\.([AB])")
_MAX_REPORT = 64 * 1024
_MAX_SCALE = 1e4


def matrix_shapes(arch: Architecture) -> dict[str, tuple[int, int]]:
    """The matrices of a layer that may be adapted, and their shapes [N, K]."""
    d, ffn = arch.hidden_size, arch.ffn_size
    q_size, kv_size = arch.heads * arch.head_size, arch.kv_heads * arch.head_size
    return {
        "self_attn.q_proj": (q_size, d),
        "self_attn.k_proj": (kv_size, d),
        "self_attn.v_proj": (kv_size, d),
        "self_attn.o_proj": (d, q_size),
        "mlp.gate_proj": (ffn, d),
        "mlp.up_proj": (ffn, d),
        "mlp.down_proj": (d, ffn),
    }


class Delta:
    """A delta file, opened, its header checked. Raises ArtifactError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if path.stat().st_size > DEFAULT_LIMITS.max_exit_bytes:
                raise ArtifactError(f"{path}: larger than any delta")
            self.sha256 = sha256_of(path)
            self._reader = safe_open(path, framework="np")
            about: Mapping[str, str] = self._reader.metadata() or {}
            names = list(self._reader.keys())
        except FileNotFoundError:
            raise ArtifactError(f"{path}: no such file; expected a delta (safetensors)") from None
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{path}: not a readable delta file: {error}") from None
        if about.get("format") != _FORMAT or about.get("version") != _VERSION:
            raise ArtifactError(f"{path}: not a CoLLM delta of version {_VERSION}")
        try:
            self.source_sha256, self.base = about["source_sha256"], about["base"]
            self.rank, self.scale = int(about["rank"]), float(about["scale"])
            self.report = _report(about["report"])
        except (KeyError, ValueError, RecursionError) as error:
            raise ArtifactError(f"{path}: malformed metadata: {error}") from None
        scale_fits = math.isfinite(self.scale) and 0 < self.scale <= _MAX_SCALE
        if not 1 <= self.rank <= MAX_RANK or not scale_fits:
            raise ArtifactError(
                f"{path}: metadata out of range (rank {self.rank}, scale {self.scale})"
            )
        self._matrices = self._pairs(names)

    def check(self, arch: Architecture, source_sha256: str) -> None:
        """Raise ArtifactError unless it is for this checkpoint and every shape fits it."""
        if self.source_sha256 != source_sha256:
            raise ArtifactError(
                f"{self.path}: a delta for the checkpoint {self.base} with sha256 "
                f"{self.source_sha256[:12]}, this one has {source_sha256[:12]}; build from that "
                "checkpoint, or tune this one with collm tune --adapt"
            )
        shapes = matrix_shapes(arch)
        for name, (layer, module) in self._matrices.items():
            if layer >= arch.layers or module not in shapes:
                raise ArtifactError(
                    f"{self.path}: {name} is no matrix of this model ({arch.layers} layers)"
                )
            n, k = shapes[module]
            for part, expected in (("A", (self.rank, k)), ("B", (n, self.rank))):
                values = self._reader.get_slice(f"{name}.{part}")
                found = tuple(values.get_shape()), values.get_dtype()
                if found != (expected, "F16"):
                    raise ArtifactError(
                        f"{self.path}: {name}.{part} is {found[1]} of shape {found[0]}, expected "
                        f"F16 of {expected}"
                    )

    def has(self, name: str) -> bool:
        """Whether it changes the tensor `name` (`model.layers.3.self_attn.q_proj.weight`)."""
        return _matrix(name) in self._matrices

    def update(self, name: str) -> F32:
        """What it adds to the tensor `name`: float32 [N, K]. After `check` only."""
        a_RK, b_NR = (
            np.asarray(self._reader.get_tensor(f"{_matrix(name)}.{part}")).astype(np.float32)
            for part in "AB"
        )
        if not (np.isfinite(a_RK).all() and np.isfinite(b_NR).all()):
            raise ArtifactError(f"{self.path}: {name} has values that are not finite")
        made: F32 = (b_NR @ a_RK) * np.float32(self.scale)
        return made

    def record(self, weights: str) -> str:
        """What a manifest keeps of it, JSON. weights: the form of the adapted matrices there."""
        kept = {
            "sha256": self.sha256,
            "rank": self.rank,
            "scale": self.scale,
            "weights": weights,
            "report": self.report,
        }
        return json.dumps(kept, sort_keys=True)

    def _pairs(self, names: list[str]) -> dict[str, tuple[int, str]]:
        """The adapted matrices: (layer, module) by name."""
        parts: dict[str, set[str]] = {}
        matrices: dict[str, tuple[int, str]] = {}
        for name in names:
            if not (match := _NAME.fullmatch(name)):
                raise ArtifactError(f"{self.path}: {name[:80]} is no part of a delta")
            matrix, layer, module, part = match.groups()
            parts.setdefault(matrix, set()).add(part)
            matrices[matrix] = int(layer), module
        if not matrices:
            raise ArtifactError(f"{self.path}: the delta changes nothing")
        for matrix, found in parts.items():
            if len(found) != 2:
                raise ArtifactError(f"{self.path}: {matrix} has no {({'A', 'B'} - found).pop()}")
        return matrices


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """What `collm build --adapt` is given: a delta, and exits that were trained with it."""

    delta: Delta
    exits: tuple[Path, ...] = ()


def read_adaptation(path: Path) -> Adaptation:
    """A delta file, or a folder holding `delta.safetensors` and `exit-*.safetensors`.

    Raises ArtifactError.
    """
    if not path.is_dir():
        return Adaptation(delta=Delta(path))
    if not (path / DELTA).is_file():
        raise ArtifactError(f"{path}: holds no {DELTA}; expected what collm tune --adapt wrote")
    return Adaptation(
        delta=Delta(path / DELTA), exits=tuple(sorted(path.glob("exit-*.safetensors")))
    )


def write_delta(
    path: Path,
    factors: Mapping[str, tuple[F16, F16]],
    *,
    source_sha256: str,
    base: str,
    scale: float,
    report: Mapping[str, object],
) -> None:
    """Write a delta. `factors`: (A [r, K], B [N, r]) by `layers.N.….q_proj`. Atomic.

    Raises UsageError where the disk does not take it.
    """
    rank = len(next(iter(factors.values()))[0])
    tensors = {
        f"{name}.{part}": values
        for name, pair in factors.items()
        for part, values in zip("AB", pair, strict=True)
    }
    about = {
        "format": _FORMAT,
        "version": _VERSION,
        "source_sha256": source_sha256,
        "base": base,
        "rank": str(rank),
        "scale": repr(float(scale)),
        "report": json.dumps(report),
    }
    write_tensors(path, tensors, about)


def adaptation_of(manifest: Manifest) -> str:
    """sha256 of the delta that an artifact was built with; empty for an untouched model."""
    if not manifest.adaptation:
        return ""
    try:
        return str(json.loads(manifest.adaptation)["sha256"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ArtifactError(
            f"{manifest.name}: the manifest's adaptation names no sha256; build it again"
        ) from None


def check_exit(manifest: Manifest, exit_file: ExitFile) -> None:
    """Raise ArtifactError where an exit was trained on another adaptation of the model."""
    expected, found = adaptation_of(manifest), exit_file.metadata.get("adaptation", "")
    if found != expected:
        cure = "build one with collm build --adapt" if found else "tune one on this artifact"
        raise ArtifactError(
            f"{exit_file.path}: an exit for {_said(found)}, but the artifact is {_said(expected)}; "
            f"{cure}, or use an exit that fits"
        )


def _said(sha256: str) -> str:
    return f"the model adapted by delta {sha256[:12]}" if sha256 else "the untouched model"


def _matrix(name: str) -> str:
    return name.removeprefix("model.").removesuffix(".weight")


def _report(text: str) -> dict[str, Any]:
    if len(text) > _MAX_REPORT:
        raise ValueError(f"a report of {len(text)} characters")
    report = json.loads(text)
    if not isinstance(report, dict):
        raise ValueError("the report is no JSON object")
    return report
