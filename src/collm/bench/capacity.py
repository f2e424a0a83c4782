"""How many users one core of a cloud holds, for plain generation and for the split modes.

A cloud holds N clients when each gets a token in time: the 95th percentile, over all tokens of all
clients in steady state, of the *time per token* is at most the target. Tokens that come at once,
as after a verdict, share the time since the tokens before: (time of the round) / (its tokens). An
answer's first token, which waits for the prompt, is counted apart, but other users feel the work.

::

    for each setting:
        record a few answers of a real edge           # replay.py
        for N = 1, 2, 4, … and then bisecting:
            N clients replay them against the real cloud; measure between start-up and end

Not covered: a network between (links are loopback), several cores or threads of a cloud, users who
pause between questions.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import psutil

from collm.bench.capacity_file import CapacityFile, Level, Result
from collm.bench.cores import cpu_seconds, settled_cpu_seconds
from collm.bench.quality import Progress, Prompt
from collm.bench.quality_settings import BASELINE, Setting
from collm.bench.replay import Client, Recording, record
from collm.limits import DEFAULT_LIMITS, Limits
from collm.link.base import Link
from collm.model.artifact import Artifact

_MOST_RAMP_SECONDS = 4.0
_POLL_SECONDS = 0.05
PLAIN = replace(BASELINE, name="plain cloud")
"""What the others are compared with."""


def usual_settings(artifact: Artifact, placements: Sequence[int]) -> list[Setting]:
    """Plain cloud; per placement verified, and threshold with both starts of the cloud."""
    made = [PLAIN]
    for placement in placements:
        setting = Setting(mode="verified", placement=placement, criterion="confidence:0.6")
        made.append(replace(setting, name=f"verified @{placement}"))
        cuts = [entry.cut for entry in artifact.exits(None, placement)]
        if not cuts:
            continue
        paper = Setting(
            mode="threshold",
            placement=placement,
            criterion="confidence:0.8",
            exits=tuple(sorted({cuts[0], cuts[-1]})),
            first_cut=cuts[0],
            wire="f16",
            name=f"threshold 0.8 @{placement}, cloud from {cuts[0]}",
        )
        late = replace(paper, exits=None, first_cut=placement)
        made += [paper, replace(late, name=f"threshold 0.8 @{placement}, cloud from {placement}")]
    return made


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """The cloud under test."""

    connect: Callable[[], Link]
    pid: int


@dataclass(frozen=True, kw_only=True)
class CapacityOptions:
    """How it is measured."""

    target_seconds: float
    """Longest 95th percentile of the time per token."""
    tokens: int
    """Of every answer."""
    seconds: float
    """Of the steady state that is measured, each time."""
    most: int
    """Clients beyond which nothing is tried."""


def find_capacity(holds: Callable[[int], bool], most: int) -> int:
    """The largest number of clients, 0 to `most`, that is held: by doubling, then bisecting."""
    held, tried = 0, 1
    while holds(tried):
        if tried == most:
            return most
        held, tried = tried, min(2 * tried, most)
    while tried - held > 1:
        middle = (held + tried) // 2
        held, tried = (middle, tried) if holds(middle) else (held, middle)
    return held


def run_capacity(
    artifact: Artifact,
    settings: Sequence[Setting],
    prompts: Sequence[Prompt],
    cloud: Cloud,
    options: CapacityOptions,
    kept: CapacityFile,
    progress: Progress = lambda what, done, total: None,
    limits: Limits = DEFAULT_LIMITS,
) -> list[Result]:
    """Measure what is not in `kept` yet; PLAIN has to be the first of `settings`.

    Raises ProtocolError where a replay got other replies than the recording.
    """
    sessions = _Sessions(artifact, prompts, cloud, options.tokens, limits)
    for done, setting in enumerate(settings):

        def holds(clients: int, setting: Setting = setting, done: int = done) -> bool:
            level = kept.of(setting).levels.get(clients)
            if level is None:
                progress(f"{setting.label}: recording", done, len(settings))
                recordings = sessions.of(setting)
                progress(f"{setting.label}: {clients} clients", done, len(settings))
                level = measure(recordings, cloud, clients, options, limits)
                kept.add(setting, level, sessions.identical(setting), len(prompts))
            return level.p95_seconds <= options.target_seconds

        kept.finish(setting, find_capacity(holds, options.most), options.most)
    progress("done", len(settings), len(settings))
    return [kept.of(setting) for setting in settings]


class _Sessions:
    """Recordings, made when they are first needed; plain cloud's come before all others."""

    def __init__(
        self,
        artifact: Artifact,
        prompts: Sequence[Prompt],
        cloud: Cloud,
        tokens: int,
        limits: Limits,
    ) -> None:
        self._artifact = artifact
        self._prompts = [prompt.ids for prompt in prompts]
        self._cloud = cloud
        self._tokens = tokens
        self._limits = limits
        self._made: dict[str, list[Recording]] = {}

    def of(self, setting: Setting) -> list[Recording]:
        """One for each prompt."""
        if setting.key not in self._made:
            plain = self.of(PLAIN) if setting.key != PLAIN.key else []
            self._made[setting.key] = record(
                self._artifact,
                setting,
                self._prompts,
                self._cloud.connect,
                tokens=self._tokens,
                own=[one.token_ids for one in plain],
                limits=self._limits,
            )
        return self._made[setting.key]

    def identical(self, setting: Setting) -> int:
        """Answers that are the full model's."""
        pairs = zip(self.of(setting), self.of(PLAIN), strict=True)
        return sum(one.token_ids == plain.token_ids for one, plain in pairs)


