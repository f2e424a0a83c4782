"""`collm bench table` on a tiny model, its cloud in this process; the processes have e2e tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support import random_artifact, token_ids

from collm.bench.answer_lines import FILE
from collm.bench.contenders import all_contenders, choose_contenders
from collm.bench.cores import choose_cores, cpu_seconds
from collm.bench.quality import Prompt
from collm.bench.table import Length, Table
from collm.bench.table_answers import TableAnswer, TableFile, TableHeader
from collm.cli.main import main
from collm.errors import PromptError, UsageError
from collm.limits import Limits
from collm.link.base import Link
from collm.link.memory import MemoryCloud
from collm.link.shapes import LinkShape
from collm.model.artifact import Artifact
from collm.runtime.stage import Stage
from collm.session.cloud import CloudService

LIMITS = Limits(connect_seconds=3.0, verdict_seconds=5.0, linger_seconds=0.2, kv_step=16)
LENGTH = Length(tokens=8, naive_tokens=3)
SHAPES = [LinkShape(name=name, delay_seconds=0.0) for name in ("near", "far")]
PROMPTS = [Prompt(ids=tuple(token_ids(i, 8 + i)), domain="chat", reference=None) for i in range(2)]
HEADER = TableHeader(
    fingerprint="f", manifest="m", data="d", tokens=8, naive_tokens=3, prompt_tokens=64,
    placement=2, threads=1, seed=0, cloud_load=0, edge_load=0,
)  # fmt: skip
NAMES = "naive-split,fair-split,verified,standalone"


class MemoryWorld:
    """One cloud in this process, whatever its arguments."""

    def __init__(self, cloud: MemoryCloud) -> None:
        self._cloud = cloud

    def dial(self, shape: LinkShape, arguments: tuple[str, ...]) -> Link:
        return self._cloud.connect()

    def cloud_pid(self, arguments: tuple[str, ...]) -> int:
        return os.getpid()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return random_artifact(tmp_path_factory.mktemp("table") / "artifact", cuts=(1, 2))


@pytest.fixture(scope="module")
def table(artifact: Artifact) -> Iterator[Table]:
    with MemoryCloud(CloudService(Stage(artifact, range(4), limits=LIMITS), LIMITS), LIMITS) as c:
        chosen = choose_contenders(NAMES, None)
        yield Table(artifact, chosen, SHAPES, MemoryWorld(c), placement=2, length=LENGTH)


@pytest.fixture(scope="module")
def answers(table: Table) -> list[TableAnswer]:
    return table.run(PROMPTS, 2, TableFile(None, HEADER))


def test_everyone_answers_everything(table: Table, answers: list[TableAnswer]) -> None:
    assert [one.key for one in answers] == table.keys(PROMPTS, 2)
    assert len(answers) == 2 * len(PROMPTS) * len(SHAPES) * len(table.contenders)
    for one in answers:
        tokens = 3 if one.contender == "naive split" else 8
        assert len(one.token_ids) == one.longest == tokens
        assert len(one.gap_seconds) == tokens - 1
        assert 0 < one.first_token_seconds <= one.wall_seconds
        assert one.wall_seconds == pytest.approx(one.first_token_seconds + sum(one.gap_seconds))


def test_lossless_contenders_give_the_full_models_text(answers: list[TableAnswer]) -> None:
    for one in answers:
        if one.contender != "standalone":
            assert one.identical and one.agreed == one.same_prefix == len(one.token_ids)
        else:
            assert one.requests == one.bytes_up == one.cloud_flops == 0


def test_splits_ask_for_every_token_and_the_naive_one_sends_all_again(
    answers: list[TableAnswer],
) -> None:
    for one in answers:
        if one.contender == "fair split":
            assert one.requests == 8
        if one.contender == "naive split":
            assert one.requests == 3
            rows = sum(one.prompt_tokens + i for i in range(3))
            assert one.bytes_up > 0.9 * 4 * 64 * rows  # zstd takes a little off


def test_a_run_broken_off_goes_on(table: Table, answers: list[TableAnswer], tmp_path: Path) -> None:
    block = len(SHAPES) * len(table.contenders)

    def stops(what: str, done: int, total: int) -> None:
        if done == block + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        table.run(PROMPTS, 2, TableFile(tmp_path, HEADER), stops)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"link": "cut sh')
    kept = TableFile(tmp_path, HEADER)
    assert len(kept.answers) == block
    before = dict(kept.answers)
    again = table.run(PROMPTS, 2, kept)
    assert [one.key for one in again] == [one.key for one in answers]
    assert all(again[i] == before[again[i].key] for i in range(block))
    assert TableFile(tmp_path, HEADER).answers == kept.answers


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    TableFile(tmp_path, HEADER)
    with pytest.raises(UsageError, match="made with --cloud-load 0, this run has 2; give another"):
        TableFile(tmp_path, replace(HEADER, cloud_load=2))


def test_names_are_checked(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [one.key for one in all_contenders()]
    assert keys[0] == "plain-cloud" and len(set(keys)) == len(keys) >= 12
    with pytest.raises(PromptError, match="--contenders 'nobody': expected some of plain-cloud"):
        choose_contenders("nobody", None)
    words = ["collm", "bench", "table", str(artifact.folder), "--modes", "bold"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and "--modes 'bold'" in said


def test_edge_and_cloud_have_cores_of_their_own_where_there_are_enough() -> None:
    two, four, one = (choose_cores(1, usable) for usable in ([0, 1], [0, 1, 2, 3], [5]))
    assert (two.edge, two.cloud, two.link, two.are_shared) == ((0,), (1,), (0, 1), False)
    assert (four.edge, four.cloud, four.link) == ((0,), (3,), (1, 2))
    assert one.are_shared
    assert cpu_seconds(os.getpid()) > 0
