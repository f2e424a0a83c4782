"""Threads, memory and disk, against what is asked of them; ports that others hold."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil

from collm.errors import CollmError
from collm.model.artifact import Artifact
from collm.model.store import default_root
from collm.runtime.hardware import cpu_limits, usable_memory
from collm.serve.checks.finding import Findings, fault, ok, warning
from collm.serve.registry import running
from collm.session.placed import default_placement, placed_files

_LEAST_FREE = 512 * 2**20
_LITTLE_FREE = 2 * 2**30
_SHARE_OF_MEMORY = 0.8


def check_threads(threads: int, root: Path = Path("/")) -> Findings:
    """threads: asked for; 0 for what CoLLM takes by itself."""
    limits = cpu_limits(root)
    taken = threads or limits.cores
    told = f"{taken} threads, {limits.cores} cores"
    if limits.quota:
        told += f", a quota of {limits.quota:g} cores' time"
    if taken > limits.cores or (threads and taken > limits.most_threads):
        yield fault(
            "threads",
            f"{told}: they will wait for each other",
            f"--threads {limits.most_threads}",
        )
    elif taken > limits.most_threads:
        yield warning(
            "threads",
            f"{told}: with the quota used up all of them stand still",
            f"--threads {limits.most_threads}, or COLLM_RUN_THREADS={limits.most_threads}",
        )
    else:
        yield ok("threads", told)


def check_memory(
    artifact: Artifact, mode: str, placement: int | None, root: Path = Path("/")
) -> Findings:
    """Whether what a placement loads fits into what is free."""
    manifest = artifact.manifest
    placed = default_placement(manifest) if placement is None else placement
    try:
        names = placed_files(manifest, mode, placed, None)
    except CollmError as error:
        yield fault("memory", str(error), "name another --placement (collm info lists the cuts)")
        return
    weights = sum(manifest.files[name].bytes for name in names)
    arch = manifest.architecture
    cache = 8 * arch.kv_heads * arch.head_size * placed * min(arch.context_length, 2048)
    free = usable_memory(root)
    told = (
        f"{placed} of {arch.layers} layers take about {(weights + cache) / 1e6:,.0f} MB, "
        f"{free / 1e6:,.0f} MB are free"
    )
    if weights + cache > free:
        yield fault("memory", told, _fewer(artifact, mode, free))
    elif weights + cache > _SHARE_OF_MEMORY * free:
        yield warning("memory", f"{told}: that is close", _fewer(artifact, mode, free))
    else:
        yield ok("memory", told)


def _fewer(artifact: Artifact, mode: str, free: int) -> str:
    for cut in sorted(artifact.manifest.cuts, reverse=True):
        with suppress(CollmError):
            names = placed_files(artifact.manifest, mode, cut, None)
            if sum(artifact.manifest.files[name].bytes for name in names) < free / 2:
                return f"--placement {cut}, or let collm plan choose"
    return "leave all layers to the cloud: --placement 0 --mode cloud"


def check_store(root: Path | None) -> Findings:
    """Whether artifacts can be pulled to here."""
    store = (root or default_root()).absolute()
    todo = "name another folder: --store FOLDER, or set XDG_CACHE_HOME"
    try:
        (store / "blobs").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=store / "blobs") as probe:
            probe.write(b"\0" * 65_536)
            probe.flush()
            os.fsync(probe.fileno())
        free = shutil.disk_usage(store).free
    except OSError as error:
        yield fault("store", f"{store}: nothing can be written ({error.strerror})", todo)
        return
    told = f"{store}, {free / 1e9:,.1f} GB free"
    if free < _LEAST_FREE:
        yield fault("store", told, f"make room (collm list, collm rm), or {todo}")
    elif free < _LITTLE_FREE:
        yield warning("store", told, f"collm pull --disk bounds what is kept; or {todo}")
    else:
        yield ok("store", told)


def check_port(address: str, what: str) -> Findings:
    """Whether `what` could listen at HOST:PORT, or already does."""
    import socket

    from collm.link.address import parse_address

    try:
        host, port = parse_address(address)
    except ValueError as error:
        yield fault("port", f"{what}: {error}", "expected HOST:PORT such as 127.0.0.1:50051")
        return
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    try:
        socket.create_server((host.strip("[]"), port), family=family).close()
    except OSError as error:
        for one in running():
            if one.address.partition("://")[2] == address or one.address == address:
                yield ok("port", f"{address}: {one.kind} of {one.model} runs there")
                return
        by = _holder(port)
        told = f" by {by}" if by else ""
        yield warning(
            "port",
            f"{address}: taken{told} ({error.strerror})",
            f"end that, or give {what} another port",
        )
        return
    yield ok("port", f"{address} is free for {what}")


def _holder(port: int) -> str:
    with suppress(psutil.Error, OSError):
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr[1] == port and one.pid:
                return f"{psutil.Process(one.pid).name()} (pid {one.pid})"
    return ""
