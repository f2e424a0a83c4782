"""Making room in a store: what was used longest ago goes first, never what a pull needs now."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from collm.errors import ArtifactError, UsageError
from collm.model.file_lock import try_lock
from collm.model.manifest import Manifest
from collm.model.store import PARTIAL, Store


@dataclass(frozen=True, kw_only=True)
class _Kept:
    path: Path
    sha256: str
    bytes: int
    used: float


def check_budget(needed: Mapping[str, int], budget: int) -> None:
    """Raise UsageError where `needed` (bytes by sha256) can never fit into `budget` bytes."""
    total = sum(needed.values())
    if total > budget:
        raise UsageError(
            f"--disk: the files asked for take {total:,} bytes, the budget is {budget:,}; raise it "
            "or place fewer layers"
        )


def make_room(store: Store, needed: Mapping[str, int], budget: int) -> int:
    """Evict until the blobs kept and those to come fit into `budget` bytes; the bytes freed.

    needed: bytes by sha256 of what the pull at hand asks for: never evicted. Call it with the
    store's lock held. Links to an evicted blob in artifact folders go with it; copies, which lie
    on other disks, stay. Raises UsageError where other pulls under way hold too much.
    """
    check_budget(needed, budget)
    kept = sorted(_kept(store), key=lambda one: one.used)
    held = pinned(store)
    to_come = sum(needed.values()) - sum(one.bytes for one in kept if one.sha256 in needed)
    excess = sum(one.bytes for one in kept) + to_come - budget
    folders: list[tuple[Path, Manifest]] | None = None
    freed = 0
    for one in kept:
        if freed >= excess:
            break
        if one.sha256 in needed or one.sha256 in held:
            continue
        if one.path.name.endswith(PARTIAL):
            lock = try_lock(one.path, create=False)
            if lock is None:
                continue
            with lock:
                lock.unlink()
        else:
            folders = list(folders_of(store)) if folders is None else folders
            _unlink(one, folders)
        freed += one.bytes
    if freed < excess:
        raise UsageError(
            f"--disk: {excess - freed:,} bytes too few, as other pulls under way need theirs; try "
            "again later or raise the budget"
        )
    return freed


def _kept(store: Store) -> Iterator[_Kept]:
    for path in store.blobs.iterdir():
        with suppress(FileNotFoundError):
            found = path.stat()
            used = max(found.st_mtime, found.st_atime)  # atime: where an edge read it meanwhile
            name = path.name.removesuffix(PARTIAL)
            yield _Kept(path=path, sha256=name, bytes=found.st_size, used=used)


def pinned(store: Store) -> set[str]:
    """What pulls that are alive need; what dead ones left behind is removed."""
    found: set[str] = set()
    for path in store.pins.iterdir():
        lock = try_lock(path, create=False)
        if lock is not None:
            with lock:
                lock.unlink()
            continue
        with suppress(OSError, ValueError):  # it is over by now
            found.update(str(name) for name in json.loads(path.read_text()))
    return found


def folders_of(store: Store) -> Iterator[tuple[Path, Manifest]]:
    for register in store.folders.iterdir():
        try:
            folder = Path(register.read_text())
            yield folder, Manifest.read(folder)
        except (ArtifactError, OSError, ValueError):
            register.unlink(missing_ok=True)  # gone, or no artifact any more


def _unlink(one: _Kept, folders: list[tuple[Path, Manifest]]) -> None:
    """Remove a blob and the links to it, without which its bytes would stay on the disk."""
    for folder, manifest in folders:
        for name, entry in manifest.files.items():
            if entry.sha256 == one.sha256:
                with suppress(OSError):
                    if os.path.samefile(folder / name, one.path):
                        (folder / name).unlink()
    one.path.unlink(missing_ok=True)
