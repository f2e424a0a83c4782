"""Pulling over real sockets: what a placement needs and no byte more, from whoever has it right."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
from tests.contract.blob_servers import BlobServer, Manners
from tests.contract.pulls import LIMITS, everything, of_ours, placed, pulled, with_an_exit
from tests.exit_files import exit_file
from tests.support import random_artifact, tree

from collm.errors import ArtifactError, LinkError, UsageError
from collm.model.artifact import Artifact
from collm.model.exits import add_exit
from collm.model.store import Store
from collm.runtime.stage import Stage
from collm.serve.artifacts import artifact_server
from collm.session.placed import placed_files
from collm.session.pull import Pulled, PullSettings, pull


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return with_an_exit(tmp_path_factory.mktemp("pull"))


@pytest.fixture
def files(made: Artifact) -> dict[str, bytes]:
    """The artifact as any static server has it."""
    return {f"/{name}": data for name, data in tree(made.folder).items()}


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_no_byte_of_other_blocks_travels(
    made: Artifact, files: Mapping[str, bytes], tmp_path: Path, layers: int
) -> None:
    needed = placed_files(made.manifest, "verified", layers, None)
    with BlobServer(files) as static, BlobServer(of_ours(made)) as ours:
        for url in (static.url, ours.url):
            folder = tmp_path / url[-5:]
            result = pulled(
                tmp_path, url, choose=placed(layers), folder=folder, store=tmp_path / url[-4:]
            )
            total = sum(made.manifest.files[name].bytes for name in needed)
            assert (result.files, result.fetched_bytes) == (len(needed), total)
            assert set(tree(folder)) == {*needed, "manifest.json"}
            assert all(tree(folder)[name] == files[f"/{name}"] for name in tree(folder))
        allowed = {"/artifacts", "/manifest.json", *(f"/{name}" for name in needed)}
        assert set(static.paths()) == allowed
        assert sum(static.sent.values()) - static.sent["/manifest.json"] == total
        hashes = {f"/blobs/sha256/{made.manifest.files[name].sha256}" for name in needed}
        manifest = f"/artifacts/{made.fingerprint}/manifest.json"
        assert set(ours.paths()) == {"/artifacts", manifest, *hashes}
        assert len(ours.paths()) == len(hashes) + 2
    stage = Stage(Artifact(folder), range(layers))
    assert len(stage.chains) == layers


def test_from_our_own_server_and_on_from_what_was_pulled(made: Artifact, tmp_path: Path) -> None:
    """A folder that was pulled in part can be a source itself, of what it has."""
    with artifact_server([made.folder], "127.0.0.1:0") as url:
        pulled(tmp_path, url, choose=placed(2))
    with artifact_server([tmp_path / "out"], "127.0.0.1:0") as url:
        second = partial(pulled, tmp_path, url, store=tmp_path / "s2", folder=tmp_path / "out2")
        assert second(choose=placed(1)).files > 0
        with pytest.raises(LinkError, match=r"^blocks/.*: no source gave it: .* not there"):
            second(choose=everything, warn=lambda _line: None)


def test_what_is_here_is_not_fetched_again(files: Mapping[str, bytes], tmp_path: Path) -> None:
    with BlobServer(files) as server:
        first = pulled(tmp_path, server.url, choose=placed(2))
        asked = len(server.asked)
        again = pulled(tmp_path, server.url, choose=placed(2))
        assert (again.fetched_bytes, again.present_bytes) == (0, first.fetched_bytes)
        assert server.paths()[asked:] == ["/artifacts", "/manifest.json"]
        # A deeper placement brings the further block alone, and another folder nothing.
        deeper = pulled(tmp_path, server.url, choose=placed(3))
        new = {path for path in server.paths()[asked + 4 :] if path.startswith("/blocks")}
        assert new == {"/blocks/002-003.onnx", "/blocks/002-003.data"}
        other = pulled(tmp_path, server.url, choose=placed(3), folder=tmp_path / "other")
        assert (other.fetched_bytes, other.files) == (0, deeper.files)
        own = pulled(tmp_path, server.url, choose=placed(3), folder=None)
        assert own.fetched_bytes == 0
        assert own.folder.parent == tmp_path / "store" / "artifacts"
        # The folder alone will do, with the store gone; and the store with the folder gone.
        shutil.rmtree(tmp_path / "store")
        assert pulled(tmp_path, server.url, choose=placed(3)).fetched_bytes == 0


def test_artifacts_share_what_they_have_in_common(
    made: Artifact, files: Mapping[str, bytes], tmp_path: Path
) -> None:
    shutil.copytree(made.folder, tmp_path / "b")
    add_exit(tmp_path / "b", exit_file(tmp_path / "y", made.architecture, 1, "linear"))
    other = {f"/{name}": data for name, data in tree(tmp_path / "b").items()}
    with BlobServer(files) as one, BlobServer(other) as two:
        pulled(tmp_path, one.url)
        result = pulled(tmp_path, two.url, folder=tmp_path / "out2")
        new = [path for path in two.paths() if path not in ("/artifacts", "/manifest.json")]
        assert new and all(path.startswith("/exits/001-") for path in new)
        assert result.fetched_bytes == sum(len(other[path]) for path in new)
    same = tmp_path / "out" / "blocks/000-001.data"
    assert same.samefile(tmp_path / "out2" / "blocks/000-001.data")


def test_the_same_bytes_under_two_names_travel_once(
    made: Artifact, files: dict[str, bytes], tmp_path: Path
) -> None:
    names = [name for name in files if files[name] == files["/final_norm.f32"]]
    data = json.loads(files["/manifest.json"])
    data["files"]["twin.f32"] = data["files"]["final_norm.f32"]
    files["/manifest.json"] = json.dumps(data).encode()
    files["/twin.f32"] = files["/final_norm.f32"]
    with BlobServer(files) as server:
        pulled(tmp_path, server.url)
        assert sum(server.paths().count(name) for name in (*names, "/twin.f32")) == 1
    assert (tmp_path / "out" / "twin.f32").read_bytes() == files["/final_norm.f32"]


BLOCK = "/blocks/000-001.data"


def test_a_corrupted_block_comes_from_another_source(
    files: Mapping[str, bytes], tmp_path: Path
) -> None:
    said: list[str] = []
    with BlobServer(files, Manners(corrupt={BLOCK})) as bad, BlobServer(files) as good:
        pulled(tmp_path, bad.url, good.url, choose=placed(2), warn=said.append)
        assert [path for path in good.paths() if "blocks" in path] == [BLOCK]
        assert bad.paths().count(BLOCK) == 1
        (line,) = said
        assert line.startswith(f"blocks/000-001.data: {bad.url}{BLOCK}: its sha256 is ")
        assert line.endswith("refused; another source is asked")
    assert (tmp_path / "out" / BLOCK[1:]).read_bytes() == files[BLOCK]


def test_a_corrupted_block_of_the_only_source_is_refused_for_good(
    files: Mapping[str, bytes], tmp_path: Path
) -> None:
    with BlobServer(files, Manners(corrupt={BLOCK})) as bad:
        with pytest.raises(LinkError, match="its sha256 is") as caught:
            pulled(tmp_path, bad.url, warn=lambda _line: None)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
        digest = hashlib.sha256(files[BLOCK]).hexdigest()
        assert not any(p.name.startswith(digest) for p in Store(tmp_path / "store").blobs.iterdir())
        bad.manners.corrupt.clear()
        pulled(tmp_path, bad.url)


def test_a_damaged_file_here_is_mended_by_pulling_again(
    made: Artifact, files: Mapping[str, bytes], tmp_path: Path
) -> None:
    with BlobServer(files) as server:
        pulled(tmp_path, server.url)
        path = tmp_path / "out" / BLOCK[1:]
        path.chmod(0o644)
        path.write_bytes(b"!" + files[BLOCK][1:])  # through the link: the blob too
        with pytest.raises(ArtifactError, match="damaged"):
            Stage(Artifact(tmp_path / "out"), range(1))
        assert pulled(tmp_path, server.url).fetched_bytes == len(files[BLOCK])
        Stage(Artifact(tmp_path / "out"), range(1))


@pytest.mark.parametrize(
    "manners", [Manners(ranges=False), Manners(cut={BLOCK: [30_000, 25_000, 40_000]})]
)
def test_odd_servers_will_do(files: Mapping[str, bytes], tmp_path: Path, manners: Manners) -> None:
    with BlobServer(files, manners) as server:
        pulled(tmp_path, server.url)
        assert server.sent[BLOCK] == len(files[BLOCK])
    assert tree(tmp_path / "out") == {name[1:]: data for name, data in files.items()}


def test_sources_with_another_manifest_are_left_out(
    made: Artifact, files: dict[str, bytes], tmp_path: Path
) -> None:
    other = random_artifact(tmp_path / "o", seed=5)
    said: list[str] = []
    with BlobServer(files) as one, BlobServer(of_ours(other)) as two, BlobServer({}) as none:
        pulled(tmp_path, one.url, two.url, none.url, "http://127.0.0.1:9", warn=said.append)
        assert len(two.paths()) == 2
        assert [line.split(": ")[0] for line in said] == [
            two.url, f"{none.url}/manifest.json", "http://127.0.0.1:9/artifacts",
        ]  # fmt: skip
        assert all(line.endswith("; left out") for line in said)
        # Who knows what it should be says so; then the order does not matter.
        pulled(
            tmp_path, two.url, one.url, fingerprint=made.fingerprint, warn=said.append,
            folder=tmp_path / "out2",
        )  # fmt: skip
        assert Artifact(tmp_path / "out2").fingerprint == made.fingerprint
        digest = hashlib.sha256(files["/manifest.json"]).hexdigest()
        assert pulled(tmp_path, one.url, fingerprint=digest).manifest_sha256 == digest
        with pytest.raises(ArtifactError, match="expected 000000000000…"):
            pulled(tmp_path, one.url, fingerprint="0" * 64)


def test_a_budget_evicts_what_was_used_longest_ago(made: Artifact, tmp_path: Path) -> None:
    other = random_artifact(tmp_path / "o", seed=5, tie_word_embeddings=False)
    with BlobServer(of_ours(made)) as one, BlobServer(of_ours(other)) as two:
        pulled(tmp_path, one.url, choose=placed(3))
        store = Store(tmp_path / "store")
        size = sum(path.stat().st_size for path in store.blobs.iterdir())
        for path in store.blobs.iterdir():
            os.utime(path, (1.0, 1.0))
        result = pulled(
            tmp_path, two.url, choose=placed(1), folder=tmp_path / "out2", budget=size
        )  # fmt: skip
        assert result.evicted_bytes > 0
        assert sum(path.stat().st_size for path in store.blobs.iterdir()) <= size
        Stage(Artifact(tmp_path / "out2"), range(1))
        # What went is missed where it was linked, and comes back by pulling again.
        gone = {*placed(3)(made.manifest)} - set(tree(tmp_path / "out"))
        assert gone
        again = pulled(tmp_path, one.url, choose=placed(3))
        assert again.fetched_bytes == sum(made.manifest.files[name].bytes for name in gone)


def test_pulls_at_once_fetch_each_blob_once(
    made: Artifact, files: Mapping[str, bytes], tmp_path: Path
) -> None:
    results: list[Pulled] = []
    failures: list[BaseException] = []

    def work(n: int) -> None:
        try:
            results.append(pulled(tmp_path, server.url, folder=tmp_path / f"out{n % 2}"))
        except BaseException as error:
            failures.append(error)
            raise

    with BlobServer(files, Manners(bytes_per_second=2e6)) as server:
        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        for name in made.manifest.files:
            assert server.sent[f"/{name}"] == len(files[f"/{name}"]), name
    total = sum(entry.bytes for entry in made.manifest.files.values())
    assert sum(result.fetched_bytes for result in results) == total
    for n in (0, 1):
        assert tree(tmp_path / f"out{n}") == tree(made.folder)
    store = Store(tmp_path / "store")
    assert all(len(path.name) == 64 for path in store.blobs.iterdir())
    assert list(store.pins.iterdir()) == []


def test_a_blob_that_somebody_holds_without_progress(
    made: Artifact, files: Mapping[str, bytes], tmp_path: Path
) -> None:
    claim = Store(tmp_path / "store").claim(made.manifest.files["final_norm.f32"])
    assert claim is not None
    with claim, BlobServer(files) as server:
        with pytest.raises(UsageError, match=r"f32: another collm has been fetching it for 0\.5 s"):
            pulled(tmp_path, server.url)
    with BlobServer(files) as server:
        pulled(tmp_path, server.url)


def test_further_blocks_come_when_they_are_asked_for(
    made: Artifact, files: Mapping[str, bytes], tmp_path: Path
) -> None:
    with BlobServer(files) as server:
        result = pulled(tmp_path, server.url, choose=placed(1))
        artifact = Artifact(result.folder, fetch=result.fetch)
        before = len(server.asked)
        stage = Stage(artifact, range(3), exits=(2,))
        assert len(stage.chains) == 3
        fetched = {p for p in server.paths()[before:] if p not in ("/artifacts", "/manifest.json")}
        assert BLOCK not in fetched
        assert {"/blocks/001-002.data", "/blocks/002-003.data"} < fetched
        assert "/blocks/003-004.data" not in fetched


def test_progress_ends_with_all_of_it(files: Mapping[str, bytes], tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    manners = Manners(cut={BLOCK: [5000]}, corrupt={"/tokenizer.json"})
    with BlobServer(files, manners) as one, BlobServer(files) as two:
        settings = PullSettings(store=tmp_path / "store", folder=tmp_path / "out", limits=LIMITS)
        pull(
            [one.url, two.url], everything, settings, progress=lambda *now: told.append(now)
        )  # fmt: skip
    total = sum(len(data) for name, data in files.items() if name != "/manifest.json")
    assert told[0] == (0, total)
    assert told[-1] == (total, total)
    assert all(0 <= done <= total for done, _ in told)
