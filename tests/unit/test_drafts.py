"""Draft paths: what they compute, what an artifact keeps of them, and that they never change it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.exit_files import exit_file
from tests.support import F32, RandomCheckpoint, random_artifact, token_ids, tree

from collm.cli.main import main
from collm.errors import ArtifactError, PlacementError, UsageError
from collm.model.artifact import Artifact
from collm.model.build import build
from collm.model.drafts import DraftPlan, add_draft, draft_bytes, draft_files, remove_draft
from collm.model.exit_copy import copy_exit
from collm.model.exits import add_exit
from collm.model.manifest import Manifest
from collm.model.quantize import Quantised, quantise_int8
from collm.model.stored import StoredWeights
from collm.model.thinning import in_form, in_groups, keep_channels
from collm.runtime.draft_stage import DraftStage
from collm.runtime.stage import Stage

CUTS = (1, 2, 3)
IDS = token_ids(3, 40)
FORMS = ("fp32", "int8", "int4")
GROUPS = np.concatenate([np.arange(32), np.arange(64, 96)])
"""Channels of TINY's 96, in whole groups."""
LOOSE = np.delete(np.arange(96), np.arange(0, 64, 2))


def artifact_with_exit(folder: Path, kind: str = "layer", **options: Any) -> Artifact:
    made = random_artifact(folder / "artifact", cuts=CUTS, **options)
    path = folder / "exit.safetensors"
    options = {"layers": 2} if kind == "layer" else {}
    exit_file(path, made.architecture, 3, kind, feed=(0, 2), packed=True, shortlist=64, **options)
    add_exit(made.folder, path)
    return Artifact(made.folder)


def with_draft(artifact: Artifact, exit_path: Path | None = None, **plan: Any) -> Artifact:
    wanted = {"name": "small", "cut": 3, "layers": (0, 1, 2), **plan}
    add_draft(artifact.folder, DraftPlan(**wanted), exit_path)
    return Artifact(artifact.folder)


def end_state(artifact: Artifact, name: str = "small") -> F32:
    session = DraftStage(artifact, name).open()
    session.append_ids(IDS)
    return session.hidden_at(session.stage.bounds[-1], 0)


# ------------------------------------------------------------------- what a path computes


@pytest.mark.parametrize("weights", FORMS)
@pytest.mark.parametrize("kind", ["layer", "mlp", "linear"])
def test_a_path_of_all_layers_is_the_chain_of_blocks(
    tmp_path: Path, weights: str, kind: str
) -> None:
    artifact = artifact_with_exit(tmp_path, kind, weights=weights)
    copied = copy_exit(artifact, 3, tmp_path / "copy.safetensors")
    artifact = with_draft(with_draft(artifact, copied), None, name="bare")
    session = Stage(artifact, range(3), exits=(3,)).open()
    session.append_ids(IDS)
    logits = session.exit_row_logits(3, 0)
    path = DraftStage(artifact, "small").open()
    path.append_ids(IDS)
    assert (path.exit_row_logits(3, 0) == logits).all()
    whole = Stage(artifact, range(3)).open()
    whole.append_ids(IDS)
    assert (end_state(artifact, "bare") == whole.hidden_at(3, 0)).all()


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text"])
def test_other_families_make_paths_too(tmp_path: Path, family: str) -> None:
    windows = {"head_dim": 32, "sliding_window": 6,
               "layer_types": ["sliding_attention", "full_attention"] * 2}  # fmt: skip
    artifact = random_artifact(
        tmp_path / "a", cuts=CUTS, weights="int4", model_type=family, **windows
    )
    whole = Stage(artifact, range(3)).open()
    whole.append_ids(IDS)
    assert (end_state(with_draft(artifact)) == whole.hidden_at(3, 0)).all()


def test_a_path_leaves_out_what_it_is_told_to(tmp_path: Path) -> None:
    artifact = with_draft(random_artifact(tmp_path / "artifact", cuts=CUTS), layers=(0, 2))
    stage = Stage(artifact, range(3))
    x = stage.embed(IDS)
    for block in (0, 2):
        x = stage.chains[block].run(x, stage.chains[block].new_cache(), 0)
    assert (end_state(artifact) == x).all()


def test_a_path_of_no_layers_is_an_exit_on_the_embedding(tmp_path: Path) -> None:
    artifact = artifact_with_exit(tmp_path)
    copied = copy_exit(artifact, 3, tmp_path / "copy.safetensors")
    artifact = with_draft(artifact, copied, layers=())
    stage = Stage(artifact, range(3), exits=(3,))
    rows = stage.embed(IDS)
    adapter = stage.exits[3].adapter
    assert adapter is not None
    wanted = adapter.run(np.concatenate([rows] * 3, axis=1), adapter.new_cache(), 0)
    assert (end_state(artifact) == wanted).all()


