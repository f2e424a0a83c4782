"""`collm pull` killed at random points, or interrupted: no block travels twice.

COLLM_CHAOS_KILLS: how often (default 3). The seed is printed with every failure.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.contract.blob_servers import BlobServer, Manners
from tests.support import random_artifact, tree

from collm.model.store import Store

SEED = int(os.environ.get("COLLM_CHAOS_SEED", "7"))
KILLS = int(os.environ.get("COLLM_CHAOS_KILLS", "3"))
UNDER_WAY = 4 * 262_144
"""Most bytes that are sent and not yet written when a process dies: sockets, of 4 downloads."""


@pytest.mark.timeout(600)
def test_killed_and_restarted_no_block_travels_twice(tmp_path: Path) -> None:
    chances = random.Random(SEED)
    made = random_artifact(
        tmp_path / "a", cuts=(1, 2, 3), hidden_size=512, intermediate_size=2048,
        num_attention_heads=8, num_key_value_heads=4,
    )  # fmt: skip
    files = {f"/{name}": data for name, data in tree(made.folder).items()}
    blobs = {name: len(data) for name, data in files.items() if name != "/manifest.json"}
    total = sum(blobs.values())
    assert total > 40e6
    store = Store(tmp_path / "store")
    with BlobServer(files, Manners(bytes_per_second=20e6)) as server:
        command = [
            sys.executable, "-m", "collm", "pull", server.url, str(tmp_path / "out"), "--all",
            "--store", str(store.root),
        ]  # fmt: skip
        here = dict.fromkeys(blobs, 0)
        for run in range(KILLS + 1):
            sent, asked = sum(server.sent[name] for name in blobs), len(server.asked)
            # At least a byte: before, there is nothing to be interrupted in.
            more = max(1.0, chances.random() * (total - sent))
            wanted = sent + more if run < KILLS else float("inf")
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            deadline = time.monotonic() + 60
            while process.poll() is None and sum(server.sent[name] for name in blobs) < wanted:
                assert time.monotonic() < deadline, f"run {run}, seed {SEED}"
                time.sleep(0.001)
            ended_by = chances.choice((signal.SIGKILL, signal.SIGINT))
            process.send_signal(ended_by)
            said, _ = process.communicate(timeout=10)
            if run < KILLS and process.returncode != 0:  # done just before
                code = 130 if ended_by == signal.SIGINT else -signal.SIGKILL
                assert (process.returncode, said) == (
                    code, "interrupted; pull again to go on from here\n" if code == 130 else ""
                ), (run, SEED)  # fmt: skip
            time.sleep(0.05)  # what it had asked for reaches the server
            # Whole blobs are never asked for again; those begun, from where they broke off.
            for name, given in server.asked[asked:]:
                if name in blobs:
                    assert here[name] < blobs[name], (name, SEED)
                    assert given == (f"bytes={here[name]}-" if here[name] else ""), (name, SEED)
            here = {
                f"/{name}": store.progress(entry.sha256)
                for name, entry in made.manifest.files.items()
            }
        assert process.returncode == 0, (said, SEED)
        assert here == blobs
        for name, size in blobs.items():
            assert server.sent[name] <= size + KILLS * UNDER_WAY, (name, SEED)
        assert sum(server.sent[name] for name in blobs) <= total + KILLS * UNDER_WAY
    assert tree(tmp_path / "out") == tree(made.folder)
    assert all(len(path.name) == 64 for path in store.blobs.iterdir())
