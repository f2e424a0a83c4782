"""A small device on a large machine: a control group with some cores, a quota and a memory limit.

Version 1 and version 2 are used as they are found. Without the rights to make groups only the cores
are kept to, and `Emulated.enforced` says so: results then tell nothing of memory.

Not covered: slower cores (a quota stops a fast one instead), swap, storage.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from collm.errors import UsageError

_ROOT = Path("/sys/fs/cgroup")
_PERIOD_US = 100_000


@dataclass(frozen=True, kw_only=True)
class DeviceSpec:
    """What a device has."""

    cores: int
    percent: int
    """Of a core's time, of all cores together; 0: all of it."""
    memory_bytes: int

    @property
    def name(self) -> str:
        """As it is written: `1@25:150mb`."""
        quota = f"@{self.percent}" if self.percent else ""
        return f"{self.cores}{quota}:{self.memory_bytes // 10**6}mb"


def parse_device(text: str) -> DeviceSpec:
    """CORES[@PERCENT]:MEMORYmb, such as `1@25:150mb`. Raises UsageError."""
    match = re.fullmatch(r"([0-9]{1,3})(?:@([0-9]{1,4}))?:([0-9]{1,7})mb", text)
    if match is None or not int(match[1]) or not int(match[3]):
        raise UsageError(
            f"device {text[:40]!r}: expected CORES[@PERCENT]:MEMORY, such as 1@25:150mb"
        )
    return DeviceSpec(
        cores=int(match[1]), percent=int(match[2] or 0), memory_bytes=int(match[3]) * 10**6
    )


class Emulated:
    """A device under emulation; processes join with `join`, called in the process itself."""

    def __init__(self, spec: DeviceSpec, cores: tuple[int, ...]) -> None:
        self.spec = spec
        self.cores = cores
        self.folders: list[Path] = []
        self.memory: Path | None = None
        """The group that counts memory."""
        self.enforced: list[str] = ["cores"]

    def join(self) -> None:
        """Put this process in. Runs between fork and exec."""
        pid = str(os.getpid())
        for folder in self.folders:
            (folder / "cgroup.procs").write_text(pid)
        os.sched_setaffinity(0, self.cores)

    def reset_peak(self) -> None:
        """Begin to count anew, where the kernel lets."""
        if self.memory is not None:
            for name in ("memory.max_usage_in_bytes", "memory.peak"):
                with suppress(OSError):
                    (self.memory / name).write_text("0")

    @property
    def peak(self) -> int | None:
        """The most bytes that were held since; None: not known."""
        if self.memory is None:
            return None
        for name in ("memory.max_usage_in_bytes", "memory.peak"):
            with suppress(OSError):
                return int((self.memory / name).read_text())
        return None


@contextmanager
def emulated(spec: DeviceSpec, cores: tuple[int, ...], root: Path = _ROOT) -> Iterator[Emulated]:
    """The device, until it is left; its processes have to be over by then."""
    device = Emulated(spec, cores)
    name = f"collm-bench-{os.getpid()}"
    quota = spec.percent * _PERIOD_US // 100
    is_second = (root / "cgroup.controllers").is_file()
    if is_second:
        limits = {"cpu.max": f"{quota} {_PERIOD_US}"} if quota else {}
        groups = [(root / name, limits | {"memory.max": str(spec.memory_bytes)})]
    else:
        cpu = {"cpu.cfs_period_us": str(_PERIOD_US), "cpu.cfs_quota_us": str(quota or -1)}
        memory = {"memory.limit_in_bytes": str(spec.memory_bytes)}
        groups = [(root / "cpu" / name, cpu), (root / "memory" / name, memory)]
    try:
        for folder, values in groups:
            _make(device, folder, values)
        yield device
    finally:
        for folder in device.folders:
            _remove(folder)


def _make(device: Emulated, folder: Path, values: dict[str, str]) -> None:
    """One group; what cannot be set is not enforced."""
    try:
        folder.mkdir()
        for name, value in values.items():
            (folder / name).write_text(value)
    except OSError:
        _remove(folder)
        return
    device.folders.append(folder)
    for name in values:
        if name.startswith("memory."):
            device.memory = folder
            device.enforced.append("memory")
        elif device.spec.percent and "quota" not in device.enforced:
            device.enforced.append("quota")


def _remove(folder: Path, patience: float = 3.0) -> None:
    """A group is busy for a moment after its last process has ended."""
    until = time.monotonic() + patience
    while folder.is_dir() and time.monotonic() < until:
        try:
            folder.rmdir()
        except OSError:
            time.sleep(0.05)
