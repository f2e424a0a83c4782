"""`collm serve` as a process: over TLS, with a page, and how it ends."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import trustme
from tests.openai_server import CHAT, HELLO
from tests.support import random_artifact

from collm.serve.openai.server import listening

LONG = {**HELLO, "max_tokens": 450, "stream": True, "model": "random"}


@contextmanager
def process(*words: str | Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server, and its URL."""
    command = [sys.executable, "-m", "collm", "serve", *map(str, words), "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as made:
        assert made.stdout is not None and made.stderr is not None
        watchdog = threading.Timer(60, made.kill)
        watchdog.start()
        try:
            line = made.stdout.readline()
            assert line.startswith("serving random on http"), made.stderr.read()
            yield made, line.split(" on ")[1].split()[0]
        finally:
            watchdog.cancel()
            made.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("tiny") / "artifact"
    random_artifact(made)
    return made


def test_over_tls_and_a_stream_under_way_is_not_cut_off(folder: Path, tmp_path: Path) -> None:
    ca = trustme.CA()
    own = ca.issue_cert("localhost", "127.0.0.1")
    cert, key, authority = (tmp_path / name for name in ("cert.pem", "key.pem", "ca.pem"))
    own.private_key_pem.write_to_path(key)
    cert.write_bytes(b"".join(blob.bytes() for blob in own.cert_chain_pems))
    ca.cert_pem.write_to_path(authority)
    with process(folder, "--tls-cert", cert, "--tls-key", key) as (server, url):
        assert url.startswith("https://127.0.0.1:")
        trust = ssl.create_default_context(cafile=authority)
        with httpx.Client(base_url=url, verify=trust) as client:
            assert client.get("/readyz").json() == {"status": "ok"}
            with client.stream("POST", CHAT, json=LONG) as response:
                parts = response.iter_lines()
                assert json.loads(next(parts).removeprefix("data: "))["choices"]
                server.send_signal(signal.SIGTERM)
                assert [part for part in parts if part][-1] == "data: [DONE]"
        assert server.wait(10) == 0
        assert server.stderr is not None and "Traceback" not in server.stderr.read()


def test_answers_that_take_too_long_are_cut_off_at_the_end(folder: Path) -> None:
    # Nobody takes the answers of these: they are longer than what fits on the way.
    many = {**LONG, "n": 40}
    with process(folder) as (server, url):
        with httpx.Client(base_url=url) as client, client.stream("POST", CHAT, json=many) as one:
            next(one.iter_bytes())
            server.send_signal(signal.SIGINT)
            assert server.wait(20) == 0
        assert server.stderr is not None and "Traceback" not in server.stderr.read()


def test_small_pieces_are_sent_at_once() -> None:
    """Nagle's algorithm would hold a token back until the one before is acknowledged."""
    with listening("127.0.0.1", 0) as server:
        with socket.create_connection(server.getsockname()):
            accepted, _ = server.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
