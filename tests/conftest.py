"""The real embedded model, built once a test session."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.e2e.conftest import collm

from collm.model.artifact import Artifact


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of SmolLM2-135M-Instruct as `collm build` makes it."""
    folder = tmp_path_factory.mktemp("artifacts") / "smollm2"
    ran = collm("build", "smollm2", folder, "--cuts", "5,10,15,20", timeout=120)
    assert ran.code == 0, ran.err
    return folder


@pytest.fixture(scope="session")
def artifact(smollm2: Path) -> Artifact:
    return Artifact(smollm2)
