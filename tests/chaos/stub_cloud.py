"""A cloud process whose computing costs nothing: what is left is the link and the sessions.

Run as a module; prints its address. The service, its sessions and their memory are the real ones.
"""

from __future__ import annotations

import asyncio
import resource
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from collm.limits import DEFAULT_LIMITS
from collm.link.grpc_server import serve
from collm.serve.cloud_process import give_memory_back, keep_memory_together
from collm.session.cloud import CloudService

CUT, LAYERS, WIDTH, VOCABULARY = 10, 30, 576, 64
FINGERPRINT = "f" * 64
LIMITS = replace(DEFAULT_LIMITS, max_sessions=1200, send_seconds=3.0)
LOGITS = np.eye(1, VOCABULARY, 7, dtype=np.float32)


class StubSession:
    """Knows how many positions it has, and says token 7."""

    exact = True
    max_positions = 2**20
    bytes = 0

    def __init__(self) -> None:
        self.position = 0

    def bytes_with(self, more: int) -> int:
        return 1000 * (self.position + more)

    def append_hidden(self, rows: np.ndarray[Any, Any]) -> None:
        assert rows.shape[1] == WIDTH
        self.position += len(rows)

    def run_to(self, layer: int) -> int:
        return self.position

    def logits(self, first: int) -> np.ndarray[Any, Any]:
        return np.repeat(LOGITS, self.position - first, axis=0)

    def crop(self, position: int) -> None:
        self.position = min(self.position, position)

    def close(self) -> None:
        self.position = 0


@dataclass
class _Named:
    fingerprint: str = FINGERPRINT
    hidden_size: int = WIDTH
    vocab_size: int = VOCABULARY
    layers: int = LAYERS


class StubStage:
    """What sessions ask of a stage."""

    artifact = architecture = _Named()
    layers = range(LAYERS)
    bounds = (0, CUT, LAYERS)

    def open(self, start: int) -> StubSession:
        return StubSession()


async def main() -> None:
    """Serve until killed."""
    service = CloudService(cast(Any, StubStage()), LIMITS)
    server = await serve(service, "127.0.0.1:0", LIMITS)
    tidying = asyncio.create_task(give_memory_back(service.sessions))
    print(server.address, flush=True)
    await asyncio.Event().wait()
    tidying.cancel()


if __name__ == "__main__":
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, most), most))
    keep_memory_together()
    asyncio.run(main())
