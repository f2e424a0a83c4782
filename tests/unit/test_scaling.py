"""Scaling: every point asked for is measured, on a cloud that really holds what it says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support import random_artifact
from typer.testing import CliRunner

from collm.bench.capacity import Cloud
from collm.bench.scaling import ScalingOptions, run_scaling
from collm.bench.scaling_plot import draw_scaling
from collm.cli.main import app
from collm.errors import UsageError
from collm.limits import DEFAULT_LIMITS
from collm.link.memory import MemoryCloud
from collm.model.artifact import Artifact
from collm.runtime.stage import Stage
from collm.session.cloud import CloudService

OPTIONS = ScalingOptions(contexts=(8, 32), sessions=(1, 3), positions=12, placement=2, steps=2)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("tiny") / "artifact"
    return random_artifact(folder, cuts=(1, 2, 3), weights="int4", max_position_embeddings=64)


def test_every_point_is_measured(artifact: Artifact, tmp_path: Path) -> None:
    stage = Stage(artifact, range(4))

    @contextmanager
    def open_cloud() -> Iterator[Cloud]:
        with MemoryCloud(CloudService(stage, DEFAULT_LIMITS), DEFAULT_LIMITS) as memory:
            yield Cloud(connect=memory.connect, pid=os.getpid())

    report = run_scaling(artifact, [5, 17, 42], open_cloud, OPTIONS)
    assert [(row.first_layer, row.positions) for row in report.context] == [
        (0, 8), (0, 32), (2, 8), (2, 32)]  # fmt: skip
    assert [(row.first_layer, row.sessions) for row in report.sessions] == [
        (0, 1), (0, 3), (2, 1), (2, 3)]  # fmt: skip
    assert [row.layers for row in report.depth] == [1, 2, 3, 4]
    assert all(0 < row.step.median <= row.round_trip.median for row in report.context)
    longer, deeper = report.context[1], report.depth[-1]
    assert longer.session_bytes >= report.context[0].session_bytes
    assert deeper.session_bytes > report.depth[0].session_bytes
    draw_scaling(report, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 5_000
    with pytest.raises(UsageError, match="context of 64 leaves room"):
        run_scaling(artifact, [5], open_cloud, ScalingOptions(
            contexts=(64,), sessions=(1,), positions=8, placement=2, steps=2))  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["scaling", "--sessions", "0"], "--sessions '0'"),
        (["capacity", "--placements", "4"], "--placements 4"),
        (["capacity", "--setting", "verified colour=red"], "colour"),
    ],
)
def test_bad_input_gets_a_line(artifact: Artifact, words: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["bench", words[0], str(artifact.folder), *words[1:]])
    assert done.exit_code != 0
    assert said in str(done.exception) and "\n" not in str(done.exception)
