"""Adding exits to an artifact: they work, they change no text, and bad ones change nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tests.exit_files import Tensors, exit_file, exit_tensors, metadata
from tests.support import RandomCheckpoint, random_artifact, token_ids, tree

from collm.errors import ArtifactError, PlacementError
from collm.model.artifact import Artifact
from collm.model.build import build
from collm.model.exits import ExitFile, add_exit
from collm.runtime.stage import Stage

KINDS: list[dict[str, Any]] = [
    {"kind": "identity"},
    {"kind": "identity", "shortlist": 50},
    {"kind": "linear"},
    {"kind": "linear", "packed": True, "shortlist": 50},
    {"kind": "mlp"},
    {"kind": "mlp", "packed": True, "mapped": True, "shortlist": 50},
    {"kind": "layer"},
    {"kind": "layer", "packed": True, "mapped": True},
    {"kind": "layer", "layers": 2, "window": 5, "shortlist": 50, "temperature": 1.7},
]
CUT = 2
IDS = token_ids(3, 24)
Change = Callable[[Tensors, dict[str, str]], object]


@pytest.fixture(params=["fp32", "int8"])
def artifact(request: pytest.FixtureRequest, tmp_path: Path) -> Artifact:
    return random_artifact(tmp_path / "a", weights=request.param)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_an_added_exit_works_and_changes_no_text(
    artifact: Artifact, kind: dict[str, Any], tmp_path: Path
) -> None:
    before = all_logits(artifact)
    add_exit(artifact.folder, exit_file(tmp_path / "x", artifact.architecture, CUT, **kind))
    after = Artifact(artifact.folder)
    assert after.fingerprint == artifact.fingerprint
    assert (all_logits(after) == before).all()
    entry = after.manifest.exit_at(CUT)
    assert entry is not None and entry.trained
    assert (entry.kind, entry.window) == (kind["kind"], kind.get("window", 0))
    session = Stage(after, range(CUT), exits=(CUT,)).open()
    session.append_ids(IDS)
    result, logits = session.exit_at(CUT), session.exit_logits(CUT)
    assert result.token_id == logits.argmax()
    assert np.isfinite(logits).sum() == kind.get("shortlist", 300)
    assert set(tree(artifact.folder)) == {*after.manifest.files, "manifest.json"}


def all_logits(artifact: Artifact) -> Any:
    session = Stage(artifact, range(4), exits=(CUT,)).open()
    session.append_ids(IDS)
    session.exit_at(CUT)
    return session.logits(0)


def test_a_layer_exit_is_the_layer_that_it_holds(tmp_path: Path) -> None:
    """An exit made of the model's own third and fourth layers, norm and head is the model."""
    artifact = random_artifact(tmp_path / "a")
    checkpoint = RandomCheckpoint()
    tensors = {"norm.weight": checkpoint.floats("model.norm.weight")}
    for name in exit_tensors(artifact.architecture, "layer", layers=2):
        if name.startswith("layers."):
            layer = int(name.split(".")[1])
            theirs = name.replace(f"layers.{layer}.", f"model.layers.{layer + 2}.")
            tensors[name] = checkpoint.floats(theirs)
    save_file(tensors, tmp_path / "x", metadata(2, "layer", layers=2))
    add_exit(artifact.folder, tmp_path / "x")
    session = Stage(Artifact(artifact.folder), range(4), exits=(2,)).open()
    for token in IDS:
        session.append_ids([token])
        exit_logits = session.exit_logits(2)
        assert np.abs(exit_logits - session.logits(session.position - 1)[0]).max() < 1e-4


def test_a_packed_exit_is_the_exit_of_its_floats(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "a", weights="fp32")
    tensors = exit_tensors(artifact.architecture, "layer", packed=True)
    floats = {n: t.astype(np.float32) for n, t in tensors.items() if not n.endswith(".scale")}
    for name in floats:
        if (scale := tensors.get(f"{name}.scale")) is not None:
            floats[name] *= np.repeat(scale.astype(np.float32), 32, axis=1)
    made = []
    for name, content in (("packed", tensors), ("floats", floats)):
        save_file(content, tmp_path / name, metadata(CUT, "layer", layers=1))
        add_exit(artifact.folder, tmp_path / name)
        session = Stage(Artifact(artifact.folder), range(CUT), exits=(CUT,)).open()
        session.append_ids(IDS)
        made.append(session.exit_logits(CUT))
    assert np.abs(made[0] - made[1]).max() < 1e-4


def test_a_window_limits_what_an_exit_sees(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "a")
    x = exit_file(tmp_path / "x", artifact.architecture, 1, "layer", window=4)
    add_exit(artifact.folder, x)
    stage = Stage(Artifact(artifact.folder), range(1), exits=(1,))
    hidden = np.random.default_rng(0).normal(0, 1, (20, 64)).astype(np.float32)
    changed = hidden.copy()
    changed[:16] += 1.0
    logits = []
    for rows in (hidden, changed):
        session = stage.open(1)
        session.append_hidden(rows)
        logits.append(session.exit_logits(1))
    assert np.abs(logits[0] - logits[1]).max() < 1e-5
    changed[16] += 1.0
    session = stage.open(1)
    session.append_hidden(changed)
    assert np.abs(session.exit_logits(1) - logits[0]).max() > 1e-3


