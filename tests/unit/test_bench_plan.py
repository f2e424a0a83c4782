"""Emulated devices on fake trees, and the report of a sweep."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from collm.bench.cgroups import DeviceSpec, emulated, parse_device
from collm.bench.plan_bench import report
from collm.errors import UsageError
from collm.policy.cost_model import Candidate

CLOUD = Candidate(mode="cloud")
WHOLE = Candidate(mode="verified", placement=30)


def as_json(way: Candidate) -> Any:
    return json.loads(json.dumps(asdict(way)))


def test_devices_are_written_as_they_are_read() -> None:
    for text in ("1@25:150mb", "1:300mb", "2:1000mb"):
        assert parse_device(text).name == text
    assert parse_device("1@25:150mb") == DeviceSpec(cores=1, percent=25, memory_bytes=150_000_000)
    for wrong in ("", "1", "0:1mb", "1@:1mb", "1:1gb", "-1:5mb", "1:0mb"):
        with pytest.raises(UsageError, match="such as 1@25:150mb"):
            parse_device(wrong)


def test_groups_of_version_1_get_the_device_s_limits_and_go_again(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "memory").mkdir()
    with emulated(parse_device("1@25:150mb"), (0,), tmp_path) as device:
        cpu, memory = device.folders
        assert (cpu / "cpu.cfs_quota_us").read_text() == "25000"
        assert (memory / "memory.limit_in_bytes").read_text() == "150000000"
        assert device.enforced == ["cores", "quota", "memory"]
        (memory / "memory.max_usage_in_bytes").write_text("77")
        assert device.peak == 77
        for folder in device.folders:  # a kernel's groups are empty to rmdir
            for file in folder.iterdir():
                file.unlink()
    assert not cpu.exists() and not memory.exists()


def test_groups_of_version_2(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory")
    with emulated(parse_device("2@150:1000mb"), (0,), tmp_path) as device:
        (group,) = device.folders
        assert (group / "cpu.max").read_text() == "150000 100000"
        assert (group / "memory.max").read_text() == "1000000000"
        for file in group.iterdir():
            file.unlink()


def test_what_cannot_be_enforced_is_not_claimed(tmp_path: Path) -> None:
    with emulated(parse_device("1@25:150mb"), (0,), tmp_path / "nowhere") as device:
        assert device.enforced == ["cores"]
        assert device.peak is None


def measured(way: Candidate, seconds: float | None) -> dict[str, Any]:
    line = {"device": "d", "link": "l", "kind": json.dumps(asdict(way)), "peak": 9}
    found = {} if seconds is None else {"token_seconds": seconds}
    return line | found | {"candidate": as_json(way), "fits": seconds is not None}


def planned(way: Candidate) -> dict[str, Any]:
    sweep = [{"candidate": as_json(one), "token_seconds": 0.02} for one in (CLOUD, WHOLE)]
    predicted = {"token_seconds": 0.02, "memory_bytes": 8}
    told = {"plan": as_json(way), "predicted": predicted, "sweep": sweep}
    return {"device": "d", "link": "l", "kind": "plan", **told}


@pytest.mark.parametrize(
    ("plan", "whole", "near", "fits"),
    [
        (CLOUD, 0.04, 1, True),
        (CLOUD, 0.01, 0, True),
        (WHOLE, None, 0, False),
        (WHOLE, 0.021, 1, True),
    ],
)
def test_a_cell_counts_where_the_plan_is_near_the_best_that_fits(
    plan: Candidate, whole: float | None, near: int, fits: bool
) -> None:
    lines = [{"kind": "run"}, planned(plan), measured(CLOUD, 0.02), measured(WHOLE, whole)]
    found = report(lines)
    assert found["within_10_percent"] == near
    assert found["all_fit"] is fits
    (cell,) = found["cells"]
    assert cell["errors"][0] == pytest.approx(0.02 / max(0.02, whole or 0))
