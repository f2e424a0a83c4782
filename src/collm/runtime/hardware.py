"""What this device is and lets a process have: cores, quotas, memory, battery, heat.

Control groups of both versions are read, with all their parents: the tightest limit counts. What
the system does not tell is left out. Linux tells the most; elsewhere cores and memory are known.

Not covered: GPUs and NPUs; the speed of storage.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

_ROOT = Path("/")
_UNLIMITED = 2**60
"""Control groups write limits beyond this where there are none."""
_MOST_BYTES = 65_536


@dataclass(frozen=True, kw_only=True)
class CpuLimits:
    """Cores this process may run on, and how much of their time."""

    cores: int
    quota: float = 0.0
    """Cores' worth; 0: all of it."""
    period: float = 0.1
    """Seconds after which a used up quota is there again."""

    @property
    def most_threads(self) -> int:
        """More than this cannot pay."""
        return min(self.cores, max(1, -int(-self.quota // 1))) if self.quota else self.cores


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Battery and heat, as far as the system tells."""

    battery: float | None = None
    on_battery: bool = False
    celsius: float | None = None
    throttle_events: int = 0
    """Times that heat has slowed a core down since the system started."""


def cpu_limits(root: Path = _ROOT) -> CpuLimits:
    """Of this process. root: of the file system that `/proc` and `/sys` are in."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    quotas = list(_quotas(root))
    if not quotas:
        return CpuLimits(cores=cores)
    quota, period = min(quotas)
    if quota >= cores:
        return CpuLimits(cores=cores)
    return CpuLimits(cores=cores, quota=quota, period=period)


def memory_limit(root: Path = _ROOT) -> int | None:
    """Bytes that control groups allow this process; None: they set no limit."""
    limits = [
        int(text)
        for name in ("memory.max", "memory.limit_in_bytes")
        for folder in _groups(root, "memory")
        if (text := _read(folder / name)).isdecimal() and int(text) < _UNLIMITED
    ]
    return min(limits, default=None)


def usable_memory(root: Path = _ROOT) -> int:
    """Bytes that this process may come to take: what is free and its own, or what it is allowed."""
    free = psutil.virtual_memory().available + psutil.Process().memory_info().rss
    limit = memory_limit(root)
    return free if limit is None else min(limit, free)


def held_memory() -> int:
    """Bytes that this process holds for itself; without the pages of files that can be dropped."""
    for line in _read(Path("/proc/self/status")).splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)


def give_back() -> None:
    """Return memory that was freed to the system, where its allocator keeps it (glibc)."""
    gc.collect()
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim(0)


def condition(root: Path = _ROOT) -> Condition:
    """Battery and heat right now."""
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    known = [one.current for group in sensors.values() for one in group if one.current > 0]
    counts = root / "sys/devices/system/cpu"
    events = [
        int(text)
        for file in sorted(counts.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))[:1024]
        if (text := _read(file)).isdecimal()
    ]
    return Condition(
        battery=None if battery is None else max(0.0, min(1.0, battery.percent / 100)),
        on_battery=battery is not None and battery.power_plugged is False,
        celsius=max(known, default=None),
        throttle_events=sum(events),
    )


def hardware_words(root: Path = _ROOT) -> str:
    """The device in a line: what a profile holds for, and what it is looked up by."""
    limits, memory = cpu_limits(root), memory_limit(root)
    words = [_processor(root), platform.machine(), f"{limits.cores} cores"]
    if limits.quota:
        words.append(f"{100 * limits.quota:.0f} % of a core's time")
    if memory is not None:
        words.append(f"at most {memory / 1e6:.0f} MB")
    return ", ".join(word for word in words if word)


def _processor(root: Path) -> str:
    """Its name, and a digest of its instruction sets, which decide what kernels run."""
    found: dict[str, str] = {}
    for line in _read(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    name = found.get("model name") or found.get("Model") or platform.processor()
    flags = " ".join(sorted((found.get("flags") or found.get("Features") or "").split()))
    digest = hashlib.sha256(flags.encode()).hexdigest()[:6] if flags else ""
    shown = "".join(one for one in name[:120] if one.isprintable())
    return f"{shown} ({digest})" if digest else shown


def _quotas(root: Path) -> Iterator[tuple[float, float]]:
    """Cores' worth and period in seconds, of every group that has a limit."""
    for folder in _groups(root, "cpu"):
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if not quota:
            quota, _, period = _read(folder / "cpu.max").partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period):
            yield int(quota) / int(period), int(period) / 1e6


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's group and of its parents, in both versions' trees."""
    mounted = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines()[:64]:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        bases = [mounted / controllers, mounted / controller] if controllers else [mounted]
        base = next((one for one in bases if one.is_dir()), None)
        if base is None or ".." in path:
            continue
        folder = base / path.strip("/")
        # In a container the path may be one of the host's, which is not there to be seen.
        while folder != base:
            if folder.is_dir():
                yield folder
            folder = folder.parent
        yield base


def _read(path: Path) -> str:
    """The beginning of a small file; empty where it cannot be read."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_MOST_BYTES).strip()
    except OSError:
        return ""