@pytest.mark.parametrize("channels", [GROUPS, LOOSE], ids=["groups", "loose"])
def test_pruned_channels_are_as_if_they_were_zero(tmp_path: Path, channels: Any) -> None:
    class Zeroed(RandomCheckpoint):
        """The same model, its pruned channels' ways out set to zero."""

        def floats(self, name: str) -> F32:
            values = super().floats(name)
            if ".1.mlp.down" in name:
                values[:, np.delete(np.arange(96), channels)] = 0
            return values

    build(Zeroed(), tmp_path / "zeroed", cuts=CUTS, weights="fp32")
    reference = Stage(Artifact(tmp_path / "zeroed"), range(3)).open()
    reference.append_ids(IDS)
    artifact = random_artifact(tmp_path / "artifact", cuts=CUTS)
    made = end_state(with_draft(artifact, channels={1: channels}))
    assert made == pytest.approx(reference.hidden_at(3, 0), rel=1e-4, abs=1e-4)
    assert np.abs(end_state(with_draft(artifact)) - made).max() > 0.1


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_whole_groups_of_channels_keep_their_values_exactly(tmp_path: Path, weights: str) -> None:
    stored = StoredWeights(random_artifact(tmp_path / "a", cuts=CUTS, weights=weights))
    full = stored.packed_layer(1)
    thin = keep_channels(full, GROUPS)
    assert isinstance(thin.down, Quantised) and isinstance(full.down, Quantised)
    assert thin.down.bits == full.down.bits
    assert (thin.down.floats() == full.down.floats()[:, GROUPS]).all()
    loose = keep_channels(full, LOOSE)
    assert isinstance(loose.down, Quantised) and isinstance(loose.gate_up, Quantised)
    assert loose.down.bits == 8
    both = np.concatenate([LOOSE, LOOSE + 96])
    assert isinstance(full.gate_up, Quantised)
    assert (loose.gate_up.floats() == full.gate_up.floats()[both]).all()
    assert in_groups(GROUPS) and not in_groups(LOOSE) and not in_groups(np.arange(1, 33))


def test_forms_never_round_to_four_bits_twice(tmp_path: Path) -> None:
    layer = StoredWeights(random_artifact(tmp_path / "a", cuts=CUTS, weights="int4")).packed_layer(
        0
    )
    assert isinstance(layer.o, Quantised) and isinstance(layer.down, Quantised)
    same = in_form(layer, "int4")
    assert same.o is layer.o and same.down is layer.down
    mixed = in_form(layer, "mixed")
    assert isinstance(mixed.o, Quantised) and mixed.o.bits == 8 and mixed.down is layer.down
    assert (mixed.o.q == quantise_int8(layer.o.floats()).q).all()
    floats = in_form(layer, "fp32")
    assert isinstance(floats.o, np.ndarray) and (floats.o == layer.o.floats()).all()


def test_a_form_is_smaller_than_another(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "a", cuts=CUTS, weights="int4")
    sizes = {}
    for form in ("int8", "mixed", "int4"):
        artifact = with_draft(artifact, name=form, weights=form)
        entry = artifact.manifest.draft_named(form)
        assert entry is not None and entry.weights == form
        sizes[form] = draft_bytes(artifact.manifest, entry)
    assert sizes["int8"] > sizes["mixed"] > sizes["int4"]


# ------------------------------------------------------------------- what an artifact keeps


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", ["layer", "mlp", "linear", "identity"])
def test_an_exit_comes_out_of_an_artifact_as_it_went_in(
    tmp_path: Path, kind: str, packed: bool
) -> None:
    artifact = random_artifact(tmp_path / "artifact", cuts=CUTS, weights="int8")
    feed = () if kind == "identity" else (0, 1)
    given = exit_file(tmp_path / "a.safetensors", artifact.architecture, 2, kind, feed=feed,
                      packed=packed, shortlist=32, temperature=0.7)  # fmt: skip
    add_exit(artifact.folder, given)
    got = copy_exit(Artifact(artifact.folder), 2, tmp_path / "b.safetensors")
    ours, theirs = load_file(got), load_file(given)
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        assert ours[name].dtype == values.dtype and (ours[name] == values).all(), name
    with pytest.raises(PlacementError, match="has exits at 1, 2, 3"):
        copy_exit(artifact, 4, tmp_path / "c.safetensors")


def test_drafts_leave_model_and_fingerprint_alone(tmp_path: Path) -> None:
    artifact = artifact_with_exit(tmp_path)
    before = tree(artifact.folder)
    copied = copy_exit(artifact, 3, tmp_path / "copy.safetensors")
    made = with_draft(artifact, copied, layers=(0, 2), channels={2: GROUPS})
    assert made.fingerprint == artifact.fingerprint
    (entry,) = made.manifest.drafts
    assert (entry.layers, entry.channels, entry.cut) == ((0, 2), (96, 64), 3)
    assert Manifest.read(made.folder).drafts == (entry,)
    after = tree(made.folder)
    assert all(after[name] == before[name] for name in before if name != "manifest.json")
    needed = draft_files(made.manifest, "small")
    assert not any(name.startswith(("blocks/", "exits/")) for name in needed)
    # An exit that goes takes nothing along that a path still needs, and a path leaves no trace.
    add_exit(made.folder, exit_file(tmp_path / "x", made.architecture, 3, "linear"))
    assert end_state(Artifact(made.folder)).shape == (40, 64)
    remove_draft(made.folder, "small")
    assert not any(name.startswith("drafts/") for name in tree(made.folder))
    assert "drafts" not in json.loads((made.folder / "manifest.json").read_text())


