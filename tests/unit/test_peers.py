"""Peers: everybody answers everything, figures are set against plain cloud's, programs end."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest

from collm.bench.cores import choose_cores
from collm.bench.failures import BaselineFailed, UnusableSetting
from collm.bench.peer_llama_rpc import LlamaRpc, find_programs
from collm.bench.peers import PLAIN, PeerReply, peer_rows, peers_markdown, run_peers
from collm.bench.quality import Prompt
from collm.link.shapes import NAMED_LINKS


class Clockwork:
    """Answers in a known time."""

    note = ""

    def __init__(self, name: str, per_token: float, ids: list[int]) -> None:
        self.name, self._per_token, self._ids = name, per_token, ids
        self.asked: list[int] = []

    def answer(self, prompt: Sequence[int], tokens: int) -> PeerReply:
        self.asked.append(tokens)
        return PeerReply(
            token_ids=self._ids[:tokens],
            arrivals=[self._per_token * (n + 1) for n in range(tokens)],
            near_cpu=0.1,
            far_cpu=0.2,
        )


def test_everybody_answers_and_is_set_against_the_plain_cloud() -> None:
    plain = Clockwork(PLAIN, 0.010, [1, 2, 3, 4] * 4)
    other = Clockwork("other", 0.025, [1, 2, 9, 4] * 4)
    prompts = [Prompt(ids=(5, 6), domain="", reference="", was_cut=False)]
    answers = run_peers([plain, other], prompts, tokens=4, rounds=3)
    assert plain.asked == other.asked == [8, 4, 4, 4]  # the first is the warm-up
    raw = {
        "options": {"tokens": 4},
        "peers": [{"name": PLAIN}, {"name": "other"}],
        "answers": [answer.to_json() for answer in answers],
    }
    first, second = peer_rows(raw)
    assert (first.against_plain, first.same_prefix) == (1, 4)
    assert second.against_plain == pytest.approx(2.5)
    assert (second.per_token, second.decode) == pytest.approx((0.025, 0.025))
    assert (second.near_cpu, second.far_cpu, second.same_prefix) == (0.025, 0.05, 2)
    assert "| other | 2.50 × | 25.0 | 25 | 25.0 | 25.0 / 50.0 | 2 of 4 |" in peers_markdown(raw)


def test_a_folder_without_the_programs_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(UnusableSetting, match="DGGML_RPC=ON"):
        find_programs(tmp_path)


_RPC = """
    import socket, sys
    listener = socket.create_server(("127.0.0.1", int(sys.argv[sys.argv.index("-p") + 1])))
    while True:
        listener.accept()[0].close()
"""
_SERVER = """
    import json, os, sys
    from http.server import BaseHTTPRequestHandler, HTTPServer
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200); self.end_headers()
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if asked["prompt"] == [13]:
                os._exit(1)
            self.send_response(200); self.end_headers()
            made = 1 if asked["prompt"] == [7] else asked["n_predict"]
            for n in range(made):
                self.wfile.write(b"data: " + json.dumps({"tokens": [n]}).encode() + b"\\n\\n")
            self.wfile.write(b'data: {"stop": true, "tokens": []}\\n\\n')
        def log_message(self, *_): pass
    port = int(sys.argv[sys.argv.index("--port") + 1])
    assert "--rpc" in sys.argv and sys.argv[sys.argv.index("-ngl") + 1] == "16"
    HTTPServer(("127.0.0.1", port), Answers).serve_forever()
"""


def program(path: Path, text: str) -> None:
    path.write_text(f"#!{sys.executable}\n{textwrap.dedent(text)}")
    path.chmod(0o755)


def split(folder: Path) -> LlamaRpc:
    return LlamaRpc(
        find_programs(folder),
        folder / "model.gguf",
        NAMED_LINKS["loopback"],
        far_layers=15,
        context=64,
        threads=1,
        cores=choose_cores(1),
    )


def test_the_programs_are_asked_timed_and_ended(tmp_path: Path) -> None:
    program(tmp_path / "ggml-rpc-server", _RPC)
    program(tmp_path / "llama-server", _SERVER)
    with split(tmp_path) as peer:
        reply = peer.answer([1, 2], 5)
        assert reply.token_ids == [0, 1, 2, 3, 4]
        assert len(reply.arrivals) == 5 and reply.arrivals == sorted(reply.arrivals)
        with pytest.raises(BaselineFailed, match="made 1 tokens, 5 were asked for"):
            peer.answer([7], 5)
        with pytest.raises(BaselineFailed, match="in mid-answer"):
            peer.answer([13], 5)
        pids = [peer._near.pid, peer._far.pid]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_program_that_does_not_come_up_is_a_line(tmp_path: Path) -> None:
    program(tmp_path / "ggml-rpc-server", "import sys; sys.exit(3)")
    program(tmp_path / "llama-server", _SERVER)
    with pytest.raises(BaselineFailed, match=r"ggml-rpc-server did not come up .exit code 3"):
        split(tmp_path)


def test_the_table_in_the_docs_is_made_from_its_raw_result() -> None:
    root = Path(__file__).parents[2]
    raw = json.loads((root / "docs/results/peers.json").read_text())
    assert peers_markdown(raw) in (root / "docs/benchmarks.md").read_text()
