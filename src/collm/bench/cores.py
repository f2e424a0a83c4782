"""Who computes where, and how much: pinning, CPU time of other processes, busy neighbours.

Linux only, as the benchmarks are; elsewhere nothing is pinned.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_CPU_CLOCK_OF_PROCESS = 2
"""CPUCLOCK_SCHED of the kernel: what clock_getcpuclockid(3) gives."""
_BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(100_000):
        pass
"""


@dataclass(frozen=True, kw_only=True)
class Cores:
    """Cores of edge and cloud, and of the links between them."""

    edge: tuple[int, ...]
    cloud: tuple[int, ...]
    link: tuple[int, ...]

    @property
    def are_shared(self) -> bool:
        """Whether edge and cloud take time from each other."""
        return bool(set(self.edge) & set(self.cloud))


def choose_cores(threads: int, usable: Sequence[int] | None = None) -> Cores:
    """`threads` cores for the edge, as many others for the cloud, and the rest for the links.

    Links get all cores where none is left; edge and cloud share where there are too few.
    """
    cores = sorted(_usable() if usable is None else usable)
    edge = cores[:threads]
    cloud = cores[-threads:]
    rest = [core for core in cores if core not in (*edge, *cloud)]
    return Cores(edge=tuple(edge), cloud=tuple(cloud), link=tuple(rest or cores))


def pin(pid: int, cores: Sequence[int]) -> None:
    """Bind every thread of a process; threads that these start later are bound with them."""
    if not hasattr(os, "sched_setaffinity"):
        return
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):  # a thread that has just ended
            os.sched_setaffinity(int(task.name), cores)


@contextmanager
def pinned_here(cores: Sequence[int]) -> Iterator[None]:
    """Bind this process, and set it free again."""
    before = _usable()
    pin(os.getpid(), cores)
    try:
        yield
    finally:
        pin(os.getpid(), before)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, with that of its threads that have ended."""
    return time.clock_gettime((~pid << 3) | _CPU_CLOCK_OF_PROCESS)


def settled_cpu_seconds(pid: int, patience: float = 0.5, step: float = 0.01) -> float:
    """The same once it rests: what an answer leaves to be done belongs to it."""
    given_up_at = time.monotonic() + patience
    seconds = cpu_seconds(pid)
    while time.monotonic() < given_up_at:
        time.sleep(step)
        before, seconds = seconds, cpu_seconds(pid)
        if seconds - before < step / 10:
            break
    return seconds


@contextmanager
def busy(count: int, cores: Sequence[int]) -> Iterator[None]:
    """So many processes on each of `cores` that do nothing but compute."""
    with ExitStack() as stack:
        for core in cores:
            for _ in range(count):
                process = subprocess.Popen(
                    [sys.executable, "-c", _BUSY],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is the parent's to handle
                )
                stack.callback(_end, process)
                pin(process.pid, [core])
        yield


def timed(work: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _usable() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
