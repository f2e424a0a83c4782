"""`collm chat` as people use it: in a terminal, through pipes, and with a server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.support import random_artifact
from tests.terminal import Terminal
from typer.testing import CliRunner

from collm.cli.main import app
from collm.errors import Unreachable

pytestmark = pytest.mark.e2e

LONG = 7000
"""Tokens: seconds, so that an answer can be broken off."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("chat") / "artifact"
    random_artifact(made, max_position_embeddings=8192)
    return made


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """Folders of a user who has nothing yet."""
    names = ("STATE_HOME", "RUNTIME_DIR", "CONFIG_HOME", "CACHE_HOME")
    made = {f"XDG_{name}": str(tmp_path / name.lower()) for name in names}
    for path in made.values():
        Path(path).mkdir(mode=0o700)
    return made


@pytest.fixture
def terminal(folder: Path, home: dict[str, str]) -> Iterator[Terminal]:
    made = Terminal("chat", folder, "--max-tokens", "6", env=home)
    yield made
    made.kill()


def test_a_conversation_in_a_terminal(
    terminal: Terminal, tmp_path: Path, home: dict[str, str]
) -> None:
    terminal.wait("/help lists commands")

    def say(keys: str, *answer: str) -> str:
        """At the next prompt; what came until the last of these words."""
        terminal.wait(">>>")
        terminal.type(keys)
        return "".join(terminal.wait(words) for words in answer)

    say("hello there\r", "6 tokens (edge 6)", "max-tokens)")
    told = say('"""first line\rsecond line"""\r', "6 tokens", "max-tokens)")
    assert "..." in told
    assert "prompt tokens were cached" in told  # the second turn goes on from the first
    say("one\x1b\rtwo\r", "6 tokens", "max-tokens)")
    say("/set temperature 0.9\r", "\r\ntemperature 0.9")
    say("/mode refine\r", "error: mode refine: there are")
    say("/stats\r", "in all: 3 answers, 18 tokens", "cached")
    say(f"/save {tmp_path}/kept.json\r", "6 messages")
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert [turn["content"] for turn in kept["turns"][::2]] == [
        "hello there",
        "first line\nsecond line",
        "one\ntwo",
    ]
    assert kept["settings"] == {"max-tokens": 6, "temperature": 0.9}
    say(f"/set max-tokens {LONG}\r", f"\r\nmax-tokens {LONG}")
    say("/set temperature 0\r", "\r\ntemperature 0")
    say("/set ignore-eos on\r", "\r\nignore-eos True")
    say("go on for long\r", "for long")
    terminal.more(300)
    terminal.type("\x03")
    terminal.wait("broken off; ")
    say("/set max-tokens 3\r", "\r\nmax-tokens 3")
    say("still there?\r", "3 tokens", "max-tokens)")
    say("\x03", "Ctrl-D or /bye leaves")
    say("\x04")
    assert terminal.end() == 0
    history = Path(home["XDG_STATE_HOME"]) / "collm" / "chat-history"
    assert "+second line" in history.read_text()
    assert history.stat().st_mode & 0o777 == 0o600


class Parrot(ThreadingHTTPServer):
    """A server that says the same to everything, unless it is told to be slow or busy."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ParrotHandler)
        self.is_busy = False
        self.silent = threading.Event()
        self.met = threading.Event()
        self.asked: list[list[str]] = []


class ParrotHandler(BaseHTTPRequestHandler):
    server: Parrot

    def do_GET(self) -> None:
        self._send(200 if self.path == "/v1/models" else 404, '{"data": [{"id": "parrot"}]}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append([one["content"] for one in body["messages"]])
        if self.server.silent.is_set():
            self.server.met.set()
            while self.server.silent.is_set():
                time.sleep(0.02)
        if self.server.is_busy:
            self._send(503, '{"error": {"message": "not now"}}')
            return
        chunk = json.dumps({"choices": [{"delta": {"content": "polly"}}]})
        self._send(200, f"data: {chunk}\n\ndata: [DONE]\n\n")

    def _send(self, code: int, text: str) -> None:
        with suppress(OSError):  # it may be gone
            self.send_response(code)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        return


def test_a_retry_that_fails_takes_nothing_away(home: dict[str, str]) -> None:
    with Parrot() as parrot:
        threading.Thread(target=parrot.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{parrot.server_port}"
        terminal = Terminal("chat", "--server", url, env=home)

        def say(keys: str, answer: str) -> None:
            terminal.wait(">>>")
            terminal.type(keys)
            terminal.wait(answer)

        try:
            say("hello\r", "polly")
            parrot.is_busy = True
            say("/retry\r", "error: ")
            parrot.is_busy = False
            parrot.silent.set()
            terminal.wait(">>>")
            terminal.type("/retry\r")
            assert parrot.met.wait(10)
            terminal.type("\x03")  # before the first token
            terminal.wait("broken off; ")
            parrot.silent.clear()
            say("and now?\r", "polly")
            say("\x04", "")
            assert terminal.end() == 0
        finally:
            parrot.silent.clear()
            terminal.kill()
            parrot.shutdown()
    assert parrot.asked[1:3] == [["hello"], ["hello"]]
    assert parrot.asked[3] == ["hello", "polly", "and now?"]


def piped(text: str, *words: str | Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "collm", "chat", *map(str, words)],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | env,
    )


def test_pipes_and_a_server_get_the_same_text(
    folder: Path, home: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--max-tokens", "6", "--temperature", "0")
    here = piped("hello\n/stats\nand now?\n", folder, "--lines", *words, env=home)
    assert here.returncode == 0, here.stderr
    assert "last:   6 tokens (edge 6)" in here.stdout
    serve = [sys.executable, "-m", "collm", "serve", str(folder), "--port", "0"]
    server = subprocess.Popen(
        serve, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | home
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().split(" on ")[1].split()[0]
        # The one server of this machine, unnamed; then named, with all of the input one question.
        there = piped("hello\n/stats\nand now?\n", "--lines", *words, env=home)
        assert there.returncode == 0, there.stderr
        kept = [line for line in here.stdout.split("\n") if ": " not in line]
        assert [line for line in there.stdout.split("\n") if ": " not in line] == kept
        record = json.loads(piped("hello", url, "--json", *words, env=home).stdout)
        assert record["text"] == kept[0]
        assert record["sources"] == {"edge": 6}
        monkeypatch.setenv("XDG_RUNTIME_DIR", home["XDG_RUNTIME_DIR"])
        ps = CliRunner().invoke(app, ["ps", "--json"])
        assert [(one["kind"], one["address"]) for one in json.loads(ps.stdout)] == [("serve", url)]
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(15)
        server.stdout.close() if server.stdout else None
    gone = CliRunner().invoke(app, ["chat", "hello", "--server", url])
    assert isinstance(gone.exception, Unreachable)
    assert "is it up? start one with: collm serve ARTIFACT" in str(gone.exception)


def test_nothing_asked(folder: Path, home: dict[str, str]) -> None:
    empty = piped("", folder, env=home)
    assert (empty.returncode, empty.stdout) == (2, "")
    assert empty.stderr == "error: the input is empty; expected a question\n"
