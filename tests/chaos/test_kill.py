"""SIGKILL to the cloud in the midst of answers of the real model: the text stays what it was.

COLLM_CHAOS_KILLS says how many kills for each way of sampling and wire format (`make chaos`: 20).
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from collm.config import Generation, Sampling
from collm.limits import DEFAULT_LIMITS
from collm.link.dialer import Dialer
from collm.link.grpc_client import connect
from collm.link.shaper import LinkShaper
from collm.link.shapes import LinkShape
from collm.model.artifact import Artifact
from collm.session.edge import Edge

KILLS = int(os.environ.get("COLLM_CHAOS_KILLS", "1"))
SEED = int(os.environ.get("COLLM_CHAOS_SEED", "0"))
TOKENS = 40
SAMPLINGS = {"greedy": Sampling(), "sampled": Sampling(temperature=0.8, seed=7)}
COMBINATIONS = [(sampling, wire) for sampling in SAMPLINGS for wire in ("f32", "f16", "int8")]
if KILLS < 2:
    COMBINATIONS = [("greedy", "f32"), ("sampled", "f16"), ("greedy", "int8")]
PROMPT = "Why is the sky blue, and the sunset red?"

pytestmark = pytest.mark.e2e


class Cloud:
    """A cloud process on a port of its own, that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.address, self.metrics = f"127.0.0.1:{_free_port()}", f"127.0.0.1:{_free_port()}"
        self._folder = folder
        self.start()

    def start(self) -> None:
        """Return when it takes sessions."""
        command = [sys.executable, "-m", "collm", "cloud", str(self._folder), "--threads", "1",
                   "--listen", self.address, "--metrics", self.metrics, "--spawned"]  # fmt: skip
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline().decode().strip() == self.address

    def metric(self, name: str) -> float:
        """One of its figures."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=5) as reply:
            lines = reply.read().decode().splitlines()
        return float(next(line.split()[1] for line in lines if line.split()[0] == name))

    def kill(self) -> None:
        """As a machine that loses its power."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture(scope="module")
def cloud(smollm2: Path) -> Iterator[Cloud]:
    made = Cloud(smollm2)
    yield made
    made.kill()


@pytest.mark.timed
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("sampling", "wire"), COMBINATIONS)
def test_the_cloud_is_killed(cloud: Cloud, artifact: Artifact, sampling: str, wire: str) -> None:
    chances = random.Random(f"{SEED} {wire} {sampling}")
    edge = Edge(artifact, mode="verified", placement=10, wire=wire,
                connect=partial(connect, cloud.address))  # fmt: skip
    made = Generation(max_tokens=TOKENS, ignore_eos=True, sampling=SAMPLINGS[sampling])
    ids = edge.tokenizer.encode_chat([{"role": "user", "content": PROMPT}])
    wanted = edge.answer(ids, made).finish().token_ids
    for _ in range(KILLS):
        at, back_at = chances.randrange(TOKENS - 2), [0.0]
        answer = edge.answer(ids, made)
        told, waited = list[int](), None
        for piece in answer:
            if back_at[0] and waited is None:
                waited = time.monotonic() - back_at[0]
            told.append(piece.token.token_id)
            if len(told) == at + 1:
                # In the midst of computing, not politely between two tokens.
                time.sleep(chances.random() * 0.01)
                cloud.kill()
                threading.Thread(target=_return, args=(cloud, back_at)).start()
        assert told == wanted, f"killed after token {at}, seed {SEED}"
        assert answer.account.reconnects >= 1
        assert waited is not None and waited <= 2.0, f"{waited:.2f} s after the cloud's return"


def _return(cloud: Cloud, back_at: list[float]) -> None:
    cloud.start()
    back_at[0] = time.monotonic()


