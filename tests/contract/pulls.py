"""What the tests of pulling share: an artifact, and a pull of it that may say nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.exit_files import exit_file
from tests.support import random_artifact

from collm.limits import Limits
from collm.model.artifact import Artifact
from collm.model.exits import add_exit
from collm.model.manifest import Manifest
from collm.session.placed import placed_files
from collm.session.pull import Choose, Pulled, PullSettings, pull

LIMITS = Limits(connect_seconds=1.0, fetch_attempts=2, fetch_pause_seconds=0.01,
                fetch_longest_pause_seconds=0.02, store_wait_seconds=0.5)  # fmt: skip


def with_an_exit(root: Path) -> Artifact:
    """Four blocks, identity exits and one with an adapter and a shortlist."""
    artifact = random_artifact(root / "a", cuts=(1, 2, 3))
    path = exit_file(root / "x", artifact.architecture, 2, "layer", shortlist=40)
    add_exit(artifact.folder, path)
    return Artifact(artifact.folder)


def everything(manifest: Manifest) -> frozenset[str]:
    return frozenset(manifest.files)


def placed(layers: int) -> Choose:
    return lambda manifest: placed_files(manifest, "verified", layers, None)


def pulled(
    tmp_path: Path, *urls: str, choose: Choose = everything, warn: Any = None, **settings: Any
) -> Pulled:
    settings = {"store": tmp_path / "store", "folder": tmp_path / "out", **settings}
    return pull(urls, choose, PullSettings(limits=LIMITS, **settings), warn=warn or pytest.fail)


def of_ours(artifact: Artifact) -> dict[str, bytes]:
    """What a server of ours has, for a server that counts and misbehaves."""
    text = (artifact.folder / "manifest.json").read_bytes()
    listing = {
        "format": "collm-artifacts",
        "version": 1,
        "artifacts": [{"name": "random", "fingerprint": artifact.fingerprint}],
    }
    blobs = {
        f"/blobs/sha256/{entry.sha256}": (artifact.folder / name).read_bytes()
        for name, entry in artifact.manifest.files.items()
    }
    return {
        "/artifacts": json.dumps(listing).encode(),
        f"/artifacts/{artifact.fingerprint}/manifest.json": text,
        **blobs,
    }
