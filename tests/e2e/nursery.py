"""`collm` commands as processes: started as users do, or without the second that imports take.

For the latter a process imports what commands need, and forks for each: what is run is the
command's own `main`, with its words, in a process of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_END_SECONDS = 30.0
_PROGRAM = """
import json, os, sys
import grpc, numpy, onnxruntime, tokenizers
import collm.cli.cloud, collm.cli.run, collm.cli.serve
from collm.cli.main import main

codes = {}
for line in sys.stdin:
    told = json.loads(line)
    if "words" in told:
        pid = os.fork()
        if pid == 0:
            os.setsid()
            for number, name in ((0, os.devnull), (1, told["out"]), (2, told["err"])):
                flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
                same = number == 2 and told["out"] == told["err"]
                os.dup2(1 if same else os.open(name, flags, 0o600), number)
            os.chdir(told["folder"])
            os.environ.update(told["environment"])
            sys.stdin = open(0)
            sys.argv = told["words"]
            code = 1
            try:
                main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(bool(end.code))
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(pid, flush=True)
    else:
        pid = told["pid"]
        if pid not in codes:
            found, status = os.waitpid(pid, os.WNOHANG)
            codes[pid] = os.waitstatus_to_exitcode(status) if found else None
        print(json.dumps(codes[pid]), flush=True)
        if codes[pid] is None:
            del codes[pid]
"""


def environment(folder: Path) -> dict[str, str]:
    """`collm`, `pip` and `python` as in the environment that the tests run in; no user's files."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {name: str(folder / name) for name in ("config", "cache", "state")}
    return os.environ | {
        "PATH": path,
        "XDG_CONFIG_HOME": own["config"],
        "XDG_CACHE_HOME": own["cache"],
        "XDG_STATE_HOME": own["state"],
        # litellm would ask the internet for prices, three times.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }


class Started:
    """Each command is started as a user does it."""

    def __init__(self) -> None:
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def begin(self, words: list[str], folder: Path, out: Path, err: Path) -> int:
        """Run `collm …`; the process id."""
        with out.open("wb") as said, err.open("ab" if err == out else "wb") as warned:
            process = subprocess.Popen(
                words, cwd=folder, env=environment(folder), stdout=said, stderr=warned
            )
        self._processes[process.pid] = process
        return process.pid

    def code(self, pid: int) -> int | None:
        """The exit code; None while it runs."""
        return self._processes[pid].poll()

    def end(self, pid: int) -> None:
        """SIGTERM, as the init system does it, and wait."""
        self._processes[pid].send_signal(signal.SIGTERM)
        self._processes[pid].wait(_END_SECONDS)

    def close(self) -> None:
        """Nothing is left to do."""


class Nursery:
    """The process that forks."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self, words: list[str], folder: Path, out: Path, err: Path) -> int:
        """Run `collm …`; the process id."""
        return int(
            self._ask(
                words=words,
                folder=str(folder),
                out=str(out),
                err=str(err),
                environment=environment(folder),
            )
        )

    def code(self, pid: int) -> int | None:
        """The exit code; None while it runs."""
        found: int | None = self._ask(pid=pid)
        return found

    def end(self, pid: int) -> None:
        """SIGTERM, as the init system does it, and wait."""
        if self.code(pid) is None:
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _END_SECONDS
        while self.code(pid) is None:
            assert time.monotonic() < deadline, "it does not end"
            time.sleep(0.02)

    def close(self) -> None:
        """End; what still runs goes on."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(_END_SECONDS)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _ask(self, **told: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())
