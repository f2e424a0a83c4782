"""Hashes, tensor files and atomic folders."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import save_file

from collm.errors import UsageError
from collm.model.manifest import FileEntry


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_entry(path: Path) -> FileEntry:
    """Digest and size of a file."""
    return FileEntry(sha256=sha256_of(path), bytes=path.stat().st_size)


def write_tensors(
    path: Path, tensors: Mapping[str, npt.NDArray[Any]], about: Mapping[str, str]
) -> None:
    """Write a safetensors file with metadata `about`; it has its name only when it is whole.

    Raises UsageError where the disk does not take it, and leaves nothing behind then.
    """
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({n: np.ascontiguousarray(t) for n, t in tensors.items()}, partial, dict(about))
        partial.chmod(0o644)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise UsageError(f"{path}: cannot be written ({error}); make room, then go on") from None


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """A scratch folder beside `out` that takes its place at the end, or vanishes.

    An interrupted build leaves at most a hidden `.NAME.partial-*`, never something that looks
    like the finished folder. An existing `out` is moved away, and back where
    the new one cannot take its place.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        yield scratch
        scratch.chmod(0o755)
        if out.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old-", dir=out.parent))
            os.rename(out, old / "folder")
            try:
                os.rename(scratch, out)
            except BaseException:
                os.rename(old / "folder", out)
                raise
            finally:
                shutil.rmtree(old)
        else:
            os.rename(scratch, out)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