def measure(
    recordings: Sequence[Recording],
    cloud: Cloud,
    clients: int,
    options: CapacityOptions,
    limits: Limits = DEFAULT_LIMITS,
) -> Level:
    """Let so many clients replay the recordings, and watch them once all have got a token.

    Where they do not all get one within `options.seconds` they are watched all the same.
    """
    stop = threading.Event()
    ramp = min(_MOST_RAMP_SECONDS, float(np.mean([one.seconds for one in recordings])))
    crowd = [
        Client(
            recordings,
            cloud.connect,
            number=number,
            delay=ramp * number / clients,
            stop=stop,
            limits=limits,
        )
        for number in range(clients)
    ]
    settled_cpu_seconds(cloud.pid)  # whoever was here before is gone
    begun = time.perf_counter()
    try:
        for client in crowd:
            client.start()
        while time.perf_counter() < begun + ramp + options.seconds and not stop.is_set():
            if all(client.shown for client in crowd):
                break
            time.sleep(_POLL_SECONDS)
        clocks = {"cloud": cpu_seconds(cloud.pid), "here": time.process_time()}
        start = time.perf_counter()
        stop.wait(options.seconds)
        end = time.perf_counter()
        memory = psutil.Process(cloud.pid).memory_info().rss
        took = {
            "cloud": cpu_seconds(cloud.pid) - clocks["cloud"],
            "here": time.process_time() - clocks["here"],
        }
        waiting = [end - max(client.waits_since, begun) for client in crowd]
    finally:
        stop.set()
        for client in crowd:
            if client.ident is not None:
                client.join()
    for client in crowd:
        if client.error is not None:
            raise client.error
    return _level(crowd, waiting, start, end, took, memory, options.target_seconds)


def _level(
    crowd: Sequence[Client],
    waiting: Sequence[float],
    start: float,
    end: float,
    took: Mapping[str, float],
    memory: int,
    target: float,
) -> Level:
    shown = [one for client in crowd for one in client.shown if start <= one.at < end]
    later = [one for one in shown if not one.is_first]
    # Waits that the end cuts short are seen only where they are too long already.
    gaps = np.array([one.waited / one.tokens for one in later] + [w for w in waiting if w > target])
    counts = [one.tokens for one in later] + [1] * (len(gaps) - len(later))
    times = np.repeat(gaps, counts) if len(gaps) else np.array([end - start])
    firsts = [one.waited for one in shown if one.is_first]
    seconds = end - start
    return Level(
        clients=len(crowd),
        p95_seconds=float(np.quantile(times, 0.95)),
        median_seconds=float(np.median(times)),
        first_token_seconds=float(np.median(firsts)) if firsts else None,
        tokens_per_second=sum(one.tokens for one in shown) / seconds,
        cloud_cpu=took["cloud"] / seconds,
        generator_cpu=took["here"] / seconds,
        cloud_memory_bytes=memory,
    )
