"""What the figures were measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil

_PACKAGES = ("collm", "onnxruntime", "numpy", "xllamacpp", "torch", "transformers")
_INSTRUCTIONS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8", "asimddp", "i8mm", "sve")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The computer and the software."""

    cpu: str
    instructions: tuple[str, ...]
    """Of the instruction sets that matter to quantised kernels, those that are there."""
    cores: int
    usable_cores: int
    memory_bytes: int
    system: str
    versions: dict[str, str]


def this_machine() -> Machine:
    """The machine and the installed versions of what is compared."""
    model, flags = _cpu(Path("/proc/cpuinfo"))
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    return Machine(
        cpu=model or platform.processor() or platform.machine(),
        instructions=tuple(name for name in _INSTRUCTIONS if name in flags),
        cores=cores,
        usable_cores=usable,
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        versions={name: version for name in _PACKAGES if (version := _version(name))},
    )


def load_average() -> float:
    """Runnable processes over the last minute."""
    return psutil.getloadavg()[0]


def _cpu(cpuinfo: Path) -> tuple[str, frozenset[str]]:
    """Model name and flags, where the kernel tells."""
    found: dict[str, str] = {}
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            found.setdefault(key.strip(), value.strip())
    flags = found.get("flags") or found.get("Features") or ""
    return found.get("model name", ""), frozenset(flags.split())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