def test_the_edge_is_killed(cloud: Cloud, smollm2: Path) -> None:
    """The cloud's memory is back within 5 s."""
    text = " ".join(f"item {n}" for n in range(100))
    command = [sys.executable, "-m", "collm", "run", str(smollm2), text, "--raw", "--ignore-eos",
               "--cloud", cloud.address, "--mode", "cloud", "--max-tokens", "2000"]  # fmt: skip
    edge = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert edge.stdout is not None
    edge.stdout.read(60)  # it answers
    assert cloud.metric("collm_sessions") == 1
    assert cloud.metric("collm_kv_bytes") > 20e6
    edge.send_signal(signal.SIGKILL)
    edge.wait(10)
    edge.stdout.close()
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline and cloud.metric("collm_kv_bytes"):
        time.sleep(0.05)
    assert (cloud.metric("collm_sessions"), cloud.metric("collm_kv_bytes")) == (0, 0)


@pytest.mark.parametrize(("number", "seconds"), [(signal.SIGSTOP, 17.0), (signal.SIGTERM, 5.0)])
def test_another_cloud_takes_over(
    cloud: Cloud, smollm2: Path, artifact: Artifact, number: signal.Signals, seconds: float
) -> None:
    """SIGSTOP: the kernel goes on acknowledging, only keepalive sees it. SIGTERM: told at once."""
    first, other = Cloud(smollm2), cloud
    try:
        edge = Edge(artifact, mode="verified", placement=10,
                    connect=Dialer([first.address, other.address]))  # fmt: skip
        made = Generation(max_tokens=TOKENS, ignore_eos=True)
        ids = edge.tokenizer.encode_chat([{"role": "user", "content": PROMPT}])
        told, times = list[int](), [time.monotonic()]
        answer = edge.answer(ids, made)
        for piece in answer:
            told.append(piece.token.token_id)
            times.append(time.monotonic())
            if len(told) == 5:
                first.process.send_signal(number)
        assert answer.account.reconnects == 1
        longest = max(after - before for before, after in pairwise(times))
        assert longest < seconds + DEFAULT_LIMITS.connect_seconds
        whole = Edge(artifact, mode="verified", placement=30)
        assert told == whole.answer(ids, made).finish().token_ids
        if number == signal.SIGTERM:
            assert first.process.wait(DEFAULT_LIMITS.shutdown_seconds + 2) == 0
    finally:
        if first.process.poll() is None:
            first.process.send_signal(signal.SIGCONT)
        first.kill()


@pytest.mark.parametrize("mode", ["verified", "threshold"])
def test_the_link_is_down_for_the_middle_third(cloud: Cloud, artifact: Artifact, mode: str) -> None:
    """What is written meanwhile is marked; the final text is the undisturbed one."""
    plain = LinkShape(name="plain", delay_seconds=0.0)
    made = Generation(max_tokens=TOKENS, ignore_eos=True, mode=mode)
    address, shown, told, reached = f"127.0.0.1:{_free_port()}", 0, list[int](), 0
    with ExitStack() as links:
        link = links.enter_context(LinkShaper(plain, address, cloud.address))
        edge = Edge(artifact, mode=mode, placement=15, connect=Dialer([address]))
        ids = edge.tokenizer.encode_chat([{"role": "user", "content": PROMPT}])
        wanted = edge.answer(ids, made).finish()
        answer = edge.answer(ids, made)
        for piece in answer.with_previews():
            assert piece.token.provisional == piece.preview
            shown = shown + 1 if piece.preview else 0
            reached = max(reached, len(told) + shown)
            if not piece.preview:
                told.append(piece.token.token_id)
            if len(told) == TOKENS // 3 and not piece.preview:
                link.close()
            elif len(told) + shown == 2 * TOKENS // 3 and piece.preview:
                link = links.enter_context(LinkShaper(plain, address, cloud.address))
    account = answer.account
    assert told == wanted.token_ids == account.token_ids
    assert reached >= 2 * TOKENS // 3
    assert account.previewed and account.reconnects == 1 and not account.provisional
    assert account.withdrawn <= account.previewed


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
