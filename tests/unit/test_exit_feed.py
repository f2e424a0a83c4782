"""Exits that also read the states at earlier cuts: what they compute, keep and refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tests.exit_files import Tensors, exit_file, exit_tensors, metadata
from tests.support import F32, random_artifact, token_ids, tree
from typer.testing import CliRunner

from collm.cli.main import app
from collm.errors import ArtifactError, PlacementError
from collm.model.artifact import Artifact
from collm.model.exits import ExitFile, add_exit
from collm.model.manifest import Manifest
from collm.runtime.stage import Stage, StageSession

LAYERS, CUTS, CUT = 4, (1, 2, 3), 3
WEIGHTS = ["fp32", "fp32-packed", "int4", "int4-packed"]
FEEDS = [(0,), (2,), (0, 1, 2)]
PAIRS = [
    pytest.param(weights, kind, FEEDS[(i + j) % 3], id=f"{weights}-{kind}-{FEEDS[(i + j) % 3]}")
    for i, weights in enumerate(WEIGHTS)
    for j, kind in enumerate(["linear", "mlp", "layer"])
]
"""Every two of weights, kind and feed together."""
KINDS: list[dict[str, Any]] = [
    {"kind": "linear"},
    {"kind": "mlp", "shortlist": 50},
    {"kind": "layer", "temperature": 1.7},
    {"kind": "layer", "layers": 2, "window": 7, "shortlist": 50},
]


def states_at(artifact: Artifact, ids: list[int], *cuts: int) -> F32:
    """The model's states at each of the cuts, side by side."""
    session = Stage(artifact, range(LAYERS)).open()
    session.append_ids(ids)
    found = {cut: session.hidden_at(cut, 0) for cut in sorted(cuts)}
    return np.concatenate([found[cut] for cut in cuts], axis=1)


def fed_stage(folder: Path, feed: tuple[int, ...], *, weights: str = "fp32", **kind: Any) -> Stage:
    artifact = random_artifact(folder / "a", weights=weights, cuts=CUTS)
    x = exit_file(folder / "x", artifact.architecture, CUT, feed=feed, **kind)
    add_exit(artifact.folder, x)
    return Stage(Artifact(artifact.folder), range(CUT), exits=(CUT,))


def matrix_of(tensors: Tensors) -> F32:
    """The values of `linear.weight`."""
    w = tensors["linear.weight"].astype(np.float32)
    if (scale := tensors.get("linear.weight.scale")) is not None:
        w *= np.repeat(scale.astype(np.float32), 32, axis=1)
    return w


# -------------------------------------------------------------------------- computation


@pytest.mark.parametrize(("weights", "kind", "feed"), PAIRS)
def test_a_fed_exit_is_its_map_and_then_the_adapter(
    weights: str, kind: str, feed: tuple[int, ...], tmp_path: Path
) -> None:
    """The same exit without a map or a feed says the same of states mapped by NumPy."""
    weights, _, packed = weights.partition("-")
    artifact, ids = random_artifact(tmp_path / "a", weights=weights, cuts=CUTS), token_ids(1, 140)
    tensors = exit_tensors(artifact.architecture, kind, feed=feed, packed=bool(packed))
    rows = states_at(artifact, ids, CUT, *feed)
    own, mapped = rows[:, : artifact.architecture.hidden_size], rows @ matrix_of(tensors).T

    def row_logits(states: F32 | None, tensors: Tensors, **about: Any) -> F32:
        save_file(tensors, tmp_path / "x", metadata(CUT, **about))
        add_exit(artifact.folder, tmp_path / "x")
        stage = Stage(Artifact(artifact.folder), range(CUT), exits=(CUT,))
        if states is None:
            session = stage.open()
            session.append_ids(ids)
        else:
            session = stage.open(CUT)
            session.append_hidden(states)
        return session.exit_row_logits(CUT, 0)

    layers = int(kind == "layer")
    made = row_logits(None, tensors, kind=kind, layers=layers, feed=list(feed))
    for name in ("linear.weight", "linear.weight.scale"):
        tensors.pop(name, None)
    if kind == "linear":
        expected = row_logits(own + mapped, tensors, kind="identity")
    else:
        expected = row_logits(mapped, tensors, kind=kind, layers=layers)
    if weights == "fp32":
        assert np.abs(made - expected).max() < 2e-4
    else:  # these kernels round their inputs to 8 bits
        assert np.abs(made - expected).max() < 0.15 * expected.std()
        assert (made.argmax(-1) == expected.argmax(-1)).mean() > 0.8


