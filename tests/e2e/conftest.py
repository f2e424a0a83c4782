"""The real embedded model, built once a test session, and a cloud process to talk to."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from collm.limits import DEFAULT_LIMITS
from collm.model.artifact import Artifact
from collm.serve.spawn import spawned_cloud

DEADLINE_SECONDS = 60.0


@dataclass(frozen=True)
class Ran:
    """A finished `collm` command."""

    code: int
    out: str
    err: str
    seconds: float

    def lines(self) -> list[dict[str, Any]]:
        """JSON lines of standard output."""
        return [json.loads(line) for line in self.out.splitlines()]


def collm(*arguments: str | Path, timeout: float = DEADLINE_SECONDS) -> Ran:
    """Run the command as a user would."""
    command = [sys.executable, "-m", "collm", *map(str, arguments)]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    return Ran(done.returncode, done.stdout, done.stderr, time.monotonic() - started)


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


@pytest.fixture(scope="session")
def cloud(smollm2: Path) -> Iterator[str]:
    """Address of a real cloud process."""
    with spawned_cloud(smollm2, threads=1, limits=DEFAULT_LIMITS) as cloud:
        yield cloud.address
