"""Blobs on disk, named by their sha256, so that artifacts share what they have in common.

::

    ROOT/blobs/sha256/HEX            whole, verified, read only
    ROOT/blobs/sha256/HEX.partial    on its way; whoever fetches it holds its lock
    ROOT/pins/*                      what a running pull needs, locked as long as it lives
    ROOT/folders/*                   paths of the folders that link to blobs
    ROOT/artifacts/*                 artifact folders of the store itself

An artifact folder is a manifest and hard links to blobs; copies where the disk is another.

Not covered: making room (`collm.model.store_room`), where blobs come from.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from platformdirs import user_cache_path

from collm.errors import UsageError
from collm.limits import DEFAULT_LIMITS, Limits
from collm.model.file_lock import LockedFile, locked, try_lock
from collm.model.files import sha256_of
from collm.model.manifest import FileEntry

PARTIAL = ".partial"


def default_root() -> Path:
    """Where blobs are kept unless told otherwise: the user's cache."""
    return user_cache_path("collm")


class Claim:
    """The right to bring one blob; held by one thread of one process at a time."""

    def __init__(self, store: Store, entry: FileEntry, lock: LockedFile) -> None:
        self.path = lock.path
        """The partial file: what is there already, to be gone on with."""
        self._store = store
        self._entry = entry
        self._lock = lock
        self._is_done = False

    def commit(self, digest: str) -> None:
        """Give the partial file its place among the blobs.

        digest: sha256 of all its bytes, as computed while they came. Raises UsageError, and
        throws the partial away, where that or the size is not the blob's.
        """
        size = self.path.stat().st_size
        if digest != self._entry.sha256 or size != self._entry.bytes:
            os.truncate(self.path, 0)
            raise UsageError(f"{self.path}: not the blob that was asked for; thrown away")
        blob = self._store.blob(self._entry.sha256)
        os.replace(self.path, blob)
        self._is_done = True
        blob.chmod(0o444)

    def close(self) -> None:
        """Let others at it; what is there of the partial file stays, unless it is empty."""
        # After a commit the name may be another claim's already.
        with suppress(FileNotFoundError):
            if not self._is_done and not self.path.stat().st_size:
                self._lock.unlink()
        self._lock.close()

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Store:
    """The blobs below `root`. Safe to use from several threads and processes.

    Its methods raise OSError where the disk does not play along. Raises UsageError where `root`
    cannot be made.
    """

    def __init__(self, root: Path | None = None, limits: Limits = DEFAULT_LIMITS) -> None:
        self.root = (root or default_root()).absolute()
        self.blobs = self.root / "blobs" / "sha256"
        self.pins = self.root / "pins"
        self.folders = self.root / "folders"
        self._limits = limits
        try:
            for folder in (self.blobs, self.pins, self.folders):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"{self.root}: no place for blobs ({error.strerror}); choose another with --store"
            ) from None

    def lock(self) -> AbstractContextManager[None]:
        """Keep others from pinning and from making room meanwhile. Raises UsageError."""
        return locked(self.root / "lock", self._limits.store_lock_seconds)

    def blob(self, sha256: str) -> Path:
        """Where the blob is, or would be."""
        return self.blobs / sha256

    def is_sound(self, entry: FileEntry) -> bool:
        """Whether the blob is here, every byte of it; a damaged one is thrown away.

        Ask with the blob's claim held: another thread may be replacing it.
        """
        path = self.blob(entry.sha256)
        if holds(path, entry):
            os.utime(path)  # used now: the last to go
            return True
        path.unlink(missing_ok=True)
        return False

    def claim(self, entry: FileEntry) -> Claim | None:
        """The right to bring a blob; None while another thread or process has it.

        Its holder looks once more whether the blob has come meanwhile.
        """
        lock = try_lock(self.blobs / (entry.sha256 + PARTIAL))
        return None if lock is None else Claim(self, entry, lock)

    def progress(self, sha256: str) -> int:
        """Bytes of a blob that are here so far, verified or not."""
        for path in (self.blob(sha256), self.blobs / (sha256 + PARTIAL)):
            with suppress(FileNotFoundError):
                return path.stat().st_size
        return 0

    @contextmanager
    def pin(self, needed: Iterable[str]) -> Iterator[None]:
        """Keep these blobs from making room for others meanwhile; call it with `lock` held."""
        descriptor, name = tempfile.mkstemp(dir=self.pins)
        os.close(descriptor)
        lock = try_lock(Path(name))
        assert lock is not None  # nobody else knows of it
        with lock:
            Path(name).write_text(json.dumps(sorted(needed)))
            try:
                yield
            finally:
                lock.unlink()

    def artifact_folder(self, name: str, manifest_sha256: str) -> Path:
        """A folder of the store's own for an artifact; `name` is from outside and may be anything.

        Exits and thresholds may differ between artifacts of one fingerprint: it goes by manifest.
        """
        kept = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in name)
        return self.root / "artifacts" / f"{kept.strip('-')[:60] or 'model'}-{manifest_sha256[:12]}"

    def fill(self, folder: Path, files: Mapping[str, FileEntry]) -> None:
        """Put files into an artifact folder: by name, links to blobs that are here.

        A file that is in the folder and right stays as it is.
        """
        register = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:32]
        (self.folders / register).write_text(str(folder.absolute()))
        for name, entry in files.items():
            path, blob = folder / name, self.blob(entry.sha256)
            if _is_same(path, blob) or holds(path, entry):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            _link(blob, path)


def holds(path: Path, entry: FileEntry) -> bool:
    """Whether the file is there and has the size and the hash."""
    try:
        return path.stat().st_size == entry.bytes and sha256_of(path) == entry.sha256
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False


def _is_same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False


def _link(source: Path, target: Path) -> None:
    """A hard link in place of `target`, or a copy where there can be none; never half of one."""
    scratch = Path(tempfile.mkdtemp(prefix=".link-", dir=target.parent))
    try:
        try:
            os.link(source, scratch / "file")
        except OSError:  # another disk, or one without links
            shutil.copyfile(source, scratch / "file")
        os.replace(scratch / "file", target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
