"""`collm analyze`: figures that are what they say, paths that are the best, runs that go on."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.corpora import random_corpus
from tests.support import F32, RandomCheckpoint, random_artifact, token_ids, tree
from typer.testing import CliRunner

from collm.cli.main import app, main
from collm.errors import PlacementError, UsageError
from collm.model.artifact import Artifact
from collm.model.build import build
from collm.model.stored import StoredWeights
from collm.runtime.stage import Stage
from collm.tune.analysis import Analysis, analysis_from, important_channels, read_analysis
from collm.tune.analyze import AnalyzeConfig, analyzer
from collm.tune.corpus import Example
from collm.tune.own_text import own_text
from collm.tune.single_layers import SingleLayers, exit_logits

IDLE = 2
"""The layer that does nothing."""


class WithIdleLayer(RandomCheckpoint):
    """Layer `IDLE` adds nothing to its input."""

    def floats(self, name: str) -> F32:
        values = super().floats(name)
        if f".{IDLE}." in name and name.split(".")[-2] in ("o_proj", "down_proj"):
            values[:] = 0
        return values


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("idle") / "artifact"
    build(WithIdleLayer(num_hidden_layers=5), folder, cuts=(1, 3, 4), weights="fp32")
    return Artifact(folder)


def examples(count: int = 3) -> tuple[Example, ...]:
    return tuple(
        Example(ids=np.array(token_ids(seed, 30 + seed), np.int32), domain="chat", greedy=True,
                user=1, first=5, held_out=True)
        for seed in range(count)
    )  # fmt: skip


def config(work: Path, **changes: Any) -> AnalyzeConfig:
    return AnalyzeConfig(**{"examples": examples(), "text": "random", "cut": 4,
                            "work": work / "known.json", **changes})  # fmt: skip


def analysis(artifact: Artifact, work: Path) -> Analysis:
    with analyzer(artifact, config(work)) as run:
        return run.run()


@pytest.fixture(scope="module")
def made(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    return analysis(artifact, tmp_path_factory.mktemp("work"))


# ---------------------------------------------------------------- figures


def test_a_layer_that_does_nothing_is_last(made: Analysis) -> None:
    assert made.ranking()[-1].layer == IDLE
    idle = made.layers[IDLE]
    assert idle.change == pytest.approx(0, abs=1e-6)
    assert idle.full_agreement == 1 and idle.full_divergence == pytest.approx(0, abs=1e-6)
    assert idle.exit_agreement == {cut: made.exits[cut] for cut in (3, 4)}
    assert all(one.change > 0.01 for one in made.layers if one.layer != IDLE)
    assert all(one.full_divergence > 0.001 for one in made.layers if one.layer != IDLE)


def test_it_is_the_first_to_go(made: Analysis) -> None:
    assert made.subsets[0].layers == (0, 1, 2, 3)
    assert made.subsets[1].layers == (0, 1, 3)
    assert made.subsets[1].agreement == made.subsets[0].agreement == made.exits[4]
    assert [len(one.layers) for one in made.subsets] == [4, 3, 2, 1]
    for more, fewer in zip(made.subsets, made.subsets[1:], strict=False):
        assert set(fewer.layers) < set(more.layers)
        assert fewer.weight_bytes < more.weight_bytes


def test_agreement_is_what_the_stage_says(artifact: Artifact, made: Analysis) -> None:
    stage = Stage(artifact, range(5), exits=(1, 4))
    right, rows = {1: 0, 4: 0}, 0
    for example in examples():
        session = stage.open()
        session.append_ids(example.ids.tolist())
        exits = {cut: session.exit_rows(cut, example.first - 1).token_ids for cut in right}
        truth = session.logits(example.first - 1).argmax(1)
        rows += len(truth)
        for cut, said in exits.items():
            right[cut] += int((said == truth).sum())
    assert made.rows == rows
    assert made.exits[1] == right[1] / rows and made.exits[4] == right[4] / rows


def test_leaving_a_layer_out_is_what_a_model_without_it_says(
    artifact: Artifact, made: Analysis
) -> None:
    stage = Stage(artifact, range(5))
    right = rows = 0
    for example in examples():
        session = stage.open()
        session.append_ids(example.ids.tolist())
        truth = session.logits(example.first - 1).argmax(1)
        x = stage.embed(example.ids.tolist())
        for block in (0, 1, 3):  # all but the block of layer 3
            x = stage.chains[block].run(x, stage.chains[block].new_cache(), 0)
        right += int((stage.logits(x[example.first - 1 :]).argmax(1) == truth).sum())
        rows += len(truth)
    assert made.layers[3].full_agreement == right / rows


def test_change_is_one_less_the_cosine(artifact: Artifact, made: Analysis) -> None:
    stage = Stage(artifact, range(5))
    values = []
    for example in examples():
        session = stage.open()
        session.append_ids(example.ids.tolist())
        before, after = session.hidden_at(3, 0), session.hidden_at(4, 0)
        for x, y in zip(before, after, strict=True):
            values.append(1 - float(x @ y) / float(np.linalg.norm(x) * np.linalg.norm(y)))
    assert made.layers[3].change == pytest.approx(np.mean(values), rel=1e-4)


@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh"])
def test_channel_importance_is_weight_times_activation(tmp_path: Path, activation: str) -> None:
    family = {"silu": "llama", "gelu_pytorch_tanh": "gemma3_text"}[activation]
    changes = {} if family == "llama" else {"head_dim": 16, "sliding_window": 8,
                                            "layer_types": ["full_attention"] * 4}  # fmt: skip
    artifact = random_artifact(tmp_path / "a", model_type=family, **changes)
    torch = pytest.importorskip("torch")
    from collm.tune.backbone import load_backbone

    backbone = load_backbone(artifact)
    ids = token_ids(1, 150)
    layers = SingleLayers(artifact, tmp_path, threads=1)
    seen: list[Any] = []
    down = backbone.layers[0].mlp.down_proj
    down.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    with torch.no_grad():
        backbone.layers[0](backbone.embed(torch.tensor([ids])), backbone.ropes(len(ids)))
    wanted = seen[0][0].norm(dim=0) * down.weight.abs().sum(dim=0)
    found = layers.channel_importance(0, [layers.embed(np.array(ids, np.int32))])
    assert found == pytest.approx(wanted.numpy(), rel=1e-3)


def test_single_layers_are_the_model(artifact: Artifact, tmp_path: Path) -> None:
    layers = SingleLayers(artifact, tmp_path, threads=1)
    ids = np.array(token_ids(4, 200), np.int32)
    states = {0: [layers.embed(ids)]}
    for layer in range(5):
        states[layer + 1] = layers.run(layer, states[layer])
    session = Stage(artifact, range(5), exits=(3,)).open()
    session.append_ids(ids.tolist())
    said = session.exit_row_logits(3, 20)
    entry = artifact.manifest.exit_at(3)
    assert entry is not None
    (found,) = exit_logits(layers.exit(entry), states, [20])
    assert found == pytest.approx(said, abs=1e-4)
    assert layers.logits(states[5][0][20:]) == pytest.approx(session.logits(20), abs=1e-4)
    stored = StoredWeights(artifact).packed_layer(0)
    assert layers.bytes[0] >= sum(m.nbytes for m in (stored.qkv, stored.o) if hasattr(m, "nbytes"))
    assert layers.decode_seconds(0, repeats=4) > 0


def test_important_channels() -> None:
    values = np.ones(96)
    values[[40, 70]] = [50, 9]
    assert important_channels(values.tolist(), 0.34, loose=False) == list(range(32, 64))
    assert important_channels(values.tolist(), 0.67, loose=False) == list(range(32, 96))
    assert {40, 70} < set(important_channels(values.tolist(), 0.34, loose=True))
    assert len(important_channels(values.tolist(), 0.01, loose=True)) == 32
    with pytest.raises(UsageError, match="cannot be pruned"):
        important_channels([1.0] * 40, 0.5, loose=True)


def test_what_fits_into_memory(made: Analysis) -> None:
    one = made.layers[0].weight_bytes
    assert len(made.within(2 * one + 100).layers) == 2
    assert made.within(10**12).layers in ((0, 1, 2, 3), (0, 1, 3))  # one is as good as the other
    assert made.subset_of(3).layers == (0, 1, 3)
    with pytest.raises(UsageError, match="one alone takes"):
        made.within(one - 1)
    with pytest.raises(UsageError, match="expected 1 to 4"):
        made.subset_of(5)


# ---------------------------------------------------------------- a run


def test_progress_ends_where_it_said(artifact: Artifact, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    with analyzer(artifact, config(tmp_path), lambda *said: told.append(said)) as run:
        run.run()
    assert told[-1][1] == told[-1][2]
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_an_interrupted_run_goes_on(artifact: Artifact, tmp_path: Path, made: Analysis) -> None:
    class Stop(Exception):
        pass

    def stop(what: str, done: int, total: int) -> None:
        if what == "paths of 2 layers":
            raise Stop

    with pytest.raises(Stop), analyzer(artifact, config(tmp_path), stop) as run:
        run.run()
    kept = json.loads((tmp_path / "known.json").read_text())
    assert len(kept["layers"]) == 5 and [len(s["layers"]) for s in kept["subsets"]] == [3, 4]
    kept["layers"][0]["decode_seconds"] = 123.0  # who measures again does not find this
    (tmp_path / "known.json").write_text(json.dumps(kept))
    again = analysis(artifact, tmp_path)
    assert again.layers[0].decode_seconds == 123.0
    assert [s.layers for s in again.subsets] == [s.layers for s in made.subsets]
    assert [s.agreement for s in again.subsets] == [s.agreement for s in made.subsets]


def test_results_for_another_text_are_not_used(artifact: Artifact, tmp_path: Path) -> None:
    analysis(artifact, tmp_path)
    with analyzer(artifact, config(tmp_path, examples=examples(2))) as run:
        assert run.run().rows == sum(len(e.ids) - e.first + 1 for e in examples(2))


def test_only_the_paths(artifact: Artifact, tmp_path: Path, made: Analysis) -> None:
    with analyzer(artifact, config(tmp_path)) as run:
        found = run.paths()
    assert [one.layers for one in found] == [one.layers for one in made.subsets]
    with analyzer(artifact, config(tmp_path)) as run:
        assert run.paths() == found
    with analyzer(artifact, config(tmp_path)) as run:
        importances = run.importances((1, 3))
    assert importances.keys() == {1, 3}
    relative = importances[3] / importances[3].mean()
    assert made.layers[3].channels == pytest.approx(relative, rel=1e-3)


def test_own_text_is_the_models_greedy_answers(artifact: Artifact) -> None:
    made = own_text(artifact, 60)
    assert sum(len(e.ids) - e.first for e in made) <= 60
    stage = Stage(artifact, range(5))
    session = stage.open()
    session.append_ids(made[0].ids.tolist())
    said = session.logits(made[0].first - 1).argmax(1)
    assert said[:-1].tolist() == made[0].ids[made[0].first :].tolist()


# ---------------------------------------------------------------- the command


def test_the_command(artifact: Artifact, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    before = tree(artifact.folder)
    data = random_corpus(tmp_path / "corpus.jsonl", artifact)
    out, plot = tmp_path / "out.json", tmp_path / "plot.png"
    options = ["analyze", str(artifact.folder), "--data", str(data), "--tokens", "100", "--cut",
               "4", "--work", str(tmp_path / "known"), "--threads", "1"]  # fmt: skip
    ran = CliRunner().invoke(app, [*options, "--out", str(out), "--plot", str(plot)])
    assert ran.exit_code == 0, ran.output
    assert "what leaving a layer out costs" in ran.output
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert tree(artifact.folder) == before
    read = read_analysis(out, artifact)
    assert read == analysis_from(json.loads(out.read_text()))
    ran = CliRunner().invoke(app, [*options, "--json"])
    assert json.loads(ran.stdout) == json.loads(out.read_text())


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["collm", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        error = capsys.readouterr().err
        assert ended.value.code == 2 and error.count("\n") == 1, error
        return error

    return run


def test_bad_input_is_refused_in_one_line(artifact: Artifact, tmp_path: Path, refused: Any) -> None:
    folder = artifact.folder
    nothing = tmp_path / "nothing"
    assert "no such folder" in refused("analyze", nothing)
    assert "expected a file made by collm synthesize" in refused(
        "analyze", folder, "--data", nothing
    )
    assert "cannot be written" in refused("analyze", folder, "--out", nothing / "x.json")
    assert "cannot be written" in refused("analyze", folder, "--plot", nothing / "x.png")
    assert "a folder" in refused("analyze", folder, "--work", tmp_path)
    assert "has exits at 1, 3, 4" in refused("analyze", folder, "--cut", "2", "--tokens", "9")
    bad = tmp_path / "bad.json"
    bad.write_text("[]")
    assert "delete it" in refused("analyze", folder, "--cut", "4", "--tokens", "9", "--work", bad)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"format": "collm-analysis", "version": 1, "exits": 3}', "[" * 9999],
)
def test_damaged_analyses_are_refused(artifact: Artifact, tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UsageError, match="no sound analysis"):
        read_analysis(path, artifact)


def test_another_artifacts_analysis_is_refused(made: Analysis, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(made.to_json()))
    other = random_artifact(tmp_path / "other")
    with pytest.raises(UsageError, match="of another artifact"):
        read_analysis(path, other)


def test_paths_end_at_an_exit(artifact: Artifact, tmp_path: Path) -> None:
    with (
        pytest.raises(PlacementError, match="has exits at 1, 3, 4"),
        analyzer(artifact, config(tmp_path, cut=2)),
    ):
        pass
