"""llama.cpp as a baseline, in processes of its own.

A server that is not being asked is suspended: it uses no CPU when idle as it is, but what is
stopped cannot disturb the others' measurements. Not covered: GPU offload.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from collm.bench.failures import BaselineFailed

_END_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig:
    """What may make llama.cpp faster or slower."""

    flash_attention: bool
    mmap: bool

    def __str__(self) -> str:
        flash = "on" if self.flash_attention else "off"
        return f"flash attention {flash}, {'mmap' if self.mmap else 'no mmap'}"


CONFIGS = tuple(
    LlamaConfig(flash_attention=flash, mmap=mmap)
    for flash in (True, False)
    for mmap in (True, False)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """The times of one request; prefill and decode by llama.cpp's own clock."""

    prefill_seconds: float
    decode_seconds: float
    """Of all tokens but the first, which comes out of the prefill."""
    wall_seconds: float
    cpu_seconds: float


class LlamaCpp:
    """One loaded server. Raises BaselineFailed when it does not come up or ends."""

    def __init__(self, gguf: Path, config: LlamaConfig, *, threads: int, context: int) -> None:
        self.config = config
        settings = {"gguf": str(gguf), "threads": threads, "context": context, **asdict(config)}
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._child = subprocess.Popen(
            [sys.executable, "-m", "collm.bench.llama_cpp_worker", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            # A stopped process is not ended by a closed pipe. In a group of its own within our
            # session it is: when we die the kernel hangs up on orphaned, stopped groups.
            process_group=0,
        )
        self._process = psutil.Process(self._child.pid)
        try:
            self.system = str(self._read()["system"])
        except BaseException:
            self.close()
            raise
        self._process.suspend()

    def complete(self, prompt: Sequence[int], tokens: int) -> Completion:
        """Prefill `prompt` from nothing and make `tokens` greedily, whatever they are."""
        made = self._ask({"prompt": list(prompt), "tokens": tokens})
        timings = made["timings"]
        if (timings["prompt_n"], timings["predicted_n"]) != (len(prompt), tokens):
            raise BaselineFailed(f"llama.cpp did other work than asked: {json.dumps(timings)}")
        return Completion(
            prefill_seconds=timings["prompt_ms"] / 1e3,
            decode_seconds=timings["predicted_ms"] / 1e3,
            wall_seconds=made["wall_seconds"],
            cpu_seconds=made["cpu_seconds"],
        )

    def argmaxes(self, prompt: Sequence[int], answer: Sequence[int]) -> list[int]:
        """The token it would have put in the place of each of `answer`, given those before."""
        made = self._ask({"prompt": list(prompt), "answer": list(answer)})
        return [int(token) for token in made["argmaxes"]]

    def close(self) -> None:
        """End the process."""
        assert self._child.stdin is not None and self._child.stdout is not None
        if self._child.poll() is None:
            self._process.resume()
        self._child.stdin.close()
        try:
            self._child.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._child.stdout.close()
        self._said.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._child.stdin is not None
        self._process.resume()
        try:
            self._child.stdin.write(json.dumps(request).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None
        made = self._read()
        self._process.suspend()
        if "error" in made:
            raise BaselineFailed(f"llama.cpp refused a request: {made['error']}")
        return made

    def _read(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise self._failure()
        made: dict[str, Any] = json.loads(line)
        return made

    def _failure(self) -> BaselineFailed:
        code = self._child.wait()
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        why = lines[-1] if lines else f"it said nothing, exit code {code}"
        return BaselineFailed(f"llama.cpp ended: {why}")
