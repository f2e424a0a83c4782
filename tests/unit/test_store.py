"""Blobs by hash: one holder at a time, nothing unverified among them, the oldest makes room."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.support import random_artifact, tree

from collm.errors import UsageError
from collm.limits import Limits
from collm.model.file_lock import try_lock
from collm.model.manifest import FileEntry, Manifest
from collm.model.store import Store
from collm.model.store_room import check_budget, make_room


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", Limits(store_lock_seconds=0.2))


@dataclass
class Blob:
    """Bytes, and what a manifest says of them."""

    data: bytes

    @property
    def entry(self) -> FileEntry:
        return FileEntry(sha256=hashlib.sha256(self.data).hexdigest(), bytes=len(self.data))

    def put(self, store: Store, used: float) -> Path:
        """Bring it, and say when it was used."""
        claim = store.claim(self.entry)
        assert claim is not None
        with claim:
            claim.path.write_bytes(self.data)
            claim.commit(self.entry.sha256)
        path = store.blob(self.entry.sha256)
        os.utime(path, (used, used))
        return path


def names(store: Store) -> set[str]:
    return {path.name for path in store.blobs.iterdir()}


def test_a_claim_is_for_one_and_what_broke_off_stays(store: Store) -> None:
    blob = Blob(b"abcdef")
    claim = store.claim(blob.entry)
    assert claim is not None
    claim.path.write_bytes(b"abc")
    assert store.claim(blob.entry) is None
    assert store.progress(blob.entry.sha256) == 3
    claim.close()
    again = store.claim(blob.entry)
    assert again is not None
    assert again.path.read_bytes() == b"abc"
    again.path.write_bytes(blob.data)
    again.commit(blob.entry.sha256)
    # Somebody else begins anew before the first has let go: its file is not touched.
    late = store.claim(blob.entry)
    assert late is not None
    again.close()
    assert late.path.exists()
    assert store.is_sound(blob.entry)
    late.close()
    assert names(store) == {blob.entry.sha256}
    assert store.blob(blob.entry.sha256).stat().st_mode & 0o777 == 0o444


@pytest.mark.parametrize("data", [b"abcdeX", b"abcde", b"abcdefg", b""])
def test_nothing_else_gets_a_blobs_name(store: Store, data: bytes) -> None:
    blob = Blob(b"abcdef")
    claim = store.claim(blob.entry)
    assert claim is not None
    with claim:
        claim.path.write_bytes(data)
        with pytest.raises(UsageError, match="thrown away"):
            claim.commit(hashlib.sha256(data).hexdigest())
    assert names(store) == set()


def test_a_damaged_blob_is_thrown_away(store: Store) -> None:
    blob = Blob(b"x" * 100)
    path = blob.put(store, 1.0)
    path.chmod(0o644)
    path.write_bytes(b"y" + blob.data[1:])
    assert not store.is_sound(blob.entry)
    assert names(store) == set()
    assert not store.is_sound(blob.entry)


def test_a_lock_goes_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = f"""
import sys
from pathlib import Path
from collm.model.file_lock import try_lock
held = try_lock(Path({str(path)!r}))
print(held is not None, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        assert try_lock(path) is None
        other.kill()
        other.wait(10)
        held = try_lock(path)
        assert held is not None
        held.close()


def test_the_stores_lock_has_a_deadline(store: Store) -> None:
    with store.lock(), pytest.raises(UsageError, match=r"locked by another collm for 0\.2 s"):
        with store.lock():
            pass


def test_claims_of_many_threads(store: Store) -> None:
    """However they interleave, one at a time has the blob, and its bytes are whole in the end."""
    blob, inside, most = Blob(b"z" * 1000), [0], [0]

    def work() -> None:
        for _ in range(30):
            claim = store.claim(blob.entry)
            if claim is None:
                continue
            with claim:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                is_here = store.is_sound(blob.entry)
                if not is_here:
                    claim.path.write_bytes(blob.data)
                inside[0] -= 1  # a commit ends the claim: another one may have it at once
                if not is_here:
                    claim.commit(blob.entry.sha256)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert names(store) == {blob.entry.sha256}
    assert store.is_sound(blob.entry)


def test_the_oldest_makes_room_and_what_is_needed_stays(store: Store) -> None:
    blobs = [Blob(bytes([n]) * 100) for n in range(5)]
    for age, blob in enumerate(blobs):
        blob.put(store, 1000.0 + age)
    needed = {blobs[0].entry.sha256: 100, Blob(b"new" * 50).entry.sha256: 150}
    with store.lock(), store.pin(needed):
        assert make_room(store, needed, 450) == 200
    kept = {blobs[0].entry.sha256, blobs[3].entry.sha256, blobs[4].entry.sha256}
    assert names(store) == kept
    with store.lock():
        assert make_room(store, {}, 300) == 0
        assert make_room(store, {}, 299) == 100
    assert names(store) == {blobs[3].entry.sha256, blobs[4].entry.sha256}


def test_what_other_pulls_need_stays_while_they_live(store: Store) -> None:
    mine, theirs = Blob(b"m" * 100), Blob(b"t" * 100)
    theirs.put(store, 1.0)
    needed = {mine.entry.sha256: 100}
    with store.pin([theirs.entry.sha256]):
        with store.lock(), pytest.raises(UsageError, match="50 bytes too few, as other pulls"):
            make_room(store, needed, 150)
        assert names(store) == {theirs.entry.sha256}
    (store.pins / "dead").write_text(f'["{theirs.entry.sha256}"]')  # of one that was killed
    with store.lock():
        assert make_room(store, needed, 150) == 100
    assert list(store.pins.iterdir()) == []


def test_partials_make_room_but_not_under_ones_hands(store: Store) -> None:
    left, busy = Blob(b"l" * 100), Blob(b"b" * 100)
    for blob in (left, busy):
        claim = store.claim(blob.entry)
        assert claim is not None
        claim.path.write_bytes(blob.data[:60])
        if blob is left:
            claim.close()
    with store.lock():
        assert make_room(store, {}, 60) == 60
        assert names(store) == {f"{busy.entry.sha256}.partial"}
        # What is there of a needed file is not counted twice.
        assert make_room(store, {busy.entry.sha256: 100}, 100) == 0
    claim.close()


def test_more_than_the_budget_is_refused(store: Store) -> None:
    with pytest.raises(UsageError, match="take 1,500 bytes, the budget is 1,000"):
        check_budget({"a": 500, "b": 1000}, 1000)


def test_artifacts_share_blobs_and_eviction_takes_the_links_too(
    store: Store, tmp_path: Path
) -> None:
    made = random_artifact(tmp_path / "a")
    files = dict(made.manifest.files)
    for name, entry in files.items():
        Blob((made.folder / name).read_bytes()).put(store, 1.0 if "blocks" in name else 2.0)
        assert store.is_sound(entry)
        os.utime(store.blob(entry.sha256), (2.0, 2.0))
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
        shutil.copyfile(made.folder / "manifest.json", folder / "manifest.json")
        store.fill(folder, files)
        assert tree(folder) == tree(made.folder)
    name, entry = next(iter(files.items()))
    path = store.blob(entry.sha256)
    assert path.stat().st_nlink == 3
    copy = folders[1] / name
    copy.unlink()
    copy.write_bytes(path.read_bytes())  # as where it lies on another disk
    os.utime(path, (1.0, 1.0))
    with store.lock():
        total = sum(one.stat().st_size for one in store.blobs.iterdir())
        assert make_room(store, {}, total - 1) == entry.bytes
    assert not path.exists()
    assert not (folders[0] / name).exists()
    assert copy.exists()
    assert Manifest.read(folders[0]) == made.manifest


def test_filling_mends_what_is_damaged_and_copies_across_disks(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = Blob(b"w" * 100)
    blob.put(store, 1.0)
    folder = tmp_path / "f"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "x").write_bytes(b"damaged")

    def no_links(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    store.fill(folder, {"sub/x": blob.entry, "y": blob.entry})
    assert tree(folder) == {"sub/x": blob.data, "y": blob.data}
    assert (folder / "y").stat().st_nlink == 1


@pytest.mark.parametrize("name", ["../../etc", "/abs", "..", "", "a/b\0c", "x" * 300, "normal-1"])
def test_folders_of_the_store_stay_inside(store: Store, name: str) -> None:
    folder = store.artifact_folder(name, "ab" * 32)
    assert folder.parent == store.root / "artifacts"
    assert folder.name.endswith("-abababababab")
    folder.mkdir(parents=True)


def test_a_root_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="no place for blobs"):
        Store(tmp_path / "file" / "store")