@pytest.mark.parametrize("kind", ["linear", "mlp", "layer"])
@pytest.mark.parametrize("weights", ["fp32", "int4"])
def test_an_exit_computes_what_the_tuner_trained(weights: str, kind: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from collm.tune.backbone import load_backbone
    from collm.tune.export import pack
    from collm.tune.heads import ExitHead, ExitSpec

    artifact, ids = random_artifact(tmp_path / "a", weights=weights, cuts=CUTS), token_ids(2, 60)
    backbone, feed = load_backbone(artifact), (0, 2)
    torch.manual_seed(0)
    window = 9 if kind == "layer" else 0
    head = ExitHead(backbone, ExitSpec(cut=CUT, kind=kind, feed=feed, window=window))
    tensors = {name: tensor.numpy() for name, tensor in pack(head).items()}
    about = metadata(CUT, kind, layers=int(kind == "layer"), window=window, feed=list(feed))
    save_file(tensors, tmp_path / "x", about)
    add_exit(artifact.folder, tmp_path / "x")
    session = Stage(Artifact(artifact.folder), range(CUT), exits=(CUT,)).open()
    session.append_ids(ids)
    made = session.exit_row_logits(CUT, 0)
    rows = states_at(artifact, ids, CUT, *feed)
    with torch.no_grad():
        normed = head(torch.tensor(rows)[None], backbone.ropes(60), torch.ones(1, 60).bool())
        expected = (normed @ backbone.unembedding_VD.T).numpy()
    largest = 1e-4 if weights == "fp32" else 0.1 * expected.std()
    assert np.abs(made - expected).max() < largest


@pytest.mark.parametrize(
    ("weights", "kind"),
    [*(("fp32", kind) for kind in KINDS), *(("int4", kind) for kind in (KINDS[1], KINDS[3]))],
    ids=str,
)
def test_all_rows_at_once_are_the_rows_one_by_one(
    weights: str, kind: dict[str, Any], tmp_path: Path
) -> None:
    stage, ids = (
        fed_stage(tmp_path, (0, 2), weights=weights, packed=True, **kind),
        token_ids(5, 150),  # more than are computed at once
    )
    one, whole, tail = stage.open(), stage.open(), stage.open()
    results = []
    for token in ids:
        one.append_ids([token])
        results.append(one.exit_at(CUT))
        assert one.exit_logits(CUT).argmax() == results[-1].token_id
    whole.append_ids(ids)
    rows = whole.exit_rows(CUT, 0)
    same = rows.token_ids == [r.token_id for r in results]
    apart = np.abs(rows.confidences - [r.confidence for r in results])
    if weights == "fp32":
        assert same.all() and apart.max() < 1e-5
    else:  # a lone row takes other kernels
        assert same.mean() > 0.95 and np.median(apart) < 0.02
    tail.append_ids(ids)
    assert (tail.exit_rows(CUT, 15).token_ids == rows.token_ids[15:]).all()
    with pytest.raises(IndexError):
        whole.exit_rows(CUT, 150)


# --------------------------------------------------------------------- sessions and crops


def two_exits(folder: Path) -> Stage:
    """An exit at 2 that reads 1 and the embedding, a windowed one at 3 that reads 0 and 2."""
    artifact = random_artifact(folder / "a", cuts=CUTS)
    x, arch = folder / "x", artifact.architecture
    add_exit(artifact.folder, exit_file(x, arch, 2, "layer", feed=(0, 1)))
    add_exit(artifact.folder, exit_file(x, arch, 3, "layer", feed=(0, 2), window=5, layers=2))
    return Stage(Artifact(artifact.folder), range(3), exits=(1, 2, 3))


def check_exits(session: StageSession, ids: list[int], cuts: tuple[int, ...]) -> None:
    """Each says what it says in a session that has seen nothing but this text."""
    fresh = session.stage.open()
    fresh.append_ids(ids)
    for cut in cuts:
        expected = fresh.exit_logits(cut)
        logits, result = session.exit_logits(cut), session.exit_at(cut)
        assert np.abs(logits - expected).max() < 5e-4
        assert result.token_id == logits.argmax()


@pytest.mark.parametrize("seed", range(2))
def test_drafts_come_and_go_as_a_verified_answer_has_them(seed: int, tmp_path: Path) -> None:
    """Draft at some of the exits, upload, have some rejected, go on with the cloud's token."""
    stage, random = two_exits(tmp_path), np.random.default_rng(seed)
    session, ids, sent = stage.open(), token_ids(seed, 20), 0
    session.append_ids(ids)
    for _ in range(20):
        known, drafts = len(ids), int(random.integers(0, 7))
        for _ in range(drafts):
            asked = ((1,), (2,), (1, 2), (1, 2, 3))[random.integers(4)]
            check_exits(session, ids, asked)
            if 3 in asked:
                session.hidden_at(3, sent)
                sent = len(ids)
            ids.append(int(random.integers(3, 300)))
            session.append_ids(ids[-1:])
        assert len(session.hidden_at(3, sent)) == len(ids) - sent
        del ids[known + int(random.integers(0, drafts + 1)) :]
        session.crop(len(ids))
        sent = len(ids)
        ids.append(int(random.integers(3, 300)))
        session.append_ids(ids[-1:])
    check_exits(session, ids, (1, 2, 3))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_crop_of_any_depth_takes_an_exit_back(kind: dict[str, Any], tmp_path: Path) -> None:
    stage, ids = fed_stage(tmp_path, (0, 1), **kind), token_ids(6, 60)
    session, said = stage.open(exact=False), []
    for token in ids:
        session.append_ids([token])
        said.append(session.exit_logits(CUT))
    for depth in (1, 2, 3, 10, 25):
        session.crop(60 - depth)  # with nothing appended after it
        assert difference(session, said[59 - depth]) < 1e-4
        session.append_ids(ids[60 - depth : 60 - depth // 2])
        assert difference(session, said[59 - depth // 2]) < 1e-4
        session.append_ids(ids[60 - depth // 2 :])
        assert difference(session, said[59]) < 1e-4
    session.crop(0)
    session.append_ids(ids[:9])
    assert difference(session, said[8]) < 1e-4


def difference(session: StageSession, expected: F32) -> float:
    made, known = session.exit_logits(CUT), np.isfinite(expected)
    assert (np.isfinite(made) == known).all()
    return float(np.abs(made[known] - expected[known]).max())


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_an_exit_catches_up_after_silence(kind: dict[str, Any], tmp_path: Path) -> None:
    artifact = fed_stage(tmp_path, (0, 2), **kind).artifact
    stage = Stage(artifact, range(LAYERS), exits=(CUT,))
    silent, ids = stage.open(), token_ids(7, 90)
    for start in range(0, 90, 9):
        silent.append_ids(ids[start : start + 9])
        silent.logits(silent.position - 1)  # every layer has passed these rows
        if start in (27, 54):
            silent.crop(silent.position - 4)
            silent.append_ids(ids[silent.position : start + 9])
    fresh = stage.open()
    fresh.append_ids(ids)
    assert difference(silent, fresh.exit_logits(CUT)) < 1e-4


def test_rows_that_an_exit_has_read_are_dropped(tmp_path: Path) -> None:
    stage, ids = two_exits(tmp_path), token_ids(8, 140)
    session = stage.open()
    for i, token in enumerate(ids):
        session.append_ids([token])
        for cut in (1, 2, 3):
            session.exit_at(cut)
        session.hidden_at(3, i)
    # One cache of 256 positions a layer (3 blocks, exits of 1 and 2), and few rows.
    caches = (3 + 1 + 2) * 2 * 256 * 2 * 16 * 4
    assert caches < session.bytes <= caches + 4 * 16 * 64 * 4
    session.close()
    assert session.bytes == 0


# ------------------------------------------------------------------------------ placement


def test_an_exit_is_there_where_all_it_reads_is(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "a", cuts=CUTS)
    add_exit(artifact.folder, exit_file(tmp_path / "x", artifact.architecture, 3, "mlp", feed=(1,)))
    artifact = Artifact(artifact.folder)
    with pytest.raises(PlacementError, match=r"exit 3: it reads the states at 1, 3.* at 2, 3, 4"):
        Stage(artifact, range(2, LAYERS), exits=(3,))
    hidden = states_at(artifact, ids := token_ids(9, 12), 1)
    stage = Stage(artifact, range(1, LAYERS), exits=(2, 3))
    session, whole = stage.open(), Stage(artifact, range(3), exits=(3,)).open()
    session.append_hidden(hidden)
    whole.append_ids(ids)
    assert np.abs(session.exit_logits(3) - whole.exit_logits(3)).max() < 1e-4
    late = stage.open(2)  # has no rows at 1
    late.append_hidden(states_at(artifact, ids, 2))
    assert late.exit_at(2).token_id == session.exit_at(2).token_id
    with pytest.raises(KeyError):
        late.exit_at(3)


def test_a_feed_of_layers_that_are_no_cuts_changes_nothing(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "a", cuts=(1, 3))
    before = tree(artifact.folder)
    x = exit_file(tmp_path / "x", artifact.architecture, 3, "layer", feed=(0, 2))
    with pytest.raises(PlacementError, match=r"reads layers 0, 2 too.* cuts are 1, 3"):
        add_exit(artifact.folder, x)
    assert tree(artifact.folder) == before
    file = ExitFile(x)
    assert [file.fits(cuts) for cuts in ((1, 3), (2, 3), (1, 2), (1, 2, 3))] == [
        False, True, False, True,
    ]  # fmt: skip


# -------------------------------------------------------------------- files and manifests


def without_map(tensors: Tensors, about: dict[str, str]) -> None:
    del tensors["linear.weight"]


def narrow_map(tensors: Tensors, about: dict[str, str]) -> None:
    tensors["linear.weight"] = tensors["linear.weight"][:, :64]


def feed(text: str) -> Callable[[Tensors, dict[str, str]], object]:
    return lambda tensors, about: about.update(feed=text)


BAD: list[tuple[str, Callable[[Tensors, dict[str, str]], object], str]] = [
    ("no map", without_map, "expected linear.weight"),
    ("narrow map", narrow_map, r"linear\.weight has shape \(64, 64\), expected \(64, 192\)"),
    ("wide map", feed("[0]"), r"expected \(64, 128\)"),
    ("descending", feed("[1, 0]"), "ascending"),
    ("twice", feed("[1, 1]"), "ascending"),
    ("its own cut", feed("[0, 3]"), "0 to 2"),
    ("negative", feed("[-1, 0]"), "0 to 2"),
    ("floats", feed("[0.0, 1]"), "ascending"),
    ("words", feed('["0"]'), "ascending"),
    ("booleans", feed("[false, true]"), "ascending"),
    ("no list", feed("0"), "not a list"),
    ("a string", feed('"01"'), "not a list"),
    ("no JSON", feed("0, 1"), "malformed"),
    ("nested", feed("[" * 100_000), "malformed"),
    ("kind", lambda tensors, about: about.update(kind="identity"), "another kind than identity"),
]


@pytest.mark.parametrize(("change", "says"), [pytest.param(c, s, id=n) for n, c, s in BAD])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_malformed_feed_leaves_the_artifact_untouched(
    tmp_path: Path, kind: str, change: Callable[[Tensors, dict[str, str]], object], says: str
) -> None:
    artifact = random_artifact(tmp_path / "a", cuts=CUTS)
    tensors = exit_tensors(artifact.architecture, kind, feed=(0, 1))
    about = metadata(CUT, kind, feed=[0, 1])
    change(tensors, about)
    save_file({n: np.ascontiguousarray(t) for n, t in tensors.items()}, tmp_path / "x", about)
    before = tree(artifact.folder)
    with pytest.raises(ArtifactError, match=says) as caught:
        add_exit(artifact.folder, tmp_path / "x")
    assert str(tmp_path / "x") in str(caught.value) and "\n" not in str(caught.value)
    assert tree(artifact.folder) == before


def edit_exit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what the manifest says of the exit at CUT."""
    data = json.loads((folder / "manifest.json").read_text())
    change(data["exits"][CUTS.index(CUT)])
    (folder / "manifest.json").write_text(json.dumps(data))


def test_the_manifest_keeps_the_feed_and_it_changes_no_text(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "a", cuts=CUTS)
    x = exit_file(tmp_path / "x", artifact.architecture, CUT, "mlp", feed=(0, 2))
    made = add_exit(artifact.folder, x)
    assert Manifest.read(artifact.folder) == made
    assert made.fingerprint == artifact.fingerprint
    assert [entry.feed for entry in made.exits] == [(), (), (0, 2)]


def test_a_manifest_from_before_feeds_is_read(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "a", cuts=CUTS)
    edit_exit(artifact.folder, lambda entry: entry.pop("feed"))
    assert Manifest.read(artifact.folder) == artifact.manifest


@pytest.mark.parametrize("damaged", [None, 0, "0", [1, 0], [3], [0, 9], [[0]], [True], [-1]])
def test_a_damaged_feed_is_refused(tmp_path: Path, damaged: object) -> None:
    artifact = random_artifact(tmp_path / "a", cuts=CUTS)
    edit_exit(artifact.folder, lambda entry: entry.update(feed=damaged))
    with pytest.raises(ArtifactError, match="damaged"):
        Artifact(artifact.folder)


def test_info_shows_the_feed(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "a", cuts=CUTS)
    x = exit_file(tmp_path / "x", artifact.architecture, CUT, "mlp", feed=(0, 2))
    add_exit(artifact.folder, x)
    text = CliRunner().invoke(app, ["info", str(artifact.folder)]).output
    cells = [[cell.strip() for cell in line.split("│")[1:3]] for line in text.splitlines()]
    assert ["2", "identity"] in cells and ["3 with 0, 2", "mlp"] in cells
    data = json.loads(CliRunner().invoke(app, ["info", str(artifact.folder), "--json"]).output)
    assert [entry["feed"] for entry in data["exits"]] == [[], [], [0, 2]]
