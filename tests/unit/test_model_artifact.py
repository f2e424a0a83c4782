"""An artifact on disk: whatever is damaged is named when it is used, the rest is never opened."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.exit_files import exit_file
from tests.support import random_artifact, token_ids, tree

from collm.errors import ArtifactError, PlacementError
from collm.model.artifact import Artifact
from collm.model.exits import add_exit
from collm.model.manifest import Manifest
from collm.runtime.stage import Stage

LAYERS = 4


@pytest.fixture(params=["fp32", "int8"])
def artifact(request: pytest.FixtureRequest, tmp_path: Path) -> Artifact:
    made = random_artifact(tmp_path / "a", weights=request.param, tie_word_embeddings=False)
    exit_path = exit_file(tmp_path / "x", made.architecture, 2, "layer", shortlist=40)
    add_exit(made.folder, exit_path)
    return Artifact(made.folder)


def use_everything(folder: Path) -> None:
    artifact = Artifact(folder)
    artifact.tokenizer()
    session = Stage(artifact, range(LAYERS), exits=(1, 2)).open()
    session.append_ids([5, 6, 7])
    session.exit_at(1)
    session.exit_at(2)
    session.logits(2)


def test_one_damaged_byte_is_noticed_in_every_file(artifact: Artifact) -> None:
    use_everything(artifact.folder)
    names = sorted(artifact.manifest.files)
    kinds = {name.split("/")[0].split(".")[0] for name in names}
    assert kinds == {"blocks", "heads", "exits", "embedding", "final_norm", "tokenizer"}
    assert sorted([*names, "manifest.json"]) == sorted(tree(artifact.folder))
    random = np.random.default_rng(1)
    for name in names:
        path = artifact.folder / name
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] ^= 1 << random.integers(8)
        for content in (bytes(damaged), whole[:-1], whole + b"\0", b""):
            path.write_bytes(content)
            with pytest.raises(ArtifactError) as caught:
                use_everything(artifact.folder)
            assert str(path) in str(caught.value)
        path.unlink()
        with pytest.raises(ArtifactError, match="missing") as caught:
            use_everything(artifact.folder)
        assert str(path) in str(caught.value)
        path.write_bytes(whole)
    use_everything(artifact.folder)


def edit(folder: Path, change: Callable[[dict[str, Any]], None], *, seal: bool = False) -> None:
    """Change manifest.json. seal: with a fingerprint that fits, as an attacker would."""
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    if seal:
        fields = {k: v for k, v in data.items() if k not in ("format", "version", "fingerprint")}
        made = Manifest._from(fields)
        data["fingerprint"] = made.fingerprint
    path.write_text(json.dumps(data))


def replaced(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        assert data[keys[-1]] != value
        data[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        replaced("cuts", value=[1]),
        replaced("weights", value="int4"),
        replaced("architecture", "ropes", 0, "base", value=20_000.0),
        replaced("architecture", "norm_epsilon", value=1e-6),
        replaced("architecture", "layer_window", 0, value=8),
        replaced("blocks", 0, "graph", value="blocks/001-002.onnx"),
        replaced("embedding", "q_offset", value=4),
        replaced("files", "final_norm.f32", "sha256", value="0" * 64),
        replaced("files", "tokenizer.json", "sha256", value="0" * 64),
        replaced("final_norm", value="exits/002-00000000.norm.f32"),
        replaced("heads", "full", "graph", value="heads/short-00000000.onnx"),
        replaced("eos_ids", value=[0]),
        replaced("bos_id", value=1),
        replaced("chat_template", value="{{ messages }}"),
        replaced("fingerprint", value="0" * 64),
    ],
)
def test_an_edit_of_what_decides_the_text_is_noticed(
    tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    folder = random_artifact(tmp_path / "a").folder
    edit(folder, change)
    with pytest.raises(ArtifactError, match="fingerprint"):
        Artifact(folder)


@pytest.mark.parametrize(
    "change",
    [
        replaced("format", value="other"),
        replaced("version", value=3),
        replaced("architecture", value=None),
        replaced("architecture", "layers", value=5),
        replaced("architecture", "heads", value=0),
        replaced("architecture", "ropes", value=[{}]),
        replaced("architecture", "ffn_size", value="wide"),
        replaced("cuts", value=None),
        replaced("cuts", value=["one"]),
        replaced("blocks", value=[{"first": 0}]),
        replaced("heads", value=[]),
        replaced("files", value=["tokenizer.json"]),
        replaced("exits", value=3),
        lambda data: data.pop("embedding"),
        lambda data: data.update(surplus=1),
        lambda data: data.clear(),
    ],
)
def test_a_malformed_manifest_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    folder = random_artifact(tmp_path / "a").folder
    edit(folder, change)
    with pytest.raises(ArtifactError):
        Artifact(folder)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, "\x00", "null"])
def test_a_manifest_that_is_not_json_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        Artifact(tmp_path)


def test_a_folder_that_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such folder"):
        Artifact(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="collm build"):
        Artifact(tmp_path)
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        Artifact(tmp_path)


@pytest.mark.parametrize("name", ["../outside.data", "/etc/passwd", "blocks/../../outside.data"])
def test_a_manifest_cannot_name_files_outside(tmp_path: Path, name: str) -> None:
    folder = random_artifact(tmp_path / "a").folder
    (tmp_path / "outside.data").write_text("secret")

    def change(data: dict[str, Any]) -> None:
        data["files"][name] = {"sha256": "0" * 64, "bytes": 6}

    edit(folder, change, seal=True)
    with pytest.raises(ArtifactError, match="outside"):
        Artifact(folder)


def test_files_that_the_manifest_does_not_list_are_not_opened(tmp_path: Path) -> None:
    folder = random_artifact(tmp_path / "a").folder
    edit(folder, replaced("final_norm", value="../norm.f32"), seal=True)
    with pytest.raises(ArtifactError, match="lists no file"):
        Stage(Artifact(folder), range(LAYERS))


def test_blocks_that_are_not_placed_are_never_opened(artifact: Artifact) -> None:
    ids = token_ids(0, 6)
    whole = Stage(artifact, range(LAYERS)).open()
    whole.append_ids(ids)
    expected = whole.hidden_at(1, 0)
    for name in artifact.manifest.files:
        if name.startswith("blocks/") and not name.startswith("blocks/000-001"):
            (artifact.folder / name).unlink()
    (artifact.folder / "final_norm.f32").write_bytes(b"")
    session = Stage(Artifact(artifact.folder), range(1)).open()
    session.append_ids(ids)
    assert (session.hidden_at(1, 0) == expected).all()


def test_the_last_blocks_need_neither_the_first_nor_the_embedding(artifact: Artifact) -> None:
    for name in artifact.manifest.files:
        if name.startswith(("embedding", "blocks/000", "blocks/001", "exits/", "tokenizer")):
            (artifact.folder / name).unlink()
    stage = Stage(Artifact(artifact.folder), range(2, LAYERS))
    session = stage.open()
    session.append_hidden(np.ones((3, 64), dtype=np.float32))
    assert session.logits(0).shape == (3, 300)
    with pytest.raises(PlacementError, match="takes no ids"):
        stage.embed([1])


@pytest.mark.parametrize("layers", [range(3), range(3, 4), range(5), range(-1, 4)])
def test_placements_are_at_cuts(artifact: Artifact, layers: range) -> None:
    with pytest.raises(PlacementError, match="0, 1, 2, 4"):
        Stage(artifact, layers)


def test_exits_that_the_placement_has_not_are_refused(artifact: Artifact) -> None:
    with pytest.raises(PlacementError, match="offers exits at 1"):
        Stage(artifact, range(1), exits=(2,))
    with pytest.raises(PlacementError, match="exit 3"):
        Stage(artifact, range(LAYERS), exits=(3,))
    with pytest.raises(PlacementError, match="begin at 0, 1, 2"):
        Stage(artifact, range(2)).open(3)
    with pytest.raises(PlacementError, match="not the end of the model"):
        Stage(artifact, range(2)).logits(np.zeros((1, 64), dtype=np.float32))


def test_a_block_that_onnx_runtime_cannot_load_is_named(tmp_path: Path) -> None:
    folder = random_artifact(tmp_path / "a").folder
    name = "blocks/000-001.onnx"
    (folder / name).write_bytes(b"no graph")

    def change(data: dict[str, Any]) -> None:
        import hashlib

        digest = hashlib.sha256(b"no graph").hexdigest()
        data["files"][name] = {"sha256": digest, "bytes": 8}

    edit(folder, change, seal=True)
    with pytest.raises(ArtifactError, match=r"000-001\.onnx.*cannot load"):
        Stage(Artifact(folder), range(1))
