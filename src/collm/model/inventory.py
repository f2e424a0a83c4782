"""The artifacts on this machine: those of a store, and folders that link to it.

Not covered: folders made by `collm build`, which no store knows of; name them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from collm.errors import ArtifactError, UsageError
from collm.model.manifest import MANIFEST, Manifest
from collm.model.store import PARTIAL, Store, default_root
from collm.model.store_room import folders_of, pinned


@dataclass(frozen=True, kw_only=True)
class Held:
    """An artifact folder that the store knows of."""

    folder: Path
    manifest: Manifest
    in_store: bool
    """Whether the folder is the store's own."""
    layers: tuple[tuple[int, int], ...]
    """Runs of layers [first, last) whose blocks are here."""
    bytes: int
    """Of the files that are here."""
    all_bytes: int
    """Of all its files."""
    used: float
    """When last, in seconds since 1970."""


def held(store: Store) -> list[Held]:
    """What is here, used last first."""
    found = {folder.resolve(): (folder, manifest) for folder, manifest in folders_of(store)}
    artifacts = store.root / "artifacts"
    if artifacts.is_dir():
        for folder in sorted(artifacts.iterdir()):
            with suppress(ArtifactError):
                found.setdefault(folder.resolve(), (folder, Manifest.read(folder)))
    listed = [_held(store, folder, manifest) for folder, manifest in found.values()]
    return sorted(listed, key=lambda one: -one.used)


def held_folder(store: Store, folder: Path) -> Held:
    """Any artifact folder. Raises ArtifactError for one that is none."""
    return _held(store, folder, Manifest.read(folder))


def find(store: Store, words: str) -> list[Held]:
    """Artifacts by name, folder name in the store, or the beginning of the fingerprint."""
    listed = held(store)
    named = [one for one in listed if words in (one.manifest.name, one.folder.name)]
    if named or len(words) < 6:
        return named
    return [one for one in listed if one.manifest.fingerprint.startswith(words.lower())]


def is_pulled(folder: Path, root: Path | None = None) -> bool:
    """Whether a pull made this folder: then it may hold a part of its artifact only."""
    store = (root or default_root()).absolute() / "folders"
    try:
        return str(folder.absolute()) in {one.read_text() for one in store.iterdir()}
    except OSError:
        return False


@dataclass(frozen=True, kw_only=True)
class Removed:
    """What a removal did."""

    folders: tuple[Path, ...]
    blobs: int
    freed_bytes: int


def remove(store: Store, chosen: Sequence[Held]) -> Removed:
    """Remove artifacts, and the blobs that no other artifact of the store needs.

    Only files that the manifests name are removed, and folders that are empty then. Raises
    UsageError, before anything is gone, where a running pull needs one of them.
    """
    with store.lock():
        needed = pinned(store)
        for one in chosen:
            if any(entry.sha256 in needed for entry in one.manifest.files.values()):
                raise UsageError(
                    f"{one.folder}: a collm pull under way needs it; try again when that is over"
                )
        freed = sum(_remove_folder(one) for one in chosen)
        gone = {one.folder.resolve() for one in chosen}
        kept = {
            entry.sha256
            for folder, manifest in folders_of(store)
            if folder.resolve() not in gone
            for entry in manifest.files.values()
        }
        wanted = {entry.sha256 for one in chosen for entry in one.manifest.files.values()}
        blobs = 0
        for digest in sorted(wanted - kept - needed):
            for path in (store.blob(digest), store.blob(digest + PARTIAL)):
                with suppress(FileNotFoundError):
                    about = path.stat()
                    path.unlink()
                    blobs += 1
                    freed += about.st_size if about.st_nlink == 1 else 0
    return Removed(folders=tuple(one.folder for one in chosen), blobs=blobs, freed_bytes=freed)


def _remove_folder(one: Held) -> int:
    """Bytes that are free by it; those that a blob still has are not."""
    freed = 0
    # First what makes it an artifact: a removal that is broken off leaves no damaged one.
    for name in (MANIFEST, *one.manifest.files):
        path = one.folder / name
        with suppress(FileNotFoundError):
            about = path.lstat()
            path.unlink()
            freed += about.st_size if about.st_nlink == 1 else 0
    folders = {(one.folder / name).parent for name in one.manifest.files} | {one.folder}
    for folder in sorted(folders, key=lambda path: -len(path.parts)):
        with suppress(OSError):  # somebody keeps other files there
            folder.rmdir()
    if one.in_store:
        shutil.rmtree(one.folder, ignore_errors=True)
    return freed


def _held(store: Store, folder: Path, manifest: Manifest) -> Held:
    here: dict[str, os.stat_result] = {}
    for name, entry in manifest.files.items():
        with suppress(OSError):
            about = (folder / name).stat()
            if about.st_size == entry.bytes:
                here[name] = about
    times = [max(one.st_atime, one.st_mtime) for one in here.values()]
    with suppress(OSError):
        times.append((folder / MANIFEST).stat().st_mtime)
    return Held(
        folder=folder,
        manifest=manifest,
        in_store=folder.resolve().is_relative_to((store.root / "artifacts").resolve()),
        layers=tuple(_runs(manifest, here)),
        bytes=sum(one.st_size for one in here.values()),
        all_bytes=sum(entry.bytes for entry in manifest.files.values()),
        used=max(times, default=0.0),
    )


def _runs(manifest: Manifest, here: dict[str, os.stat_result]) -> Iterator[tuple[int, int]]:
    first: int | None = None
    last = 0
    for block in sorted(manifest.blocks, key=lambda block: block.first):
        data = block.graph.removesuffix(".onnx") + ".data"
        names = {block.graph, data} & set(manifest.files)
        if names <= here.keys():
            if first is not None and last != block.first:
                yield first, last
                first = block.first
            first = block.first if first is None else first
            last = block.last
    if first is not None:
        yield first, last
