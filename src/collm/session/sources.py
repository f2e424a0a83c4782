"""Where artifacts come from: CoLLM's own servers, or any HTTP server that has an artifact's files.

An address is asked for the list that CoLLM's servers keep (`GET /artifacts`); one that has none is
taken for a folder with `manifest.json` in it. Of several sources the first sound one decides what
is fetched; those with another manifest are left out.

Not covered: whether the first source is to be believed: that is what a pinned fingerprint or TLS is
for.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from collm.errors import ArtifactError, CollmError, LinkError, Refused, UsageError, one_line
from collm.limits import Limits
from collm.link.fetch import Fetcher, NotThere, WrongAnswer
from collm.model.manifest import MANIFEST, FileEntry, Manifest

LISTING, LISTING_VERSION = "collm-artifacts", 1


@dataclass(frozen=True, kw_only=True)
class Source:
    """One place that has the artifact's files."""

    address: str
    """As it was given."""
    manifest: bytes
    files: str
    """Address of the folder of blobs by hash, or of files by name."""
    by_hash: bool

    def url(self, name: str, entry: FileEntry) -> str:
        """Where a file of the manifest is to be had."""
        return f"{self.files}/{entry.sha256 if self.by_hash else quote(name)}"


async def open_source(fetcher: Fetcher, address: str, limits: Limits) -> Source:
    """Find out what is at `address`, and read its manifest. Raises LinkError, UsageError."""
    address = address.rstrip("/")
    # A server of ours, or one of the artifacts that it has: …/artifacts/NAME.
    base, _, which = address.partition("/artifacts/")
    try:
        listing = _listing(await fetcher.get(f"{base}/artifacts", limits.max_listing_bytes))
    except (NotThere, WrongAnswer, Refused):  # object stores refuse what they do not have
        listing = None
    if listing is None:
        manifest = await fetcher.get(f"{address}/{MANIFEST}", limits.max_manifest_bytes)
        return Source(address=address, manifest=manifest, files=address, by_hash=False)
    fingerprint = _choose(address, listing, which)
    where = f"{base}/artifacts/{fingerprint}/{MANIFEST}"
    manifest = await fetcher.get(where, limits.max_manifest_bytes)
    return Source(
        address=address, manifest=manifest, files=f"{base}/blobs/sha256", by_hash=True
    )  # fmt: skip


async def agreeing_sources(
    fetcher: Fetcher,
    addresses: Sequence[str],
    limits: Limits,
    *,
    pinned: str,
    warn: Callable[[str], None],
) -> tuple[Manifest, list[Source]]:
    """The sources that have one and the same manifest, and that.

    pinned: the only fingerprint, or sha256 of a manifest, that will do; empty: any. warn: called
    with a line about each source left out. Raises UsageError or LinkError where none is left.
    """
    opening = [open_source(fetcher, address, limits) for address in addresses]
    opened = await asyncio.gather(*opening, return_exceptions=True)
    agreed: Manifest | None = None
    sources: list[Source] = []
    errors: list[CollmError] = []
    for address, found in zip(addresses, opened, strict=True):
        try:
            if isinstance(found, BaseException):
                raise found
            if sources and found.manifest != sources[0].manifest:
                raise ArtifactError(f"{address}: another artifact than at {sources[0].address}")
            if not sources:
                agreed = _pinned(found, pinned)
            sources.append(found)
        except CollmError as error:
            errors.append(error)
    if agreed is None:
        if len(errors) == 1:
            raise errors[0]
        raise LinkError("; ".join(map(str, errors)))
    for reason in errors:
        warn(f"{reason}; left out")
    return agreed, sources


def _pinned(source: Source, pinned: str) -> Manifest:
    manifest = Manifest.parse(source.manifest, source.address)
    digest = hashlib.sha256(source.manifest).hexdigest()
    if pinned and pinned not in (manifest.fingerprint, digest):
        raise ArtifactError(
            f"{source.address}: fingerprint {manifest.fingerprint[:12]}… (manifest {digest[:12]}…),"
            f" expected {pinned[:12]}…"
        )
    return manifest


def _listing(text: bytes) -> list[tuple[str, str]] | None:
    """Names and fingerprints; None where it is no list of a server of ours."""
    try:
        data = json.loads(text)
        if data["format"] != LISTING or data["version"] != LISTING_VERSION:
            return None
        return [(str(one["name"]), str(one["fingerprint"])) for one in data["artifacts"]]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _choose(address: str, listing: list[tuple[str, str]], which: str) -> str:
    """The fingerprint of the artifact that an address means."""
    fits = [
        (name, fingerprint)
        for name, fingerprint in listing
        if not which or which == name or fingerprint.startswith(which)
    ]
    if len(fits) != 1:
        known = [f"{one_line(name, 60)} ({one_line(mark[:12])})" for name, mark in listing[:8]]
        offered = ", ".join(known) or "none"
        raise UsageError(
            f"{address}: expected /artifacts/NAME or /artifacts/FINGERPRINT of one of: {offered}"
        )
    return quote(fits[0][1], safe="")
