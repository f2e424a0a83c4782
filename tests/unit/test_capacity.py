"""Capacity: the search, the file that resumes, and replays against a real cloud's sessions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.support import random_artifact

from collm.bench.capacity import PLAIN, CapacityOptions, Cloud, find_capacity, run_capacity
from collm.bench.capacity_file import CapacityFile, Level
from collm.bench.quality import Prompt
from collm.bench.quality_settings import Setting
from collm.bench.replay import Client, record, same_reply
from collm.errors import ProtocolError, UsageError
from collm.limits import DEFAULT_LIMITS
from collm.link.memory import MemoryCloud
from collm.model.artifact import Artifact
from collm.runtime.stage import Stage
from collm.session.cloud import CloudService
from collm.wire.encoding import encode
from collm.wire.messages import Verdict

OURS = Setting(mode="verified", placement=2, criterion="confidence:0.05")
AHEAD = Setting(mode="verified", placement=2, criterion="confidence:0.05", ahead=0.0)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("tiny") / "artifact"
    return random_artifact(folder, cuts=(1, 2, 3), weights="int4", max_position_embeddings=96)


@pytest.mark.parametrize("true", [0, 1, 2, 5, 11, 16])
def test_the_search_finds_the_last_number_that_is_held(true: int) -> None:
    tried: list[int] = []
    assert find_capacity(lambda n: tried.append(n) or n <= true, 16) == true  # type: ignore[func-returns-value]
    assert len(tried) <= 10 and max(tried) <= 16


def test_replays_get_the_recorded_replies(artifact: Artifact, tmp_path: Path) -> None:
    service = CloudService(Stage(artifact, range(4)), DEFAULT_LIMITS)
    prompts = [Prompt(ids=(5, 17, 42 + n), domain="chat", reference=None)
               for n in range(2)]  # fmt: skip
    with MemoryCloud(service, DEFAULT_LIMITS) as memory:
        cloud = Cloud(connect=memory.connect, pid=os.getpid())
        options = CapacityOptions(target_seconds=30.0, tokens=8, seconds=0.2, most=2)
        kept = CapacityFile(tmp_path / "held.json", {"tokens": 8}, {})
        found = run_capacity(artifact, [PLAIN, OURS, AHEAD], prompts, cloud, options, kept)
    assert [one.clients for one in found] == [2, 2, 2]
    assert all(one.is_most and one.identical == 2 for one in found)
    # What is there is not measured again; other runs' files are refused.
    again = CapacityFile(tmp_path / "held.json", {"tokens": 8}, {})
    assert again.of(OURS).is_complete and again.of(OURS).levels == kept.of(OURS).levels
    with pytest.raises(UsageError, match="another --out"):
        CapacityFile(tmp_path / "held.json", {"tokens": 9}, {})


def test_a_cloud_that_says_something_else_is_noticed(artifact: Artifact) -> None:
    import threading

    service = CloudService(Stage(artifact, range(4)), DEFAULT_LIMITS)
    with MemoryCloud(service, DEFAULT_LIMITS) as memory:
        recordings = record(artifact, OURS, [(5, 17, 42)], memory.connect, tokens=6)
        other = record(artifact, OURS, [(5, 17, 43)], memory.connect, tokens=6)
        replies = [step.frame for step in other[0].steps if step.kind == "receive"]
        mixed = tuple(
            type(step)(step.kind, step.after, replies.pop(0), step.tokens)
            if step.kind == "receive" and replies
            else step
            for step in recordings[0].steps
        )
        changed = type(recordings[0])(steps=mixed, token_ids=(), seconds=1.0)
        client = Client([changed], memory.connect, number=0, delay=0.0, stop=threading.Event())
        client.start()
        client.join(20)
    assert isinstance(client.error, ProtocolError)
    assert "not deterministic" in str(client.error)


def test_clocks_are_no_difference() -> None:
    one, other = (
        encode(Verdict(epoch=0, base=1, accepted=1, next_token=5, logprob=-1.0,
                       cloud_seconds=seconds, logprobs_accepted=(-1.0,)))
        for seconds in (0.1, 0.2)
    )  # fmt: skip
    assert same_reply(one, other)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "held.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(UsageError, match="no results"):
        CapacityFile(path, {}, {})
    kept = CapacityFile(None, {}, {})
    level = Level(clients=1, p95_seconds=0.1, median_seconds=0.1, first_token_seconds=None,
                  tokens_per_second=10.0, cloud_cpu=0.5, generator_cpu=0.1,
                  cloud_memory_bytes=1)  # fmt: skip
    kept.add(PLAIN, level, 1, 1)
    assert kept.to_json()["results"][0]["curve"][0]["clients"] == 1
