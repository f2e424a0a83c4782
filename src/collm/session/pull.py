"""Fetching what a placement needs of an artifact, and nothing else.

::

    pulled = pull(["http://cloud:8080"], lambda manifest: placed_files(manifest, "verified", 10,
                  None), PullSettings(folder=Path("my-model")))
    Artifact(pulled.folder, fetch=pulled.fetch)

A blob is fetched once, whoever asks for it: what the store or the folder has is verified and kept,
what broke off is gone on with, and of several pulls at once one fetches and the others wait for it.
The folder is touched only when everything is here.

Not covered: files split over several connections; whether the source is to be believed.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from collm.errors import ArtifactError, LinkError, UsageError, one_line
from collm.limits import DEFAULT_LIMITS, Limits
from collm.link.credentials import ClientSecurity
from collm.link.fetch import Fetcher
from collm.link.grpc_client import OPEN
from collm.model.manifest import MANIFEST, FileEntry, Manifest
from collm.model.store import Claim, Store, holds
from collm.model.store_room import check_budget, make_room
from collm.session.sources import Source, agreeing_sources

_LOOK_SECONDS: Final = 0.05
Choose = Callable[[Manifest], Collection[str]]


@dataclass(frozen=True, kw_only=True)
class PullSettings:
    """How to pull. Raises UsageError for what cannot be."""

    folder: Path | None = None
    """Where the artifact folder is to be; None: in the store."""
    store: Path | None = None
    """Where blobs are kept; None: in the user's cache."""
    fingerprint: str = ""
    """The only one that will do, or the sha256 of the manifest, in full; empty: any."""
    parallel: int = 4
    budget: int | None = None
    """Bytes that the store may take; what was used longest ago makes room. None: any."""
    security: ClientSecurity = OPEN
    limits: Limits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        is_hex = set(self.fingerprint) <= set("0123456789abcdef")
        if self.fingerprint and (not is_hex or len(self.fingerprint) != 64):
            raise UsageError(
                f"--fingerprint {self.fingerprint[:80]!r}: expected all 64 hex digits, as collm "
                "info prints them"
            )
        if not 1 <= self.parallel <= 64:
            raise UsageError(f"--parallel {self.parallel}: expected 1 to 64")


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """What a pull came to."""

    folder: Path
    manifest: Manifest
    manifest_sha256: str
    files: int
    fetched_bytes: int
    """What came over the network, of files."""
    present_bytes: int
    """What was here before."""
    evicted_bytes: int
    fetch: Callable[[str], None]
    """For `Artifact`: brings further files of the same artifact. Not from within an event loop."""


def _silent(_line: str) -> None:
    return


def _unseen(_done: int, _total: int) -> None:
    return


def pull(
    sources: Sequence[str],
    choose: Choose,
    settings: PullSettings,
    *,
    progress: Callable[[int, int], None] = _unseen,
    warn: Callable[[str], None] = _silent,
) -> Pulled:
    """Have the files that `choose` names in an artifact folder, from any of `sources`.

    sources: addresses, the preferred one first. progress: called with bytes here and bytes in all.
    warn: called with a line about each source that was no good. Raises UsageError, also for a disk
    that does not take it; LinkError where no source has a file. An interrupted pull goes on where
    it was when called again.
    """
    try:
        return asyncio.run(_Pull(sources, settings, progress, warn).run(choose))
    except OSError as error:
        raise UsageError(
            f"{error.filename or 'the store'}: {error.strerror or error}; make room or choose "
            "another place, then pull again: it goes on where it was"
        ) from None


