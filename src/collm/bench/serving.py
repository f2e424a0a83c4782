"""What the OpenAI-compatible server costs, against the same answers without it.

Three questions, with one cloud process and one server process of this machine:

* First token: an `Edge` in this process (what `collm run` does) and a streamed chat completion, in
  turns, the same prompts. The server keeps no caches meanwhile: every prompt is run anew.
* Stream: seconds a token from the first to the last, in the same pairs; and what is left of a
  token where nothing is computed (`serving_bare`): how long it is on its way from the engine to
  its reader, and the CPU time of the server's process.
* Crowd: so many conversations at once; who waits how long, and how much memory it takes.

Not covered: other machines as clients, TLS, a page that draws (scripts/page_cost.py).
"""

from __future__ import annotations

import asyncio
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil

from collm.bench.machine import this_machine
from collm.bench.stats import summary
from collm.config import Generation
from collm.limits import DEFAULT_LIMITS
from collm.link.dialer import Dialer
from collm.model.artifact import Artifact
from collm.serve.spawn import spawned_cloud, spawned_python, spawned_serve
from collm.session.edge import Edge

Progress = Callable[[str, int, int], None]

_SAMPLE_SECONDS = 0.1
_MOST_SECONDS = 300.0
"""Longest wait for an answer in a crowd."""


@dataclass(frozen=True, kw_only=True)
class ServingOptions:
    """What is run."""

    placement: int
    mode: str = "verified"
    tokens: int = 48
    rounds: int = 9
    streams: int = 50
    stream_tokens: int = 32
    bare_tokens: int = 1000
    bare_pace: float = 0.004
    """Seconds from token to token of the engine that computes nothing."""
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One answer as its reader saw it, seconds."""

    first: float
    each: float
    """From token to token."""
    total: float
    longest_gap: float
    tokens: int


def run_serving(
    folder: Path, prompts: Sequence[str], options: ServingOptions, progress: Progress
) -> dict[str, Any]:
    """All three; ready for `json.dumps`."""
    artifact, threads = Artifact(folder), options.threads
    total = options.rounds + 2
    with spawned_cloud(folder, threads=threads, limits=DEFAULT_LIMITS) as cloud:
        words = ["--cloud", cloud.address, "--placement", str(options.placement)]
        words += ["--threads", str(threads), "--mode", options.mode, "--name", "any"]
        with spawned_serve(folder, limits=DEFAULT_LIMITS, arguments=[*words, "--keep", "0"]) as one:
            edge = Edge(
                artifact,
                mode=options.mode,
                placement=options.placement,
                threads=threads,
                connect=Dialer([cloud.address]),
            )
            pairs: list[tuple[Timed, Timed]] = []
            with httpx.Client(timeout=_MOST_SECONDS) as client:
                for number in range(-1, options.rounds):
                    progress("answering with and without the server", max(0, number), total)
                    text = f"({number + 1}) {prompts[number % len(prompts)]}"
                    ways = [
                        lambda text=text: _direct(edge, text, options),
                        lambda text=text: _served(client, one.address, text, options),
                    ]
                    first = number % 2
                    made = {first: ways[first](), 1 - first: ways[1 - first]()}
                    if number >= 0:  # the first round warms both up
                        pairs.append((made[0], made[1]))
            edge.close()
        progress("a crowd", options.rounds, total)
        with spawned_serve(folder, limits=DEFAULT_LIMITS, arguments=words) as one:
            crowd = _crowd(one.address, [one.pid, cloud.pid], prompts, options)
    progress("an engine that takes no time", options.rounds + 1, total)
    bare = _bare(folder, options)
    progress("done", total, total)
    return {
        "options": asdict(options),
        "first_token": _compared([(a.first, b.first) for a, b in pairs]),
        "each_token": _compared([(a.each, b.each) for a, b in pairs]),
        "bare": bare,
        "crowd": crowd,
        "machine": asdict(this_machine()),
    }


def _bare(folder: Path, options: ServingOptions) -> dict[str, float]:
    """Seconds a token: on its way, and of CPU time."""
    module, tokens = "collm.bench.serving_bare", options.bare_tokens
    words = [str(folder), str(tokens), f"{options.bare_pace:g}"]
    with spawned_python(module, *words) as server, httpx.Client(timeout=_MOST_SECONDS) as client:
        process, ways = psutil.Process(server.pid), list[float]()
        before = 0.0
        for turn in range(2):  # the first warms up
            ways, before = [], sum(process.cpu_times()[:2])
            url = f"{server.address}/v1/chat/completions"
            with client.stream("POST", url, json=_body("", options) | {"model": "bare"}) as answer:
                for line in answer.iter_lines():
                    if _is_token(line):
                        now = time.monotonic()
                        said = json.loads(line[6:])["choices"][0]["delta"]["content"]
                        ways.append(now - float(said))
            assert len(ways) == tokens, f"round {turn}: {len(ways)} of {tokens} tokens"
        cpu = (sum(process.cpu_times()[:2]) - before) / tokens
    return {"on_its_way": statistics.median(ways), "p95": sorted(ways)[int(0.95 * len(ways))],
            "cpu": cpu}  # fmt: skip


def _compared(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Without and with the server, and the median of the pairs' differences. Seconds."""
    more = [b - a for a, b in pairs]
    return {
        "without": asdict(summary([a for a, _ in pairs])),
        "with": asdict(summary([b for _, b in pairs])),
        "more": asdict(summary(more)),
        "ratio": statistics.median(b / a for a, b in pairs),
    }