def test_an_exit_takes_the_place_of_the_old_one(artifact: Artifact, tmp_path: Path) -> None:
    arch = artifact.architecture
    for cut, kind in ((1, "linear"), (2, "layer"), (2, "linear"), (1, "identity")):
        add_exit(artifact.folder, exit_file(tmp_path / "x", arch, cut, kind, seed=cut))
    exits = Artifact(artifact.folder).manifest.exits
    assert [(e.cut, e.kind) for e in exits] == [(1, "identity"), (2, "linear")]
    all_logits(Artifact(artifact.folder))


def test_the_same_exit_twice_is_the_same_artifact(artifact: Artifact, tmp_path: Path) -> None:
    x = exit_file(tmp_path / "x", artifact.architecture, CUT, "layer", shortlist=50)
    add_exit(artifact.folder, x)
    once = tree(artifact.folder)
    add_exit(artifact.folder, x)
    assert tree(artifact.folder) == once


def test_a_build_takes_exits_in(tmp_path: Path) -> None:
    checkpoint = RandomCheckpoint()
    asked: list[str] = []

    def exits(digest: str) -> list[Path]:
        asked.append(digest)
        arch = checkpoint.architecture
        return [exit_file(tmp_path / f"x{cut}", arch, cut, "linear") for cut in (1, 2, 3)]

    manifest = build(checkpoint, tmp_path / "a", cuts=(1, 3), weights="fp32", exits=exits)
    assert asked == [checkpoint.sha256()]
    assert [(e.cut, e.kind) for e in manifest.exits] == [(1, "linear"), (3, "linear")]
    assert Artifact(tmp_path / "a").manifest == manifest


# ----------------------------------------------------------------------------- bad files


def without(name: str) -> Change:
    return lambda tensors, about: tensors.pop(name, None) is None


def shaped(name: str, *shape: int) -> Change:
    def change(tensors: Tensors, about: dict[str, str]) -> None:
        tensors[name] = np.ones(shape, dtype=np.float32)

    return change


def about(**changes: str) -> Change:
    return lambda tensors, metadata: metadata.update(changes)


def shortlist(*ids: int) -> Change:
    def change(tensors: Tensors, about: dict[str, str]) -> None:
        tensors["shortlist"] = np.array(ids, dtype=np.int32)

    return change


def floats_with_scales(tensors: Tensors, about: dict[str, str]) -> None:
    name = "layers.0.mlp.up_proj.weight"
    tensors[f"{name}.scale"] = np.ones((96, 2), dtype=np.float16)


def not_finite(tensors: Tensors, about: dict[str, str]) -> None:
    tensors["layers.0.self_attn.o_proj.weight"][3, 4] = np.nan


BAD: list[tuple[str, Change, str]] = [
    ("no norm", without("norm.weight"), r"norm\.weight is missing"),
    ("no matrix", without("layers.0.mlp.up_proj.weight"), r"up_proj\.weight is missing"),
    ("wide norm", shaped("norm.weight", 65), r"norm\.weight has shape \(65,\), expected \(64,\)"),
    ("narrow matrix", shaped("layers.0.self_attn.q_proj.weight", 64, 32), "q_proj"),
    ("matrix of rank 1", shaped("layers.0.mlp.down_proj.weight", 64), "down_proj"),
    ("other format", about(format="gguf"), "not a CoLLM exit"),
    ("other version", about(version="2"), "version 1"),
    ("kind", about(kind="magic"), "magic"),
    ("cut", about(cut="two"), "two"),
    ("no layers", about(layers="0"), "layers"),
    ("too many layers", about(layers="5"), "layers"),
    ("layers missing", about(layers="2"), r"layers\.1\."),
    ("negative window", about(window="-1"), "out of range"),
    ("wide window", about(window=str(2**70)), "out of range"),
    ("temperature 0", about(temperature="0"), "out of range"),
    ("temperature nan", about(temperature="nan"), "out of range"),
    ("temperature", about(temperature="warm"), "warm"),
    ("shortlist outside", shortlist(1, 300), "outside the vocabulary"),
    ("shortlist negative", shortlist(-1, 3), "outside the vocabulary"),
    ("shortlist of one", shortlist(3), "shortlist"),
    ("shortlist empty", shortlist(), "shortlist"),
    ("shortlist descending", shortlist(3, 2), "ascending"),
    ("shortlist twice", shortlist(3, 3), "ascending"),
    ("shortlist of rank 2", shaped("shortlist", 2, 2), "shortlist"),
    ("shortlist of floats", shaped("shortlist", 2), "shortlist"),
    ("scales on floats", floats_with_scales, "int8"),
    ("not finite", not_finite, "finite"),
    ("narrow map", shaped("linear.weight", 64, 32), r"linear\.weight has shape \(64, 32\)"),
    ("an mlp of nothing", about(kind="mlp", layers="0"), r"mlp\.gate_proj\.weight is missing"),
]


