"""A placement pulled from a cloud, and run with it: the text is the whole model's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.conftest import collm
from tests.e2e.test_bad_input import check, free_port

from collm.model.artifact import Artifact
from collm.session.placed import placed_files

pytestmark = pytest.mark.e2e
ASK = ["Why is the sky blue?", "--max-tokens", "24", "--json"]


@pytest.fixture(scope="module")
def clouds(smollm2: Path) -> Iterator[tuple[str, str]]:
    """Where a cloud takes sessions, and where it serves its artifact."""
    listen, artifacts = (f"127.0.0.1:{free_port()}" for _ in range(2))
    process = subprocess.Popen(
        [sys.executable, "-m", "collm", "cloud", str(smollm2), "--listen", listen,
         "--artifacts", artifacts, "--threads", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert "serving" in process.stdout.readline()
    yield listen, f"http://{artifacts}"
    process.terminate()
    assert process.wait(10) == 0
    process.stdout.close()


def test_ten_layers_pulled_and_run(
    smollm2: Path, clouds: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listen, url = clouds
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    wanted = collm("run", smollm2, *ASK, "--placement", "30").lines()[0]["text"]
    manifest = Artifact(smollm2).manifest
    needed = placed_files(manifest, "verified", 10, None)
    total = sum(manifest.files[name].bytes for name in needed)

    ran = collm("pull", url, tmp_path / "edge", "--placement", "10", "--json")
    assert ran.code == 0, ran.err
    assert ran.err == ""
    (told,) = ran.lines()
    assert told["fetched_bytes"] == total < 0.6 * sum(e.bytes for e in manifest.files.values())
    here = {p.relative_to(tmp_path / "edge").as_posix() for p in (tmp_path / "edge").rglob("*.*")}
    assert here == {*needed, "manifest.json"}
    blocks = ["blocks/000-005", "blocks/005-010"]
    assert sorted({n.rsplit(".", 1)[0] for n in here if "blocks" in n}) == blocks
    ran = collm("run", tmp_path / "edge", *ASK, "--placement", "10", "--cloud", listen)
    assert ran.code == 0, ran.err
    assert ran.lines()[0]["text"] == wanted

    # By its address alone; the store has nearly all of it by now.
    ran = collm("run", url, *ASK, "--placement", "15", "--cloud", listen)
    assert ran.code == 0, ran.err
    assert ran.lines()[0]["text"] == wanted
    said = collm("pull", url, "--placement", "15")
    assert "0 MB fetched" in said.out and str(tmp_path / "cache") in said.out


def test_pulls_that_cannot_be(clouds: tuple[str, str], tmp_path: Path) -> None:
    url, store = clouds[1], ["--store", tmp_path / "s"]
    check(collm("pull", url, "--placement", "7", *store), "placement 7", "5, 10, 15, 20")
    check(collm("pull", url, "--disk", "1mb", *store), "--disk", "budget is 1,000,000")
    check(collm("pull", url, "--all", "--placement", "5", *store), "--all")
    check(collm("pull", f"http://127.0.0.1:{free_port()}", *store), "http://127.0.0.1")
    check(collm("run", url, "Hi", "--cloud", "spawn"), "--cloud spawn", "collm pull")
    assert os.listdir(tmp_path / "s" / "blobs" / "sha256") == []
