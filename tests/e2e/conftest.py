"""Commands as users run them, and a cloud process of the real embedded model to talk to."""

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
def cloud(smollm2: Path) -> Iterator[str]:
    """Address of a real cloud process."""
    with spawned_cloud(smollm2, threads=1, limits=DEFAULT_LIMITS) as cloud:
        yield cloud.address