@pytest.mark.parametrize(("change", "says"), [pytest.param(c, s, id=n) for n, c, s in BAD])
def test_a_malformed_exit_leaves_the_artifact_untouched(
    tmp_path: Path, change: Change, says: str
) -> None:
    artifact = random_artifact(tmp_path / "a")
    tensors = exit_tensors(artifact.architecture, "layer")
    metadata_ = metadata(CUT, "layer", layers=1)
    change(tensors, metadata_)
    save_file(tensors, tmp_path / "x", metadata_)
    before = tree(artifact.folder)
    with pytest.raises(ArtifactError, match=says) as caught:
        add_exit(artifact.folder, tmp_path / "x")
    assert str(tmp_path / "x") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert tree(artifact.folder) == before
    assert not [p for p in artifact.folder.iterdir() if p.name.startswith(".")]


def test_more_adapter_layers_than_the_model_has(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "a", num_hidden_layers=2, cuts=(1,))
    x = exit_file(tmp_path / "x", artifact.architecture, 1, "layer", layers=3)
    with pytest.raises(ArtifactError, match="layers"):
        add_exit(artifact.folder, x)


def test_scales_for_inputs_that_make_no_blocks(tmp_path: Path) -> None:
    sizes = {"hidden_size": 72, "num_attention_heads": 3, "num_key_value_heads": 3}
    artifact = random_artifact(tmp_path / "a", **sizes)
    tensors: Tensors = {
        "norm.weight": np.ones(72, dtype=np.float32),
        "linear.weight": np.zeros((72, 72), dtype=np.int8),
        "linear.weight.scale": np.ones((72, 2), dtype=np.float16),
    }
    save_file(tensors, tmp_path / "x", metadata(CUT, "linear"))
    with pytest.raises(ArtifactError, match="32"):
        add_exit(artifact.folder, tmp_path / "x")


@pytest.mark.parametrize("cut", [0, 3, 4, -1])
def test_an_exit_for_a_layer_that_is_no_cut(tmp_path: Path, cut: int) -> None:
    artifact = random_artifact(tmp_path / "a")
    before = tree(artifact.folder)
    x = exit_file(tmp_path / "x", artifact.architecture, cut, "identity")
    with pytest.raises(PlacementError, match="cuts are 1, 2"):
        add_exit(artifact.folder, x)
    assert tree(artifact.folder) == before


def test_an_exit_file_cut_short(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "a")
    whole = exit_file(tmp_path / "x", artifact.architecture, CUT, "layer").read_bytes()
    before = tree(artifact.folder)
    for length in (0, 1, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "x").write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match="not a readable exit"):
            add_exit(artifact.folder, tmp_path / "x")
    with pytest.raises(ArtifactError, match="no such file"):
        ExitFile(tmp_path / "nothing")
    assert tree(artifact.folder) == before


def test_an_interrupted_addition_leaves_a_sound_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = random_artifact(tmp_path / "a")
    x = exit_file(tmp_path / "x", artifact.architecture, CUT, "layer", shortlist=50)
    before = artifact.manifest
    real, calls = os.replace, 0

    def replace_until(stop_at: int) -> Callable[[Any, Any], None]:
        def replace(source: Any, target: Any) -> None:
            nonlocal calls
            calls += 1
            if calls > stop_at:
                raise KeyboardInterrupt
            real(source, target)

        return replace

    for stop_at in range(7):
        calls = 0
        monkeypatch.setattr(os, "replace", replace_until(stop_at))
        with pytest.raises(KeyboardInterrupt):
            add_exit(artifact.folder, x)
        assert Artifact(artifact.folder).manifest == before
        all_logits(Artifact(artifact.folder))
    monkeypatch.setattr(os, "replace", real)
    add_exit(artifact.folder, x)
    all_logits(Artifact(artifact.folder))


def test_a_damaged_head_is_not_blessed_by_a_new_shortlist(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "a")
    path = artifact.folder / "heads/full.data"
    damaged = bytearray(path.read_bytes())
    damaged[100] ^= 1
    path.write_bytes(damaged)
    x = exit_file(tmp_path / "x", artifact.architecture, CUT, "identity", shortlist=50)
    with pytest.raises(ArtifactError, match=r"full\.data"):
        add_exit(artifact.folder, x)


def test_a_replaced_exit_leaves_no_files_behind(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "artifact")
    arch = artifact.architecture
    for seed in (1, 2):
        path = tmp_path / f"exit-{seed}.safetensors"
        tensors = exit_tensors(arch, "layer", shortlist=64 * seed, seed=seed)
        save_file(tensors, path, metadata(1, "layer", layers=1))
        manifest = add_exit(artifact.folder, path)
    on_disk = {p.relative_to(artifact.folder).as_posix() for p in artifact.folder.rglob("*.*")}
    assert on_disk - {"manifest.json"} == set(manifest.files)
    assert sum(name.startswith("exits/") for name in manifest.files) == 3
    assert set(manifest.heads) == {"full", next(h for h in manifest.heads if h != "full")}
    reopened = Artifact(artifact.folder)
    for name in reopened.manifest.files:
        reopened.path(name)
