"""Is what CoLLM stands on here: Python, its packages, ONNX Runtime's kernels, the processor?"""

from __future__ import annotations

import base64
import hashlib
import platform
import re
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from collm import __version__
from collm.serve.checks.finding import Findings, fault, ok, warning

LEAST_PYTHON = (3, 11)
MEASURED = ((1, 32), (1, 33))
"""ONNX Runtime from … up to, and without …: where the two-row rule was measured."""
_NEEDED = (
    "numpy", "onnxruntime", "onnx", "safetensors", "tokenizers", "jinja2", "grpcio",
    "prometheus-client", "protobuf", "typer", "rich", "psutil", "httpx", "platformdirs",
    "prompt-toolkit", "starlette", "uvicorn", "zstandard",
)  # fmt: skip
_OTHER_RUNTIMES = ("onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
_FAST = {
    "avx512_vnni": "AVX-512 VNNI", "avx512vnni": "AVX-512 VNNI", "avx_vnni": "AVX VNNI",
    "avx2": "AVX2", "i8mm": "I8MM", "asimddp": "dot product", "asimd": "NEON",
}  # fmt: skip
_MOST_FILE_BYTES = 64 * 2**20


def check_installation(root: Path = Path("/")) -> Findings:
    """root: of the file system that `/proc` is in."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < LEAST_PYTHON:
        yield fault("python", f"Python {version}", "CoLLM needs Python 3.11 or newer")
    else:
        yield ok("python", f"Python {version} on {platform.machine()}, collm {__version__}")
    yield from _packages()
    yield from check_runtime()
    yield from check_kernels()
    yield from _processor(root)


def _packages() -> Findings:
    missing = []
    for name in _NEEDED:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        yield fault("packages", f"missing: {', '.join(missing)}", "pip install collm")
        return
    changed = _changed_files()
    if changed:
        told = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if changed[3:] else "")
        yield fault(
            "packages",
            f"files of collm are not as installed: {told}",
            "pip install --force-reinstall --no-deps collm",
        )
    else:
        yield ok("packages", f"{len(_NEEDED)} packages are here")


def _changed_files() -> list[str]:
    """Files of the installed package whose hash is not the one recorded for them."""
    try:
        record = metadata.distribution("collm").files or []
    except metadata.PackageNotFoundError:
        return []  # run from a source tree: whoever works on it changes it
    changed = []
    for one in record:
        if one.hash is None or one.hash.mode != "sha256":
            continue
        path = Path(str(one.locate()))
        try:
            if path.stat().st_size > _MOST_FILE_BYTES:
                continue
            digest = hashlib.sha256(path.read_bytes()).digest()
        except OSError:
            changed.append(str(one))
            continue
        if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != one.hash.value:
            changed.append(str(one))
    return changed


def check_runtime() -> Findings:
    """ONNX Runtime's version."""
    low, high = (".".join(map(str, one)) for one in MEASURED)
    todo = f"pip install 'onnxruntime>={low},<{high}'"
    try:
        version = metadata.version("onnxruntime")
    except metadata.PackageNotFoundError:
        return  # told among the packages
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if not MEASURED[0] <= found < MEASURED[1]:
        yield fault(
            "onnxruntime",
            f"{version}: exactness was measured with {low} only",
            f"{todo}, or trust the check below and no more",
        )
        return
    for name in _OTHER_RUNTIMES:
        with suppress(metadata.PackageNotFoundError):
            yield warning(
                "onnxruntime",
                f"{name} {metadata.version(name)} lies over onnxruntime {version} in one folder",
                f"pip uninstall {name}, then {todo} --force-reinstall",
            )
            return
    yield ok("onnxruntime", f"{version}, the version exactness was measured with")


def check_kernels() -> Findings:
    """Whether rows come out alike however they are taken together, in a product of its own."""
    try:
        from collm.runtime.self_check import kernel_difference

        differs = kernel_difference()
    except Exception as error:  # noqa: BLE001 - whatever it is, ONNX Runtime does not run here
        said = " ".join(str(error).split())[:120]
        yield fault(
            "kernels", f"ONNX Runtime does not run: {said}", "pip install onnxruntime again"
        )
        return
    if differs:
        yield fault(
            "kernels",
            f"twelve rows at once and two at a time differ by {differs:g}",
            "verified text is not the full model's on this machine; report it with collm doctor "
            "--json",
        )
    else:
        yield ok("kernels", "rows are the same to the last bit, however they are taken together")


def _processor(root: Path) -> Findings:
    flags: set[str] = set()
    with suppress(OSError):
        for line in (root / "proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                flags = set(value.split())
                break
    if not flags:
        return
    fast = list(dict.fromkeys(name for flag, name in _FAST.items() if flag in flags))
    if fast:
        yield ok("processor", ", ".join(fast))
    else:
        yield warning(
            "processor",
            "neither AVX2 nor dot products",
            "int4 will be slow here; leave more layers to the cloud (collm plan)",
        )