class _Pull:
    def __init__(
        self,
        sources: Sequence[str],
        settings: PullSettings,
        progress: Callable[[int, int], None],
        warn: Callable[[str], None],
    ) -> None:
        self._addresses = sources
        self._settings = settings
        self._limits = settings.limits
        self._progress = progress
        self._warn = warn
        self._store = Store(settings.store, settings.limits)
        self._done = self._total = self._present = 0

    async def run(self, choose: Choose) -> Pulled:
        """See `pull`."""
        settings, store = self._settings, self._store
        async with Fetcher(settings.security, self._limits) as fetcher:
            manifest, sources = await agreeing_sources(
                fetcher,
                self._addresses,
                self._limits,
                pinned=settings.fingerprint,
                warn=self._warn,
            )
            text = sources[0].manifest
            digest = hashlib.sha256(text).hexdigest()
            try:
                files = {name: manifest.files[name] for name in sorted(choose(manifest))}
                folder = settings.folder or store.artifact_folder(manifest.name, digest)
            except (TypeError, ValueError, KeyError, AttributeError) as error:
                # What is not of the kind it should be shows when it is used.
                raise ArtifactError(
                    f"{sources[0].address}: {MANIFEST} is damaged ({one_line(error)})"
                ) from None
            _check_folder(folder, text)
            # By content: the same bytes under two names are fetched once.
            blobs = {entry.sha256: name for name, entry in files.items()}
            sizes = {entry.sha256: entry.bytes for entry in files.values()}
            self._total = sum(sizes.values())
            with ExitStack() as stack:
                evicted = self._begin(stack, sizes)
                await self._fetch_all(fetcher, sources, folder, blobs, files)
                _write_manifest(folder, text)
                store.fill(folder, files)
        return Pulled(
            folder=folder,
            manifest=manifest,
            manifest_sha256=digest,
            files=len(files),
            fetched_bytes=fetcher.received_bytes,
            present_bytes=self._present,
            evicted_bytes=evicted,
            fetch=self._further(folder, digest),
        )

    def _begin(self, stack: ExitStack, sizes: Mapping[str, int]) -> int:
        """Pin what is needed until `stack` ends, and make room; the bytes evicted."""
        store, budget, evicted = self._store, self._settings.budget, 0
        if budget is not None:
            check_budget(sizes, budget)
        with store.lock():
            stack.enter_context(store.pin(sizes))
            if budget is not None:
                evicted = make_room(store, sizes, budget)
        missing = sum(max(0, size - store.progress(name)) for name, size in sizes.items())
        free = shutil.disk_usage(store.root).free
        if missing > free:
            raise UsageError(
                f"{store.root}: {missing:,} bytes to fetch, {free:,} free on that disk; make room "
                "or choose another with --store"
            )
        return evicted

    async def _fetch_all(
        self,
        fetcher: Fetcher,
        sources: Sequence[Source],
        folder: Path,
        blobs: Mapping[str, str],
        files: Mapping[str, FileEntry],
    ) -> None:
        turn = asyncio.Semaphore(self._settings.parallel)

        async def one(name: str) -> None:
            async with turn:
                await self._fetch(fetcher, sources, folder / name, name, files[name])

        self._progress(0, self._total)
        try:
            async with asyncio.TaskGroup() as group:
                for name in blobs.values():
                    group.create_task(one(name))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _fetch(
        self, fetcher: Fetcher, sources: Sequence[Source], path: Path, name: str, entry: FileEntry
    ) -> None:
        """Have one blob: in the store, or at least at its place in the folder."""
        store = self._store
        with await self._claim(name, entry) as claim:
            here = await asyncio.to_thread(store.is_sound, entry)
            if here or await asyncio.to_thread(holds, path, entry):
                self._present += entry.bytes
                self._tell(entry.bytes)
                return
            begun = claim.path.stat().st_size
            self._present += min(begun, entry.bytes)
            self._tell(begun)
            try:
                digest = await fetcher.fetch(
                    [source.url(name, entry) for source in sources],
                    claim.path,
                    size=entry.bytes,
                    sha256=entry.sha256,
                    told=self._tell,
                    warn=lambda line: self._warn(f"{name}: {line}"),
                )
            except LinkError as error:
                raise LinkError(f"{name}: {error}") from None
            claim.commit(digest)

    async def _claim(self, name: str, entry: FileEntry) -> Claim:
        """The right to bring the blob; where another pull is bringing it, when that is done."""
        seen, since = -1, time.monotonic()
        while (claim := self._store.claim(entry)) is None:
            here, now = self._store.progress(entry.sha256), time.monotonic()
            if here != seen:
                seen, since = here, now
            elif now - since > self._limits.store_wait_seconds:
                raise UsageError(
                    f"{name}: another collm has been fetching it for "
                    f"{self._limits.store_wait_seconds:g} s without progress; end it, or wait"
                )
            await asyncio.sleep(_LOOK_SECONDS)
        return claim

    def _tell(self, more: int) -> None:
        self._done += more
        self._progress(self._done, self._total)

    def _further(self, folder: Path, digest: str) -> Callable[[str], None]:
        # Nothing is evicted for it: it would be what the running edge opened before.
        settings = replace(self._settings, folder=folder, fingerprint=digest, budget=None)
        addresses, warn = self._addresses, self._warn

        def fetch(name: str) -> None:
            pull(addresses, lambda _manifest: {name}, settings, warn=warn)

        return fetch


def _check_folder(folder: Path, manifest: bytes) -> None:
    """Raise UsageError where the folder has anything that is not this artifact's."""
    path = folder / MANIFEST
    try:
        if path.read_bytes() != manifest:
            raise UsageError(
                f"{folder}: holds another artifact, or this one with other exits or thresholds; "
                "choose another folder, or remove it (what it shares is not fetched again)"
            )
    except FileNotFoundError:
        if folder.is_dir() and any(folder.iterdir()):
            raise UsageError(
                f"{folder}: not an artifact, and not empty; choose another folder"
            ) from None
    except NotADirectoryError:
        raise UsageError(f"{folder}: not a folder; choose another") from None


def _write_manifest(folder: Path, text: bytes) -> None:
    """As the source has it, byte for byte, so that the folder can be a source itself."""
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / f".{MANIFEST}.{os.getpid()}"
    scratch.write_bytes(text)
    os.replace(scratch, folder / MANIFEST)
