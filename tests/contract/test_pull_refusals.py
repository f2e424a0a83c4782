"""Pulls that come to nothing: one line, nothing fetched, nothing of the user's touched."""

from __future__ import annotations

import contextlib
import copy
import errno
import json
import os
import shutil
import ssl
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.contract.blob_servers import BlobServer
from tests.contract.pulls import placed, pulled, with_an_exit
from tests.support import random_artifact, tree

from collm.errors import CollmError, PlacementError, UsageError
from collm.model.artifact import Artifact
from collm.model.manifest import Manifest
from collm.model.store import Store
from collm.session.pull import PullSettings
from collm.session.sources import Source


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return with_an_exit(tmp_path_factory.mktemp("pull"))


@pytest.fixture
def files(made: Artifact) -> dict[str, bytes]:
    """The artifact as any static server has it."""
    return {f"/{name}": data for name, data in tree(made.folder).items()}


def edited(files: Mapping[str, bytes], change: Callable[[dict[str, Any]], None]) -> bytes:
    data = json.loads(files["/manifest.json"])
    change(data)
    return json.dumps(data).encode()


MANIFESTS: dict[str, tuple[Callable[[Mapping[str, bytes]], bytes], str]] = {
    "too large": (lambda f: f["/manifest.json"] + b" " * 5_000_000, "larger than"),
    "no JSON": (lambda f: b"<html>hello</html>", "not readable as JSON"),
    "not text": (lambda f: b"\xff\xfe", "not readable as JSON"),
    "a list": (lambda f: b"[]", "expected a JSON object"),
    "deep": (lambda f: b"[" * 100_000, "not readable as JSON"),
    "another's": (lambda f: b"{}", "not a CoLLM artifact's"),
    "edited": (
        lambda f: edited(f, lambda d: d.update(eos_ids=[1])),
        "does not match its own fingerprint",
    ),
    "outside": (
        lambda f: edited(f, lambda d: d["files"].update({"../x": d["files"]["final_norm.f32"]})),
        "names a file outside",
    ),
    "absolute": (
        lambda f: edited(f, lambda d: d["files"].update({"/x": d["files"]["final_norm.f32"]})),
        "names a file outside",
    ),
    "itself": (
        lambda f: edited(
            f, lambda d: d["files"].update({"manifest.json": d["files"]["final_norm.f32"]})
        ),
        "names a file outside",
    ),
    "hash": (
        lambda f: edited(f, lambda d: d["files"]["final_norm.f32"].update(sha256="../../x")),
        "expected 64 hex digits",
    ),
    "control characters": (
        lambda f: edited(f, lambda d: d["blocks"][0].update({"a\n\x1b[31mb": 1})),
        r"unexpected keyword argument 'a \?\[31mb'",
    ),
    "name": (lambda f: edited(f, lambda d: d.update(name="a\x1b[31m")), "is damaged \\(name"),
    "version": (lambda f: edited(f, lambda d: d.update(version="\x1b" * 9999)), r"version '\\x1b"),
    "size": (
        lambda f: edited(f, lambda d: d["files"]["final_norm.f32"].update(bytes=-1)),
        "expected a number of bytes",
    ),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_manifests_that_are_none(files: dict[str, bytes], tmp_path: Path, kind: str) -> None:
    make, words = MANIFESTS[kind]
    files["/manifest.json"] = make(files)
    with BlobServer(files) as server, pytest.raises(CollmError, match=words) as caught:
        pulled(tmp_path, server.url)
    assert server.url in str(caught.value) and str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
    assert set(server.paths()) == {"/artifacts", "/manifest.json"}
    assert not (tmp_path / "out").exists()


def mutations(files: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Manifests with a value of another kind somewhere, and a fingerprint that fits."""

    def walk(value: Any, at: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        yield at
        if isinstance(value, dict):
            for key in value:
                yield from walk(value[key], (*at, key))
        elif isinstance(value, list) and value:
            yield from walk(value[0], (*at, 0))

    data = json.loads(files["/manifest.json"])
    for at in list(walk(data, ()))[1:]:
        for value in (None, -1, "x", {}, [None]):
            changed = copy.deepcopy(data)
            place = changed
            for key in at[:-1]:
                place = place[key]
            place[at[-1]] = value
            with contextlib.suppress(Exception):
                changed["fingerprint"] = Manifest._from(changed).fingerprint
            yield f"{at} {value!r}", json.dumps(changed).encode()


def test_manifests_with_values_of_other_kinds_are_a_line_or_do_no_harm(
    made: Artifact, files: Mapping[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever serves a manifest can give it the right fingerprint too."""
    monkeypatch.setattr("collm.session.pull._Pull._begin", lambda *_: 0)
    refused, count = list[tuple[str, str]](), 0
    context = ssl.create_default_context()
    monkeypatch.setattr("collm.link.fetch._context", lambda _security: context)  # it takes time

    async def nothing(*_: object) -> None:
        return

    monkeypatch.setattr("collm.session.pull._Pull._fetch_all", nothing)
    monkeypatch.setattr(Store, "fill", lambda *_: None)
    for what, text in mutations(files):
        source = Source(address="http://a", manifest=text, files="http://a", by_hash=False)

        async def opened(*_: object, source: Source = source) -> Source:
            return source

        monkeypatch.setattr("collm.session.sources.open_source", opened)
        count += 1
        try:
            pulled(tmp_path, "http://a", choose=placed(3), folder=tmp_path / f"{count}")
        except CollmError as error:
            refused.append((what, str(error)))
    assert all("\n" not in line for _, line in refused), refused
    assert len(refused) > count / 2 > 300


def test_a_placement_that_cannot_be_fetches_nothing(
    files: Mapping[str, bytes], tmp_path: Path
) -> None:
    with BlobServer(files) as server, pytest.raises(PlacementError, match="placement 9"):
        pulled(tmp_path, server.url, choose=placed(9))
    assert set(server.paths()) == {"/artifacts", "/manifest.json"}


def test_a_budget_that_is_too_small_fetches_nothing(
    files: Mapping[str, bytes], tmp_path: Path
) -> None:
    with BlobServer(files) as server, pytest.raises(UsageError, match="the budget is 1,000"):
        pulled(tmp_path, server.url, budget=1000)
    assert set(server.paths()) == {"/artifacts", "/manifest.json"}


def test_folders_that_are_taken_are_left_alone(
    made: Artifact, files: Mapping[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    other = random_artifact(tmp_path / "other", seed=5)
    (tmp_path / "file").write_text("x")
    with BlobServer(files) as server:
        for folder, words in (
            (tmp_path / "photos", "not an artifact, and not empty"),
            (other.folder, "holds another artifact"),
            (tmp_path / "file", "not a folder"),
        ):
            with pytest.raises(UsageError, match=words):
                pulled(tmp_path, server.url, folder=folder)
        assert set(server.paths()) == {"/artifacts", "/manifest.json"}
        (tmp_path / "empty").mkdir()
        pulled(tmp_path, server.url, folder=tmp_path / "empty")
    assert tree(tmp_path / "photos") == {"cat.jpg": b"meow"}
    assert Artifact(other.folder).fingerprint == other.fingerprint


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), PermissionError(13, "Denied")]
)
def test_a_disk_that_takes_no_more_is_one_line_and_resumable(
    files: Mapping[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: OSError,
) -> None:
    written, write = [0], os.write

    def full(descriptor: int, data: memoryview) -> int:
        if written[0] > 50_000:
            raise error
        written[0] += len(data)
        return write(descriptor, data)

    with BlobServer(files) as server:
        with monkeypatch.context() as patch:
            patch.setattr("collm.link.fetch.os.write", full)
            with pytest.raises(UsageError, match=f"{error.strerror}; make room") as caught:
                pulled(tmp_path, server.url, parallel=1)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
        before = sum(server.sent.values())
        total = sum(len(data) for name, data in files.items() if name != "/manifest.json")
        again = pulled(tmp_path, server.url)
        assert again.present_bytes >= 50_000
        assert again.fetched_bytes + again.present_bytes == total
        assert before > 0


def test_too_little_space_is_told_before_anything_is_fetched(
    files: Mapping[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=10))
    with BlobServer(files) as server, pytest.raises(UsageError, match="10 free on that disk"):
        pulled(tmp_path, server.url)
    assert set(server.paths()) == {"/artifacts", "/manifest.json"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fingerprint": "abc"}, "expected all 64 hex digits"),
        ({"fingerprint": "x" * 64}, "expected all 64 hex digits"),
        ({"parallel": 0}, "expected 1 to 64"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        PullSettings(**settings)
