"""Every command in the README runs. The make targets are CI's own: `.ci/run` calls them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.e2e


def commands() -> list[str]:
    """Lines of the README's sh blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def test_make_targets_exist_and_ci_runs_them() -> None:
    makefile = (ROOT / "Makefile").read_text()
    ci = (ROOT / ".ci" / "run").read_text()
    targets = [line.split()[1] for line in commands() if line.startswith("make ")]
    assert targets[:2] == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    for target in ("demo", "test", "check"):
        assert f"make {target}" in ci


@pytest.mark.timeout(600)
def test_collm_commands_run_as_written(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    # `collm` and `pip` as in the environment the tests run in.
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    # As written but for the port: another program's connection may leave from the README's.
    ports = {}
    for port in (":50051", ":50061", ":50080"):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            ports[port] = f":{probe.getsockname()[1]}"
    servers: list[subprocess.Popen[str]] = []
    ran = 0
    try:
        for written in commands():
            if not written.startswith("collm ") or " bench " in written:
                continue
            line = re.sub(r":50\d\d\d", lambda found: ports.get(found[0], found[0]), written)
            words = shlex.split(line)
            ran += 1
            if words[1] == "cloud":
                server = subprocess.Popen(
                    words, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True
                )
                servers.append(server)
                assert server.stdout is not None
                assert "serving" in server.stdout.readline()
                continue
            done = subprocess.run(
                words,
                cwd=tmp_path,
                env=env,
                capture_output=True,
                text=True,
                timeout=180,
                check=False,
            )
            assert done.returncode == 0, (line, done.stderr)
            assert done.stdout.strip(), line
    finally:
        for server in servers:
            server.send_signal(signal.SIGTERM)
            server.wait(15)
            if server.stdout is not None:
                server.stdout.close()
    assert ran >= 6