def _direct(edge: Edge, text: str, options: ServingOptions) -> Timed:
    came, started = [], time.perf_counter()
    ids = edge.tokenizer.encode_chat([{"role": "user", "content": text}])
    made = Generation(mode=options.mode, max_tokens=options.tokens, ignore_eos=True)
    for _ in edge.answer(ids, made):
        came.append(time.perf_counter())  # noqa: PERF401 - it is when it comes
    return _timed(started, came)


def _served(client: httpx.Client, url: str, text: str, options: ServingOptions) -> Timed:
    started = time.perf_counter()
    with client.stream("POST", f"{url}/v1/chat/completions", json=_body(text, options)) as answer:
        if answer.status_code != 200:
            raise RuntimeError(answer.read().decode(errors="replace")[:300])
        came = [time.perf_counter() for line in answer.iter_lines() if _is_token(line)]
    return _timed(started, came)


def _timed(started: float, came: Sequence[float]) -> Timed:
    gaps = [b - a for a, b in pairwise(came)]
    return Timed(
        first=came[0] - started,
        each=(came[-1] - came[0]) / max(1, len(came) - 1),
        total=came[-1] - started,
        longest_gap=max(gaps, default=0.0),
        tokens=len(came),
    )


def _body(text: str, options: ServingOptions, tokens: int = 0) -> dict[str, Any]:
    return {
        "model": "any",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens or options.tokens,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
    }


def _is_token(line: str) -> bool:
    """Whether an event of the stream carries a token that is certain."""
    return line.startswith("data: {") and '"source"' in line and '"preview"' not in line


def _crowd(
    url: str, pids: Sequence[int], prompts: Sequence[str], options: ServingOptions
) -> dict[str, Any]:
    """Everybody at once."""
    before = [psutil.Process(pid).memory_info().rss for pid in pids]
    with _watched(pids) as peak:
        started = time.perf_counter()
        answers = asyncio.run(_every(url, prompts, options))
        seconds = time.perf_counter() - started
    done = [one for one in answers if one.tokens == options.stream_tokens]
    return {
        "streams": options.streams,
        "finished": len(done),
        "tokens_per_second": sum(one.tokens for one in answers) / seconds,
        "first_token": asdict(summary([one.first for one in answers])),
        "slowest_first_token": max(one.first for one in answers),
        "total": asdict(summary([one.total for one in answers])),
        "slowest_of_median": max(one.total for one in answers)
        / statistics.median(one.total for one in answers),
        "longest_gap": max(one.longest_gap for one in answers),
        "server_bytes": {"before": before[0], "peak": peak[0]},
        "cloud_bytes": {"before": before[1], "peak": peak[1]},
    }


async def _every(url: str, prompts: Sequence[str], options: ServingOptions) -> list[Timed]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=_MOST_SECONDS, limits=limits) as client:

        async def one(number: int) -> Timed:
            text = f"[{number}] {prompts[number % len(prompts)]}"
            body = _body(text, options, options.stream_tokens)
            started = time.perf_counter()
            address = f"{url}/v1/chat/completions"
            async with client.stream("POST", address, json=body) as answer:
                if answer.status_code != 200:
                    raise RuntimeError((await answer.aread()).decode(errors="replace")[:300])
                came = [
                    time.perf_counter() async for line in answer.aiter_lines() if _is_token(line)
                ]
            return _timed(started, came)

        return await asyncio.gather(*map(one, range(options.streams)))


@contextmanager
def _watched(pids: Sequence[int]) -> Iterator[list[int]]:
    """The most memory that each process was resident in meanwhile."""
    peak, done = [0] * len(pids), threading.Event()
    processes = [psutil.Process(pid) for pid in pids]

    def look() -> None:
        while not done.wait(_SAMPLE_SECONDS):
            for i, process in enumerate(processes):
                peak[i] = max(peak[i], process.memory_info().rss)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
