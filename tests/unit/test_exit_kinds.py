"""What each kind of exit computes, against NumPy; and its guesses at all rows of a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tests.exit_files import Tensors, exit_file, exit_tensors, metadata
from tests.support import F32, random_artifact, token_ids

from collm.model.artifact import Artifact
from collm.model.exits import add_exit
from collm.model.vocabulary import RowReader
from collm.runtime.stage import Stage

CUT, WIDTH = 1, 64
KINDS: list[dict[str, Any]] = [
    {"kind": "identity"},
    {"kind": "linear", "shortlist": 50},
    {"kind": "mlp", "mapped": True},
    {"kind": "layer", "shortlist": 50, "temperature": 1.7},
    {"kind": "layer", "layers": 2, "window": 7, "mapped": True},
]


def states(rows: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).normal(0, 1, (rows, WIDTH)).astype(np.float32)


def with_exit(artifact: Artifact, scratch: Path, tensors: Tensors, **about: Any) -> Stage:
    save_file(tensors, scratch / "x", metadata(CUT, **about))
    add_exit(artifact.folder, scratch / "x")
    return Stage(Artifact(artifact.folder), range(CUT), exits=(CUT,))


def row_logits(stage: Stage, hidden: F32) -> F32:
    session = stage.open(CUT)
    session.append_hidden(hidden)
    return session.exit_row_logits(CUT, 0)


# ------------------------------------------------------------------------------- kinds


def rms_norm(x: F32, weight: F32) -> F32:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight


def silu(x: F32) -> F32:
    return x / (1 + np.exp(-x))


def gelu(x: F32) -> F32:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def floats(tensors: Tensors) -> dict[str, F32]:
    """The values that stored tensors stand for."""
    made = {n: t.astype(np.float32) for n, t in tensors.items() if not n.endswith(".scale")}
    for name in made:
        if (scale := tensors.get(f"{name}.scale")) is not None:
            made[name] *= np.repeat(scale.astype(np.float32), 32, axis=1)
    return made


def mlp_reference(artifact: Artifact, tensors: Tensors, x: F32) -> F32:
    w = floats(tensors)
    if "linear.weight" in w:
        x = x @ w["linear.weight"].T
    normed = rms_norm(x, w["post_attention_layernorm.weight"])
    act = silu if artifact.architecture.activation == "silu" else gelu
    gate = act(normed @ w["mlp.gate_proj.weight"].T)
    x = x + (gate * (normed @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T
    head = RowReader.of_head(artifact.folder, artifact.manifest)
    return rms_norm(x, w["norm.weight"]) @ head.floats(np.arange(300)).T


@pytest.mark.parametrize(("mapped", "packed"), [(False, False), (True, True)])
@pytest.mark.parametrize("model", ["llama-fp32", "llama-int4", "gemma3_text-fp32"])
def test_an_mlp_exit_is_its_formula(model: str, mapped: bool, packed: bool, tmp_path: Path) -> None:
    model_type, weights = model.split("-")
    more = {} if model_type == "llama" else {"head_dim": 16, "sliding_window": 6}
    artifact = random_artifact(tmp_path / "a", weights=weights, model_type=model_type, **more)
    tensors = exit_tensors(artifact.architecture, "mlp", mapped=mapped, packed=packed)
    hidden = states(40)
    expected = mlp_reference(artifact, tensors, hidden)
    made = row_logits(with_exit(artifact, tmp_path, tensors, kind="mlp"), hidden)
    if weights == "fp32":
        assert np.abs(made - expected).max() < 1e-4
    else:  # these kernels round their inputs to 8 bits
        assert np.abs(made - expected).max() < 0.1 * expected.std()
        assert (made.argmax(-1) == expected.argmax(-1)).mean() > 0.8


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("weights", ["fp32", "int4"])
def test_a_map_comes_before_the_layers(weights: str, packed: bool, tmp_path: Path) -> None:
    """A mapped exit is the same exit, given mapped states."""
    artifact = random_artifact(tmp_path / "a", weights=weights)
    tensors = exit_tensors(artifact.architecture, "layer", layers=2, mapped=True, packed=packed)
    matrix = floats(tensors)["linear.weight"]
    hidden, about = states(40), {"kind": "layer", "layers": 2}
    made = row_logits(with_exit(artifact, tmp_path, tensors, **about), hidden)
    for name in ("linear.weight", "linear.weight.scale"):
        tensors.pop(name, None)
    plain = with_exit(artifact, tmp_path, tensors, **about)
    expected = row_logits(plain, hidden @ matrix.T)
    largest = 1e-4 if weights == "fp32" else 0.15 * expected.std()
    assert np.abs(made - expected).max() < largest
    assert np.abs(row_logits(plain, hidden) - expected).max() > expected.std()


# -------------------------------------------------------------------------------- rows


@pytest.mark.parametrize(
    ("weights", "kind"),
    [*(("fp32", kind) for kind in KINDS), *(("int8", kind) for kind in (KINDS[0], KINDS[4]))],
    ids=str,
)
def test_all_rows_at_once_are_the_rows_one_by_one(
    weights: str, kind: dict[str, Any], tmp_path: Path
) -> None:
    artifact = random_artifact(tmp_path / "a", weights=weights)
    add_exit(artifact.folder, exit_file(tmp_path / "x", artifact.architecture, CUT, **kind))
    stage = Stage(Artifact(artifact.folder), range(CUT), exits=(CUT,))
    ids = token_ids(5, 150)  # more than are computed at once
    one, whole, tail = stage.open(), stage.open(), stage.open()
    results = []
    for token in ids:
        one.append_ids([token])
        results.append(one.exit_at(CUT))
    whole.append_ids(ids)
    rows = whole.exit_rows(CUT, 0)
    assert rows.token_ids.dtype == np.int32 and rows.confidences.dtype == np.float32
    assert rows.token_ids.shape == rows.confidences.shape == (150,)
    same = rows.token_ids == [r.token_id for r in results]
    apart = np.abs(rows.confidences - [r.confidence for r in results])
    if weights == "fp32":
        assert same.all() and apart.max() < 1e-5
    else:  # a lone row takes other kernels
        assert same.mean() > 0.95 and np.median(apart) < 0.02
    tail.append_ids(ids)
    part = tail.exit_rows(CUT, 15)
    assert (part.token_ids == rows.token_ids[15:]).all()
    assert np.abs(part.confidences - rows.confidences[15:]).max() < 1e-5
    # Then on, token by token.
    whole.append_ids(ids[:1])
    one.append_ids(ids[:1])
    assert whole.exit_at(CUT).confidence == pytest.approx(one.exit_at(CUT).confidence, abs=0.02)


@pytest.mark.parametrize("shortlist", [0, 50])
def test_row_logits_are_for_fitting_another_temperature(shortlist: int, tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "a")
    x = exit_file(tmp_path / "x", artifact.architecture, CUT, "layer",
                  shortlist=shortlist, temperature=2.5)  # fmt: skip
    add_exit(artifact.folder, x)
    stage = Stage(Artifact(artifact.folder), range(CUT), exits=(CUT,))
    ids, hidden = stage.exits[CUT].ids, states(200)
    names = np.arange(300) if ids is None else ids
    logits = row_logits(stage, hidden)
    assert logits.shape == (200, shortlist or 300)
    for temperature in (None, 0.5):
        session = stage.open(CUT)
        session.append_hidden(hidden)
        rows = session.exit_rows(CUT, 0, temperature=temperature)
        scaled = logits.astype(np.float64) / (temperature or 2.5)
        odds = np.exp(scaled - scaled.max(-1, keepdims=True))
        assert (rows.token_ids == names[logits.argmax(-1)]).all()
        expected = odds.max(-1) / odds.sum(-1)
        assert np.abs(rows.confidences - expected).max() < 1e-5


@pytest.mark.parametrize("kind", ["identity", "linear", "mlp", "layer"])
def test_rows_that_an_exit_has_passed_are_an_error(kind: str, tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "a", cuts=(1, 2))
    add_exit(artifact.folder, exit_file(tmp_path / "x", artifact.architecture, CUT, kind))
    session = Stage(Artifact(artifact.folder), range(2), exits=(CUT,)).open()
    session.append_ids(token_ids(5, 20))
    expected = session.exit_rows(CUT, 0)
    with pytest.raises(IndexError):
        session.exit_rows(CUT, 20)
    session.run(2)  # rows at the cut are dropped
    session.append_ids(token_ids(6, 5))
    with pytest.raises(IndexError):
        session.exit_rows(CUT, 3)
    assert session.exit_rows(CUT, 20).token_ids.shape == (5,)
    again = Stage(Artifact(artifact.folder), range(2), exits=(CUT,)).open()
    again.append_ids(token_ids(5, 20))
    again.run(2)  # but none that the exit has yet to see
    assert (again.exit_rows(CUT, 0).token_ids == expected.token_ids).all()