def test_a_device_needs_no_other_files(tmp_path: Path) -> None:
    artifact = artifact_with_exit(tmp_path)
    made = with_draft(artifact, copy_exit(artifact, 3, tmp_path / "copy"))
    wanted = end_state(made)
    for name in made.manifest.files:
        if name not in draft_files(made.manifest, "small"):
            (made.folder / name).unlink()
    assert (end_state(Artifact(made.folder)) == wanted).all()


def test_an_old_manifest_is_read_and_written_as_it_was(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "a")
    data = json.loads((artifact.folder / "manifest.json").read_text())
    assert "drafts" not in data
    assert artifact.manifest.drafts == ()


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../x"},
        {"layers": [0, 0, 1]},
        {"layers": [0, 1, 7]},
        {"layers": [0, 1, True]},
        {"channels": [96, 96]},
        {"channels": [96, 96, 960]},
        {"channels": [96, 96, 0]},
        {"weights": "int2"},
        {"kind": "magic"},
        {"cut": 4},
        {"cut": "3"},
        {"head": "none"},
        {"graph": "drafts/none.onnx"},
        {"norm": 5},
        {"temperature": float("nan")},
        {"temperature": None},
        {"training": None},
        {"exit_layers": -1},
        {"surprise": 1},
        {"layers": None},
    ],
    ids=str,
)
def test_a_damaged_entry_is_refused_in_one_line(tmp_path: Path, change: dict[str, Any]) -> None:
    artifact = with_draft(random_artifact(tmp_path / "a", cuts=CUTS))
    path = artifact.folder / "manifest.json"
    data = json.loads(path.read_text())
    data["drafts"][0].update(change)
    path.write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged") as refused:
        Artifact(artifact.folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("drafts", [{}, [5], "x", [{}], None], ids=str)
def test_what_is_no_list_of_drafts_is_refused(tmp_path: Path, drafts: Any) -> None:
    artifact = random_artifact(tmp_path / "a", cuts=CUTS)
    path = artifact.folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"drafts": drafts}))
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged"):
        Artifact(artifact.folder)


def test_damaged_weights_are_noticed(tmp_path: Path) -> None:
    artifact = with_draft(random_artifact(tmp_path / "a", cuts=CUTS))
    path = artifact.folder / artifact.manifest.drafts[0].data
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="damaged"):
        DraftStage(artifact, "small")


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"name": "A b"}, "draft name 'A b': expected"),
        ({"cut": 4}, "has cuts at 1, 2, 3"),
        ({"layers": (0, 3)}, "expected ascending layers from 0 to 2"),
        ({"layers": (1, 0)}, "expected ascending layers from 0 to 2"),
        ({"layers": ()}, "needs a trained exit"),
        ({"weights": "int2"}, "expected one of fp32"),
        ({"channels": {0: np.arange(33)}}, "expected a multiple of 32"),
        ({"channels": {0: np.arange(32, 128)}}, "expected a multiple of 32"),
    ],
    ids=str,
)
def test_bad_plans_are_refused_and_change_nothing(
    tmp_path: Path, plan: dict[str, Any], said: str
) -> None:
    artifact = random_artifact(tmp_path / "a", cuts=CUTS)
    before = tree(artifact.folder)
    with pytest.raises(UsageError, match=said):
        with_draft(artifact, **plan)
    assert tree(artifact.folder) == before


def test_int8_weights_are_not_rounded_to_four_bits(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "a", cuts=CUTS, weights="int8")
    with pytest.raises(UsageError, match="build it with --weights int4"):
        with_draft(artifact, weights="mixed")


def test_an_exit_of_another_cut_is_refused(tmp_path: Path) -> None:
    artifact = artifact_with_exit(tmp_path)
    with pytest.raises(ArtifactError, match="an exit at layer 3"):
        with_draft(artifact, copy_exit(artifact, 3, tmp_path / "e"), cut=2, layers=(0, 1))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--draft-path", "none"], "the artifact has small"),
        (["--draft-path", "small", "--placement", "1"], "goes with mode verified and placement 0"),
        (["--draft-path", "small", "--mode", "cloud"], "goes with mode verified and placement 0"),
        (["--draft-path", "small", "--exits", "1"], "brings its own exit"),
    ],
)
def test_run_refuses_paths_that_cannot_be_used(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
) -> None:
    artifact = with_draft(random_artifact(tmp_path / "a", cuts=CUTS))
    monkeypatch.setattr("sys.argv", ["collm", "run", str(artifact.folder), "hello", *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
