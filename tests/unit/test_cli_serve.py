"""`collm serve`: what it is told, checked before anything is loaded, and what it is then set to."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support import random_artifact
from typer.testing import CliRunner

from collm.cli.main import app
from collm.errors import CollmError, Unreachable
from collm.link.base import Link
from collm.serve.openai.serving import Serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("tiny") / "artifact"
    random_artifact(made)
    return made


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("sk-0123456789abcdef\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `run_server` would have been given."""
    given: dict[str, Any] = {}

    def run(serving: Serving, taken: socket.socket, **words: Any) -> None:
        given["address"] = taken.getsockname()
        status = serving.engine.status()
        given.update(words, serving=serving, status=status, modes=serving.engine.modes)

    monkeypatch.setattr("collm.cli.serve.run_server", run)
    return given


def serve(*words: str | Path) -> Any:
    port = () if "--host" in words and "--port" not in words else ("--port", "0")
    return CliRunner().invoke(app, ["serve", *map(str, words), *port])


def test_a_port_that_is_taken_is_one_line(folder: Path, ran: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        made = CliRunner().invoke(app, ["serve", str(folder), "--port", str(port)])
    assert str(made.exception) == f"cannot listen on 127.0.0.1:{port}: Address already in use"
    assert not ran


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0:8000 takes connections from other machines"),
        (["--host", "0.0.0.0"], "no authentication (--api-key-file)"),
        (["--host", "::"], "and no authentication (--api-key-file): add that"),
        (["--host", "a b"], "is not an address"),
        (["--tls-cert", "x.pem"], "belong together"),
        (["--cors", "chat.example"], "expected a site such as https://chat.example"),
        (["--cors", "https://chat.example/page"], "expected a site"),
        (["--api-key-file", "nowhere"], "nowhere: cannot be read"),
        (["--mode", "magic"], "mode 'magic': expected one of auto, verified"),
        (["--mode", "threshold"], "mode threshold"),
        (["--mode", "verified", "--placement", "2"], "there is no cloud"),
        (["--placement", "3"], "placement 3"),
        (["--placement", "0"], "standalone with 0 layers has no exit to answer from"),
        (["--keep-memory", "lots"], "expected a size such as 512mb"),
        (["--temperature", "-1"], "temperature"),
        (["--wire", "f8"], "wire format 'f8'"),
    ],
)
def test_what_a_server_cannot_be_is_one_line(
    folder: Path, ran: dict[str, Any], words: list[str], said: str
) -> None:
    made = serve(folder, *words)
    assert isinstance(made.exception, CollmError), made.exception
    assert said in str(made.exception)
    assert "\n" not in str(made.exception)
    assert not ran


def test_keys_that_others_may_read_are_refused(folder: Path, keys: Path, ran: Any) -> None:
    keys.chmod(0o644)
    assert "chmod 600" in str(serve(folder, "--api-key-file", keys).exception)
    keys.chmod(0o600)
    keys.write_text("# none yet\n")
    assert "expected a token a line" in str(serve(folder, "--api-key-file", keys).exception)


def test_an_artifact_alone_is_served_whole_and_locally(folder: Path, ran: dict[str, Any]) -> None:
    assert serve(folder).exception is None
    serving = ran["serving"]
    assert ran["address"][0] == "127.0.0.1"
    assert serving.engine.settings.placement == 4
    assert serving.defaults.mode == "verified" and serving.defaults.sampling.temperature == 1.0
    assert serving.name == "random" and serving.keys is None and serving.origins == ()
    assert "localhost" in serving.hosts
    assert ran["status"].cloud is None


def test_a_part_without_a_cloud_answers_from_its_exits(folder: Path, ran: dict[str, Any]) -> None:
    assert serve(folder, "--placement", "2", "--exits", "2", "--threshold", "0.9").exception is None
    serving = ran["serving"]
    assert serving.defaults.mode == "standalone" and ran["modes"] == ("standalone",)
    assert serving.engine.exits == (2,) and serving.defaults.threshold == 0.9


def test_options_reach_the_server(
    folder: Path, keys: Path, ran: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    @contextmanager
    def linked(_folder: Path, cloud: str, *_: Any) -> Iterator[Callable[[], Link]]:
        asked.append(cloud)
        yield away

    def away() -> Link:
        raise Unreachable("nobody answers")

    monkeypatch.setattr("collm.cli.serve.cloud_link", linked)
    words = ["--host", "0.0.0.0", "--insecure", "--api-key-file", keys, "--name", "mine"]
    words += ["--cloud", "127.0.0.1:7", "--placement", "2", "--parallel", "3", "--queue", "0"]
    words += ["--cors", "https://Chat.example", "--allow-host", "my.box", "--no-page"]
    words += [
        "--port",
        "0",
        "--temperature",
        "0",
        "--wire",
        "f16",
        "--keep",
        "2",
        "--keep-memory",
        "5mb",
    ]
    made = serve(folder, *words)
    assert made.exception is None, made.exception
    serving, settings = ran["serving"], ran["serving"].engine.settings
    assert (settings.most_active, settings.most_waiting, settings.wire) == (3, 0, "f16")
    assert (settings.most_kept, settings.kept_bytes) == (2, 5_000_000)
    assert serving.name == "mine" and serving.origins == ("https://chat.example",)
    assert serving.keys.identity("sk-0123456789abcdef") == "line 1"
    assert "my.box" in serving.hosts and serving.page is None
    assert serving.defaults.sampling.temperature == 0.0
    assert "verified" in ran["modes"] and asked == ["127.0.0.1:7"]
