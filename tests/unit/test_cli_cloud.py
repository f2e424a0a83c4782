"""`collm cloud` as an edge server: what it is told is checked before any weights are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support import random_artifact
from typer.testing import CliRunner

from collm.cli.main import app
from collm.errors import CollmError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("tiny") / "artifact"
    random_artifact(made, cuts=(1, 2, 3))
    return made


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `run_cloud` would have been given."""
    given: dict[str, Any] = {}
    monkeypatch.setattr("collm.cli.cloud.run_cloud", lambda *_, **words: given.update(words))
    return given


UP = ["--upstream", "127.0.0.1:7"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--blocks", "1:7"], "--blocks 1:7: expected FIRST:END, two of 0, 1, 2, 3, 4"),
        (["--blocks", "2:1"], "--blocks 2:1: expected FIRST:END"),
        (["--blocks", "1"], "such as 3:4"),
        (["--blocks", "1:3"], "something has to run the others; add --upstream HOST:PORT"),
        (UP, "--upstream has nothing to do after all 4 layers; add --blocks, such as --blocks 0:3"),
        (["--blocks", "1:3", "--upstream", "here"], "--upstream 'here' is not an address"),
        (["--blocks", "1:3", *UP, "--exits", "1"], "of layers 1 to 3 can ask 2, 3"),
        (["--blocks", "1:3", *UP, "--upstream-wire", "f8"], "expected one of f32, f16, int8"),
        (["--blocks", "1:3", *UP, "--exits", "2", "--criterion", "luck:1"], "luck"),
    ],
)
def test_what_an_edge_server_cannot_be_is_one_line(
    folder: Path, ran: dict[str, Any], words: list[str], said: str
) -> None:
    made = CliRunner().invoke(app, ["cloud", str(folder), *words])
    assert isinstance(made.exception, CollmError)
    assert said in str(made.exception)
    assert "\n" not in str(made.exception)
    assert not ran


def test_a_token_is_not_sent_up_in_the_clear(
    folder: Path, ran: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLLM_TOKEN", "t" * 20)
    words = ["cloud", str(folder), "--blocks", "1:3", "--upstream", "192.0.2.1:7"]
    made = CliRunner().invoke(app, words)
    assert "--upstream 192.0.2.1:7: the token would travel unencrypted; add --upstream-ca" in str(
        made.exception
    )
    assert not ran


def test_an_edge_servers_exits_are_not_a_clouds_drafts(folder: Path, ran: dict[str, Any]) -> None:
    words = ["cloud", str(folder), "--exits", "2,3", "--blocks", "1:3", *UP]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert (ran["layers"], ran["self_draft"]) == (range(1, 3), None)
    assert ran["upstream"].exits.cuts == (2, 3)
    assert ran["upstream"].exits.criterion.name == "confidence:0.8"
    assert CliRunner().invoke(app, ["cloud", str(folder), "--exits", "2"]).exit_code == 0
    assert (ran["layers"], ran["upstream"]) == (range(4), None)
    assert ran["self_draft"].criterion.name == "confidence:0.6"
    assert CliRunner().invoke(app, ["cloud", str(folder), "--blocks", "2:4"]).exit_code == 0
    assert (ran["layers"], ran["upstream"]) == (range(2, 4), None)
