"""`collm list` and `collm rm`: what is here, and that nothing else ever goes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests.support import random_artifact
from typer.testing import CliRunner

from collm.cli.main import app
from collm.cli.remote import named_folder
from collm.errors import UsageError
from collm.model.inventory import find, held, is_pulled
from collm.model.manifest import Manifest
from collm.model.needs import edge_files
from collm.model.store import Store
from collm.serve.registry import registered


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The user's own, empty."""
    for name in ("CACHE_HOME", "RUNTIME_DIR"):
        (tmp_path / name).mkdir(mode=0o700)
        monkeypatch.setenv(f"XDG_{name}", str(tmp_path / name))
    monkeypatch.chdir(tmp_path)
    return Store()


def pulled(store: Store, source: Path, folder: Path | None = None, layers: int = 4) -> Path:
    """As `collm pull` leaves it: blobs in the store, and a folder of links."""
    manifest = Manifest.read(source)
    names = edge_files(manifest, range(layers), ())
    target = folder or store.artifact_folder(manifest.name, manifest.fingerprint)
    target.mkdir(parents=True)
    for name in names:
        blob = store.blob(manifest.files[name].sha256)
        blob.write_bytes((source / name).read_bytes())
        blob.chmod(0o444)
    store.fill(target, {name: manifest.files[name] for name in names})
    manifest.write(target)
    return target


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return random_artifact(tmp_path / "source").folder


def blobs(store: Store) -> set[str]:
    return {path.name for path in store.blobs.iterdir()}


def rm(*words: str) -> str:
    """What it said; it went well."""
    ran = CliRunner().invoke(app, ["rm", *words])
    assert ran.exit_code == 0, ran.exception
    return ran.stdout


def refused(*words: str) -> str:
    ran = CliRunner().invoke(app, ["rm", *words])
    assert isinstance(ran.exception, UsageError), ran.stdout
    return str(ran.exception)


def test_what_is_here(store: Store, source: Path, tmp_path: Path) -> None:
    assert "no artifacts in" in CliRunner().invoke(app, ["list"]).stdout
    whole, part = pulled(store, source), pulled(store, source, tmp_path / "part", layers=1)
    listed = {one.folder: one for one in held(store)}
    assert set(listed) == {whole, part}
    assert (listed[whole].in_store, listed[whole].layers) == (True, ((0, 4),))
    assert (listed[part].in_store, listed[part].layers) == (False, ((0, 1),))
    assert listed[part].bytes < listed[part].all_bytes
    told = CliRunner().invoke(app, ["list"]).stdout
    assert "all 4" in told and "0 to 0 of 4" in told and whole.name in told
    records = json.loads(CliRunner().invoke(app, ["list", "--json", str(source)]).stdout)
    assert {one["folder"] for one in records} == {str(whole), str(part), str(source)}
    assert is_pulled(part) and not is_pulled(source)


def test_blobs_go_with_the_last_that_needs_them(store: Store, source: Path, tmp_path: Path) -> None:
    whole, part = pulled(store, source), pulled(store, source, tmp_path / "part", layers=1)
    shared = blobs(store)
    taken = sum(path.stat().st_size for path in store.blobs.iterdir())
    assert rm(whole.name, "--yes").endswith(" MB freed\n")
    assert not whole.exists() and part.exists()
    assert blobs(store) == shared  # the manifest of the part names them all
    made = json.loads(rm("./part", "--yes", "--json"))
    assert made["freed_bytes"] >= taken
    assert (blobs(store), part.exists()) == (set(), False)
    assert source.exists()


def test_names_fingerprints_and_what_is_none(store: Store, source: Path, tmp_path: Path) -> None:
    whole = pulled(store, source)
    fingerprint = Manifest.read(source).fingerprint
    assert [one.folder for one in find(store, fingerprint[:12])] == [whole]
    assert find(store, fingerprint[:3]) == []
    assert "no such artifact; there are: random" in refused("randm", "--yes")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one").write_text("dear")
    assert "to remove the folder of that name say ./photos" in refused("photos", "--yes")
    assert "not an artifact" in refused("./photos", "--yes")
    assert (tmp_path / "photos" / "one").read_text() == "dear"
    os.symlink(source, tmp_path / "link")
    assert "a symbolic link" in refused("./link", "--yes")
    pulled(store, source, tmp_path / "again")
    assert "there are several" in refused("random", "--yes")
    with pytest.raises(UsageError, match="there are several"):
        named_folder("random")
    rm("./again", "-y")
    assert named_folder("random") == whole  # collm run random
    assert named_folder("nothing") == Path("nothing")
    assert "say --yes" in refused("random")


def test_other_files_in_a_folder_stay(source: Path) -> None:
    (source / "notes.txt").write_text("mine")
    rm("./source", "--yes")
    assert [path.name for path in source.rglob("*")] == ["notes.txt"]


def test_what_is_in_use_stays(store: Store, source: Path) -> None:
    from collm.model.artifact import Artifact

    folder = pulled(store, source)
    with registered(kind="cloud", address="127.0.0.1:7", artifact=Artifact(folder)):
        said = refused("random", "--yes")
    assert f"in use by cloud 127.0.0.1:7 (pid {os.getpid()}); end that first" in said
    manifest = Manifest.read(folder)
    with store.lock():
        pin = store.pin([manifest.files["tokenizer.json"].sha256])
        pin.__enter__()
    try:
        assert "a collm pull under way needs it" in refused("random", "--yes")
        assert held(store)[0].layers == ((0, 4),)
    finally:
        pin.__exit__(None, None, None)
    rm("random", "--yes")
    assert held(store) == []
