"""Devices measured, told as JSON, read back with care; control groups of both kinds."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support import random_artifact, token_ids
from tests.unit.plan_world import device, said

from collm.errors import ArtifactError, UsageError
from collm.limits import DEFAULT_LIMITS
from collm.model.artifact import Artifact
from collm.policy.profile_json import device_from_json, device_to_json
from collm.runtime import acceptance as kept
from collm.runtime.acceptance import find_acceptance, keep_acceptance, read_acceptance
from collm.runtime.hardware import cpu_limits, hardware_words, memory_limit, usable_memory
from collm.runtime.profiling import artifact_key, measure_device
from collm.runtime.stage import Stage
from collm.session import planning


def test_a_profile_survives_json() -> None:
    made = device(battery=0.5, on_battery=True, celsius=61.5, cpu_quota=0.25, notes=("a", "b"))
    assert device_from_json(device_to_json(made)) == made


HOSTILE: list[Any] = [
    None, -1, 1e400, float("nan"), "x" * 5000, "\x1b[2J", [], {}, [1] * 10_000, 2**80, True,
    {"1": 1}, [[[]]], "9" * 400,
]  # fmt: skip


def test_no_change_of_a_field_does_more_than_a_clear_refusal() -> None:
    data = json.loads(device_to_json(device()))
    chance = random.Random(0)
    refused = 0
    for name in data:
        for value in HOSTILE:
            changed = {**data, name: value}
            try:
                device_from_json(json.dumps(changed))
            except UsageError as error:
                told = str(error)
                refused += 1
            else:
                told = ""
            assert "\n" not in told and len(told) < 400
    assert refused > 8 * len(data)
    for _ in range(200):
        costs = json.loads(device_to_json(device()))
        part = chance.choice(["blocks", "exits", "head", "threads"])
        costs["costs"][0][part] = chance.choice(HOSTILE)
        with pytest.raises(UsageError):
            device_from_json(json.dumps(costs))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"format": "collm-profile", "version": 2}', "[" * 100_000]
)
def test_what_is_no_profile_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="collm profile"):
        device_from_json(text)


def test_a_profile_too_large_is_not_even_parsed() -> None:
    with pytest.raises(UsageError, match="at most"):
        device_from_json(" " * (DEFAULT_LIMITS.max_profile_bytes + 1))


def test_every_part_is_measured_and_more_rows_never_cost_less(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "a")
    found = measure_device(artifact, budget=0.1, threads=[1, 2])
    assert found.bounds == (0, 1, 2, 4)
    assert [costs.threads for costs in found.costs] == [1, 2]
    assert found.best_threads in (1, 2)
    for costs in found.costs:
        assert len(costs.blocks) == 3 and costs.exits.keys() == {1, 2}
        for cost in (*costs.blocks, *costs.exits.values(), costs.head):
            assert list(cost.seconds) == sorted(cost.seconds) and cost.seconds[0] > 0
    for block, size in zip(artifact.manifest.blocks, found.block_bytes, strict=True):
        weights = block.graph.removesuffix(".onnx") + ".data"
        assert size >= artifact.manifest.files[weights].bytes
    assert found.kv_bytes == (256, 256, 512)  # a layer: keys and values, two heads of 16, float32
    assert found.notes == ()
    assert device_from_json(device_to_json(found)) == found


def test_blocks_that_are_not_here_are_taken_from_those_that_are(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "a")
    for name in (artifact.manifest.blocks[2].graph, "heads/full.onnx"):
        (artifact.folder / name).unlink()
    found = measure_device(Artifact(artifact.folder), budget=0.05, threads=[1])
    first, second, third = found.costs[0].blocks
    assert third.at(2) == pytest.approx(first.at(2) + second.at(2))  # two layers, as these have
    assert "blocks/002-004.onnx is not here: taken from the others" in found.notes
    assert found.costs[0].head.at(1) > 0
    for block in artifact.manifest.blocks[:2]:
        (artifact.folder / block.graph).unlink()
    with pytest.raises(ArtifactError, match="missing"):
        measure_device(Artifact(artifact.folder), budget=0.05)


def test_a_profile_is_measured_once_and_again_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = random_artifact(tmp_path / "a")
    folder = tmp_path / "cache"
    measured: list[float] = []

    def counted(*args: Any, **more: Any) -> Any:
        measured.append(more["budget"])
        return measure_device(*args, **more)

    monkeypatch.setattr(planning, "measure_device", counted)
    first = planning.device_profile(artifact, budget=0.05, folder=folder)
    again = planning.device_profile(Artifact(artifact.folder), budget=0.05, folder=folder)
    assert len(measured) == 1
    assert replace(again, memory_bytes=0) == replace(first, memory_bytes=0)
    planning.device_profile(artifact, budget=0.05, folder=folder, refresh=True)
    assert len(measured) == 2
    (file,) = folder.iterdir()
    file.write_text("{")  # as a full disk leaves it
    planning.device_profile(artifact, budget=0.05, folder=folder)
    assert len(measured) == 3
    one = planning.device_profile(artifact, budget=0.05, folder=folder, threads=[1])
    assert [costs.threads for costs in one.costs] == [1] and len(measured) == 3
    # Another device, or another artifact, is another profile.
    monkeypatch.setattr("collm.runtime.profiling.hardware_words", lambda: "another")
    planning.device_profile(artifact, budget=0.05, folder=folder)
    assert len(measured) == 4
    assert len(list(folder.iterdir())) == 2


def test_what_exits_say_is_kept_with_the_artifact(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "a")
    before, key = artifact.fingerprint, artifact_key(artifact)
    folder = tmp_path / "cache"
    prompts = [token_ids(1, 9), token_ids(2, 14)]
    made = planning.acceptance(artifact, prompts, tokens=12, folder=folder)
    assert made.cuts == (1, 2) and made.prompts.tolist() == [9, 14]
    assert 2 <= made.tokens <= 24
    fresh = Artifact(artifact.folder)
    assert kept.ACCEPTANCE in fresh.manifest.files
    assert (fresh.fingerprint, artifact_key(fresh)) == (before, key)
    found = find_acceptance(fresh, folder / "none")
    assert found is not None
    assert np.array_equal(found.confidences, made.confidences)
    assert np.array_equal(found.right, made.right)
    assert found.wires == made.wires
    assert all(0 <= share <= 1 for at in made.wires.values() for share in at.values())
    # A device that has only the first block has the record, too.
    (artifact.folder / artifact.manifest.blocks[2].graph).unlink()
    assert planning.acceptance(Artifact(artifact.folder), prompts, folder=folder).tokens
    with pytest.raises(UsageError, match="on a larger machine"):
        planning.acceptance(Artifact(artifact.folder), prompts, folder=folder, refresh=True)


def test_what_exits_say_is_what_they_say_in_a_session(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "a")
    prompt = token_ids(3, 10)
    found = kept.record_acceptance(artifact, [prompt], tokens=8)
    stage = Stage(artifact, range(4), exits=(1, 2))
    session, ids = stage.open(), list(prompt)
    session.append_ids(ids)
    for row in range(found.tokens):
        token = int(session.logits(session.position - 1)[-1].argmax())
        for column, cut in enumerate((1, 2)):
            result = session.exit_at(cut)
            assert (result.token_id == token) == found.right[row, column]
            assert result.confidence == pytest.approx(found.confidences[row, column], abs=1e-4)
        session.append_ids([token])


def test_records_that_are_damaged_or_another_s_are_not_believed(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "a")
    other = keep_acceptance(artifact, said([(0.5, True)]), tmp_path / "x")
    assert find_acceptance(artifact, tmp_path / "x") is None  # of another fingerprint
    whole = other.read_bytes()
    for text in (b"", b"{}", whole[: len(whole) // 2], whole.replace(b"collm-acc", b"xxxxx-acc")):
        path = tmp_path / "damaged.safetensors"
        path.write_bytes(text)
        with pytest.raises(UsageError, match="no sound record of exits"):
            read_acceptance(path)


def tree(root: Path, files: dict[str, str]) -> Path:
    """A file system with these files."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_tightest_of_nested_groups_counts_in_version_1(tmp_path: Path) -> None:
    v1 = {
        "proc/self/cgroup": "4:memory:/pod/app\n3:cpu,cpuacct:/pod/app\n",
        "sys/fs/cgroup/cpu/pod/app/cpu.cfs_quota_us": "50000\n",
        "sys/fs/cgroup/cpu/pod/app/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us": "25000\n",
        "sys/fs/cgroup/cpu/pod/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/memory/pod/app/memory.limit_in_bytes": "300000000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    root = tree(tmp_path, v1)
    limits = cpu_limits(root)
    assert (limits.quota, limits.period, limits.most_threads) == (0.25, 0.1, 1)
    assert memory_limit(root) == 300_000_000
    assert usable_memory(root) <= 300_000_000
    assert "25 % of a core's time, at most 300 MB" in hardware_words(root)


def test_groups_of_version_2_and_paths_that_only_the_host_sees(tmp_path: Path) -> None:
    v2 = {
        "proc/self/cgroup": "0::/of/the/host\n",
        "sys/fs/cgroup/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/memory.max": "150000000\n",
        "proc/cpuinfo": "model name\t: A Chip\nflags\t\t: avx2 fma\n",
    }
    root = tree(tmp_path, v2)
    assert memory_limit(root) == 150_000_000
    limits = cpu_limits(root)
    if limits.cores >= 2:
        assert (limits.quota, limits.most_threads) == (1.5, 2)
    assert hardware_words(root).startswith("A Chip (")


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n",
         "sys/fs/cgroup/cpu.max": "max 100000\n"},
        {"proc/self/cgroup": "0::/../../etc\n", "sys/fs/cgroup/cpu.max": "junk"},
        {"proc/self/cgroup": "\x00\xff:::\n:\n", "sys/fs/cgroup/memory.max": "-5"},
    ],
)  # fmt: skip
def test_no_limit_is_no_limit(tmp_path: Path, files: dict[str, str]) -> None:
    root = tree(tmp_path, files)
    assert memory_limit(root) is None
    assert cpu_limits(root).quota == 0.0
