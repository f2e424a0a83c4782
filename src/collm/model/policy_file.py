"""A policy file: a trained exit policy, as `collm tune-policy` writes it.

Safetensors with metadata::

    format "collm-policy", version "1", kind "network" | "linucb", fingerprint (the artifact's),
    exits (JSON list of cuts), features (JSON list of names, in order), about (JSON, how it was
    made)

What the tensors are is `collm.policy.learned`'s business. No pickle, no PyTorch.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from collm.errors import ArtifactError
from collm.model.artifact import Artifact
from collm.model.files import write_tensors

FORMAT, VERSION = "collm-policy", 1
KINDS = ("network", "linucb")
MAX_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class PolicyFile:
    """The contents of a policy file."""

    kind: str
    fingerprint: str
    exits: tuple[int, ...]
    features: tuple[str, ...]
    tensors: Mapping[str, npt.NDArray[Any]]
    about: Mapping[str, Any]


def write_policy(path: Path, policy: PolicyFile) -> None:
    """Write a policy file. Raises UsageError where the disk does not take it."""
    about = {
        "format": FORMAT,
        "version": str(VERSION),
        "kind": policy.kind,
        "fingerprint": policy.fingerprint,
        "exits": json.dumps(list(policy.exits)),
        "features": json.dumps(list(policy.features)),
        "about": json.dumps(dict(policy.about)),
    }
    write_tensors(path, policy.tensors, about)


def read_policy(path: Path, artifact: Artifact | None = None) -> PolicyFile:
    """Read a policy file; it has to be for `artifact` where that is given.

    Raises ArtifactError: damaged, of another artifact, of an unknown kind, or of exits that the
    artifact lacks.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_BYTES:
            raise ArtifactError(
                f"{path}: expected a file of collm tune-policy, of at most {MAX_BYTES} bytes"
            )
        with safe_open(path, framework="numpy") as reader:
            made = _policy(path, reader.metadata() or {}, reader)
    except OSError as error:
        raise ArtifactError(
            f"{path}: {error.strerror or 'cannot be read'}; expected a file made by collm "
            "tune-policy"
        ) from None
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: no sound policy file ({error})") from None
    if artifact is not None:
        _check_artifact(path, made, artifact)
    return made


def _policy(path: Path, tags: Mapping[str, str], reader: Any) -> PolicyFile:
    """Raises KeyError, TypeError or ValueError where the file is not sound."""
    if tags.get("format") != FORMAT:
        raise ArtifactError(f"{path}: no policy; expected a file made by collm tune-policy")
    if tags.get("version") != str(VERSION):
        raise ArtifactError(
            f"{path}: policy version {tags.get('version')}, this software reads {VERSION}"
        )
    if tags["kind"] not in KINDS:
        raise ArtifactError(
            f"{path}: policy kind {tags['kind'][:40]!r}; expected {' or '.join(KINDS)}"
        )
    exits = json.loads(tags["exits"])
    if not exits or exits != sorted(set(exits)) or not all(type(c) is int for c in exits):
        raise ValueError(f"exits {tags['exits'][:80]}")
    tensors = {name: np.asarray(reader.get_tensor(name)) for name in reader.keys()}  # noqa: SIM118
    for name, tensor in tensors.items():
        if tensor.dtype.kind != "f" or not np.isfinite(tensor).all():
            raise ValueError(f"{name} has values that are not finite numbers")
    return PolicyFile(
        kind=tags["kind"],
        fingerprint=tags["fingerprint"],
        exits=tuple(exits),
        features=tuple(str(name) for name in json.loads(tags["features"])),
        tensors=tensors,
        about=dict(json.loads(tags["about"])),
    )


def _check_artifact(path: Path, policy: PolicyFile, artifact: Artifact) -> None:
    if policy.fingerprint != artifact.fingerprint:
        raise ArtifactError(
            f"{path}: a policy for another artifact ({policy.fingerprint[:12]}…, not "
            f"{artifact.fingerprint[:12]}…); train one with: collm tune-policy {artifact.folder}"
        )
    offered = {entry.cut for entry in artifact.manifest.exits}
    missing = [str(cut) for cut in policy.exits if cut not in offered]
    if missing:
        raise ArtifactError(
            f"{path}: needs exit {missing[0]}, which {artifact.folder} does not have; put it in "
            "with: collm add-exit"
        )
