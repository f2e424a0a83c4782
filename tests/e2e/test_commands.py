"""The commands as a user runs them, on the real model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tests.e2e.conftest import collm

pytestmark = pytest.mark.e2e

KEYS = {
    "text", "token_ids", "tokens", "rounds", "bytes_up", "bytes_down", "edge_seconds",
    "cloud_seconds", "wall_seconds", "peak_rss_bytes", "model_bytes", "fingerprint",
}  # fmt: skip


def test_run_json_of_a_prompt_file(smollm2: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    records = [
        {"prompt": "Name a colour."},
        {"messages": [{"role": "system", "content": "Brief!"}, {"role": "user", "content": "Hi"}]},
    ]  # fmt: skip
    prompts.write_text("".join(json.dumps(r) + "\n" for r in records))
    ran = collm(
        "run", smollm2, "--prompts", prompts, "--cloud", "spawn", "--max-tokens", "12", "--json"
    )
    assert ran.code == 0, ran.err
    lines = ran.lines()
    assert len(lines) == 2
    for line in lines:
        assert line.keys() >= KEYS
        assert (
            line["fingerprint"] == json.loads(collm("info", smollm2, "--json").out)["fingerprint"]
        )
        assert [t["id"] for t in line["tokens"]] == line["token_ids"]
        assert {t["source"] for t in line["tokens"]} <= {"cloud", "exit@5", "exit@10", "exit@15"}
        assert line["rounds"] > 0 and line["bytes_up"] > 0 and line["text"].strip()


def test_standalone_needs_no_cloud_and_uses_the_exits_named(smollm2: Path) -> None:
    ran = collm("run", smollm2, "Hi", "--mode", "standalone", "--exits", "5,15",
                "--placement", "15", "--max-tokens", "8", "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    (line,) = ran.lines()
    assert {t["source"] for t in line["tokens"]} <= {"exit@5", "exit@15"}
    assert line["bytes_up"] == line["rounds"] == 0


def test_stop_strings_end_every_mode_at_the_same_place(smollm2: Path, cloud: str) -> None:
    def run(*options: str) -> dict[str, object]:
        ran = collm(
            "run", smollm2, "Why is the sky blue?", "--max-tokens", "40", "--json", *options
        )
        assert ran.code == 0, ran.err
        return dict(ran.lines()[0])

    whole = run("--placement", "30")
    words = str(whole["text"]).split()
    stop = f"{words[6]} {words[7]}"
    for options in (
        ["--placement", "30"],
        ["--cloud", cloud],
        ["--cloud", cloud, "--mode", "cloud"],
    ):
        got = run("--stop", stop, *options)
        assert got["text"] == str(whole["text"]).split(stop)[0]
        assert got["finish_reason"] == "stop"


def test_memory_follows_the_placement(smollm2: Path) -> None:
    """Blocks that are not placed cost nothing; embedding and head stay."""
    used = {}
    for placement in (5, 10, 15, 20, 30):
        ran = collm("run", smollm2, "Hi", "--mode", "standalone", "--placement", str(placement),
                    "--exits", "5", "--max-tokens", "4", "--json")  # fmt: skip
        assert ran.code == 0, ran.err
        used[placement] = ran.lines()[0]["model_bytes"]
    assert used[5] < used[10] < used[15] < used[20] < used[30]
    assert used[15] <= 0.72 * used[30], used


def test_blocks_not_placed_are_never_opened(smollm2: Path, tmp_path: Path) -> None:
    small = shutil.copytree(smollm2, tmp_path / "small")
    for name in ("015-020", "020-030"):
        (small / "blocks" / f"{name}.data").unlink()
        (small / "blocks" / f"{name}.onnx").unlink()
    ran = collm(
        "run", small, "Hi", "--mode", "standalone", "--placement", "15", "--max-tokens", "4"
    )
    assert ran.code == 0, ran.err


def test_interrupt_ends_cleanly_and_takes_the_spawned_cloud_along(smollm2: Path) -> None:
    command = [sys.executable, "-m", "collm", "run", str(smollm2), "Tell me a long story.",
               "--cloud", "spawn", "--max-tokens", "4000", "--ignore-eos"]  # fmt: skip
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell starts background jobs, these tests perhaps among them, with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    os.read(process.stdout.fileno(), 1)  # the first token is out
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=15)
    assert process.returncode == 130
    assert b"Traceback" not in err
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert not alive and gone


def test_a_killed_edge_leaves_no_cloud_behind(smollm2: Path) -> None:
    command = [sys.executable, "-m", "collm", "run", str(smollm2), "Tell me a long story.",
               "--cloud", "spawn", "--max-tokens", "4000", "--ignore-eos"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    os.read(process.stdout.fileno(), 1)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate(timeout=15)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_cloud_serves_until_terminated(smollm2: Path) -> None:
    command = [sys.executable, "-m", "collm", "cloud", str(smollm2), "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    address = line.split(" on ")[1].strip()
    ran = collm("run", smollm2, "Hi", "--cloud", address, "--max-tokens", "4")
    assert ran.code == 0, ran.err
    started = time.monotonic()
    process.terminate()
    _, err = process.communicate(timeout=15)
    assert process.returncode == 0 and "Traceback" not in err
    assert time.monotonic() - started < 6
    # The next one to come is told at once that nobody is there.
    ran = collm("run", smollm2, "Hi", "--cloud", address)
    assert ran.code == 2 and address in ran.err


def test_demo_is_equal(smollm2: Path) -> None:
    ran = collm("demo", "--artifact", smollm2, "--max-tokens", "24", "--json")
    assert ran.code == 0, ran.err
    (line,) = ran.lines()
    assert line["equal_to_whole_model"] is True
    assert sum(line["sources"].values()) == line["tokens"]
