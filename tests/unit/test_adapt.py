"""Exit-friendly adaptation: the update, the delta file, and the artifact built with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests.exit_files import exit_file, exit_tensors, metadata
from tests.support import RandomCheckpoint, save_random_folder, tree

from collm.errors import ArtifactError, SourceError, UsageError
from collm.model.artifact import Artifact
from collm.model.build import build
from collm.model.delta import (
    DELTA,
    Adaptation,
    Delta,
    adaptation_of,
    matrix_shapes,
    read_adaptation,
    write_delta,
)
from collm.model.exits import add_exit
from collm.model.families import architecture_of
from collm.model.sources.base import Checkpoint
from collm.model.stored import StoredWeights

torch = pytest.importorskip("torch")

from collm.tune import adapt as adapt_module  # noqa: E402
from collm.tune.adapt import Adapted, adapt  # noqa: E402
from collm.tune.adapt_export import ExportedAdaptation, export_adapted  # noqa: E402
from collm.tune.adapt_layers import Student, dropout_of  # noqa: E402
from collm.tune.adapt_run import AdaptConfig, Adapter  # noqa: E402
from collm.tune.backbone import Backbone, load_backbone  # noqa: E402
from collm.tune.corpus import Example  # noqa: E402
from collm.tune.heads import ExitSpec  # noqa: E402
from collm.tune.teacher import Lesson, Teacher  # noqa: E402

CUTS = (1, 2)
SPECS = [ExitSpec(cut=1), ExitSpec(cut=2, feed=(0, 1))]
CONFIG = AdaptConfig(
    tokens=2400, shortlist=288, batch_tokens=96, rank=4, alpha=8.0, negatives=128, looks=3,
    learning_rate=3e-3, low_rank_learning_rate=3e-3, full_weight=1.0,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # these models are too small to share


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("adapt") / "artifact"
    build(RandomCheckpoint(), out, cuts=CUTS, weights="fp32")
    return Artifact(out)


@pytest.fixture(scope="module")
def backbone(artifact: Artifact) -> Backbone:
    return load_backbone(artifact)


@pytest.fixture(scope="module")
def lessons(backbone: Backbone) -> list[Lesson]:
    random = np.random.default_rng(0)
    examples = [
        Example(
            ids=random.integers(3, 40, 20 + i % 5).astype(np.int32), domain="chat", greedy=None,
            user=1, first=4, held_out=i % 4 == 0,
        )
        for i in range(32)
    ]  # fmt: skip
    return Teacher(backbone=backbone, cuts=()).lessons(examples)


@pytest.fixture(scope="module")
def adapted(
    backbone: Backbone, lessons: list[Lesson], tmp_path_factory: pytest.TempPathFactory
) -> Adapted:
    checkpoint = tmp_path_factory.mktemp("run") / "checkpoint"
    return adapt(backbone, SPECS, lessons, (), checkpoint, CONFIG)


@pytest.fixture(scope="module")
def exported(
    adapted: Adapted, lessons: list[Lesson], tmp_path_factory: pytest.TempPathFactory
) -> ExportedAdaptation:
    folder = tmp_path_factory.mktemp("exported")
    held_out = [lesson for lesson in lessons if lesson.example.held_out]
    return export_adapted(adapted, held_out, folder, base="random", about={})


def run_of(backbone: Backbone, lessons: list[Lesson], config: AdaptConfig = CONFIG) -> Adapter:
    training = [lesson for lesson in lessons if not lesson.example.held_out]
    held_out = [lesson for lesson in lessons if lesson.example.held_out]
    return Adapter(backbone, SPECS, training, held_out, (), config, None)


def factors_of(rank: int = 2, seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A delta of every matrix of the tiny model."""
    random = np.random.default_rng(seed)
    shapes = matrix_shapes(RandomCheckpoint().architecture)
    return {
        f"layers.{layer}.{module}": (
            random.normal(0, 0.1, (rank, k)).astype(np.float16),
            random.normal(0, 0.1, (n, rank)).astype(np.float16),
        )
        for layer in range(4)
        for module, (n, k) in shapes.items()
    }


def delta_file(path: Path, checkpoint: Checkpoint, **changes: object) -> Path:
    about = {"source_sha256": checkpoint.sha256(), "base": "random", "scale": 2.0, "report": {}}
    write_delta(path, factors_of(), **{**about, **changes})  # type: ignore[arg-type]
    return path


# ---------------------------------------------------------------------------- training


def test_an_untrained_update_changes_nothing(backbone: Backbone) -> None:
    student = Student(backbone, 4, 2.0, seed=0)
    ids_BT = torch.randint(3, 300, (2, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        states = student(backbone.embed(ids_BT), backbone.ropes(17), CUTS)
    expected = backbone.states(ids_BT, CUTS)
    for depth, state in zip((*CUTS, 4), expected, strict=True):
        assert torch.equal(states[depth], state)


def test_layer_dropout_grows_exponentially_from_none_to_the_most() -> None:
    shares = [dropout_of(layer, 30, 0.1) for layer in range(30)]
    assert shares[0] == 0 and shares[-1] == pytest.approx(0.1)
    assert np.allclose(np.diff(np.log(np.add(shares, 0.1))), np.log(2) / 29)


def test_the_full_depth_loss_starts_at_zero(backbone: Backbone, lessons: list[Lesson]) -> None:
    config = replace(CONFIG, layer_dropout=0.0)
    run = run_of(backbone, lessons, config)
    run.start()
    *exits, full = run.step()
    assert abs(full) < 1e-4 < min(exits)
    assert run.history[0].full_agreement == 1.0
    assert run.history[0].perplexity_ratio == pytest.approx(1.0, abs=1e-3)
    assert run.history[0].full_divergence == pytest.approx(0.0, abs=1e-4)


def test_training_brings_the_exits_closer_to_the_original(adapted: Adapted) -> None:
    before, *_, after = adapted.history
    for untrained, trained in zip(before.exits, after.exits, strict=True):
        assert trained.divergence < 0.9 * untrained.divergence
    assert len(adapted.history) == CONFIG.looks + 1
    assert 0 < after.full_divergence < min(exit.divergence for exit in after.exits)
    assert after.perplexity_ratio != 1.0


def test_the_update_lets_exits_learn_what_they_cannot_alone(
    backbone: Backbone, lessons: list[Lesson], tmp_path: Path
) -> None:
    training = [lesson for lesson in lessons if not lesson.example.held_out]
    measured_on = [replace(e, example=replace(e.example, held_out=True)) for e in training]
    divergences = []
    for rate in (0.0, CONFIG.low_rank_learning_rate):
        config = replace(CONFIG, low_rank_learning_rate=rate, layer_dropout=0.0)
        made = adapt(backbone, SPECS, training + measured_on, (), tmp_path / f"{rate}", config)
        divergences.append([measured.divergence for measured in made.history[-1].exits])
        if rate == 0.0:
            assert made.history[-1].full_agreement == 1.0
    for alone, joint in zip(*divergences, strict=True):
        assert joint < 0.97 * alone


def test_an_interrupted_run_gives_the_same_update(
    adapted: Adapted,
    backbone: Backbone,
    lessons: list[Lesson],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = tmp_path / "checkpoint"
    steps = 0

    class Interrupted(Adapter):
        def step(self) -> list[float]:
            nonlocal steps
            steps += 1
            if steps == 12:
                raise KeyboardInterrupt
            return super().step()

    with monkeypatch.context() as patched:
        patched.setattr(adapt_module, "Adapter", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            adapt(backbone, SPECS, lessons, (), checkpoint, CONFIG)
    resumed = adapt(backbone, SPECS, lessons, (), checkpoint, CONFIG)
    assert resumed.history == adapted.history
    for name, pair in adapted.factors.items():
        assert all(map(torch.equal, pair, resumed.factors[name]))
    for ours, theirs in zip(adapted.trained.heads, resumed.trained.heads, strict=True):
        for name, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name])


def test_an_interruption_inside_an_update_keeps_the_last_checkpoint(
    backbone: Backbone, lessons: list[Lesson], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def halfway(self: Adapter, rows: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Adapter, "_update", halfway)
    with pytest.raises(KeyboardInterrupt):
        adapt(backbone, SPECS, lessons, (), tmp_path / "checkpoint", CONFIG)
    assert not list(tmp_path.iterdir())


def test_a_run_starts_from_exits_trained_on_the_frozen_model(
    adapted: Adapted, backbone: Backbone, lessons: list[Lesson], tmp_path: Path
) -> None:
    config = replace(CONFIG, tokens=100)
    start = adapted.trained
    again = adapt(backbone, SPECS, lessons, (), tmp_path / "c", config, start=start)
    untrained = adapted.history[0].exits
    for started, cold in zip(again.history[0].exits, untrained, strict=True):
        assert started.divergence < cold.divergence


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, "rank 0: expected 1 to"),
        ({"layer_dropout": 1.0}, "layer dropout 1: expected"),
        ({"low_rank_learning_rate": 1e30}, "no longer a number at step"),
    ],
)
def test_what_cannot_be_trained_is_said_in_a_line(
    backbone: Backbone,
    lessons: list[Lesson],
    tmp_path: Path,
    changes: dict[str, float],
    message: str,
) -> None:
    config = replace(CONFIG, **changes)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=message):
        adapt(backbone, SPECS, lessons, (), tmp_path / "checkpoint", config)
    assert not (tmp_path / "checkpoint").exists()


def test_a_checkpoint_of_other_settings_is_refused(
    backbone: Backbone, lessons: list[Lesson], tmp_path: Path
) -> None:
    config = replace(CONFIG, tokens=100)
    adapt(backbone, SPECS, lessons, (), tmp_path / "c", config)
    with pytest.raises(SourceError, match="another --work"):
        adapt(backbone, SPECS, lessons, (), tmp_path / "c", CONFIG)


# ------------------------------------------------------------------------ the artifact


def test_the_built_artifact_is_the_adapted_model(
    adapted: Adapted, exported: ExportedAdaptation, tmp_path: Path
) -> None:
    found = read_adaptation(exported.delta.parent)
    manifest = build(
        RandomCheckpoint(), tmp_path / "a", cuts=CUTS, weights="fp32", adaptation=found
    )
    assert [entry.cut for entry in manifest.exits if entry.trained] == [1, 2]
    record = json.loads(manifest.adaptation)
    assert record["sha256"] == found.delta.sha256 and record["rank"] == CONFIG.rank
    assert record["report"]["perplexity_ratio"] == round(adapted.history[-1].perplexity_ratio, 5)
    built = load_backbone(Artifact(tmp_path / "a"))
    ids_BT = torch.randint(3, 300, (2, 17), generator=torch.Generator().manual_seed(1))
    expected = adapted.backbone.states(ids_BT, CUTS)
    original = load_backbone(Artifact(tmp_path / "a")).fingerprint
    assert torch.allclose(built.states(ids_BT, CUTS), expected, rtol=1e-4, atol=1e-4)
    assert original != adapted.backbone.fingerprint


def test_exits_meet_the_adapted_models_own_choices(
    adapted: Adapted, exported: ExportedAdaptation
) -> None:
    for made, accepted in zip(exported.exits, adapted.history[-1].accepted, strict=True):
        assert made.measured.agreement == pytest.approx(accepted, abs=0.03)  # int8 adapters


def test_int4_builds_keep_adapted_matrices_in_int8(tmp_path: Path) -> None:
    checkpoint = RandomCheckpoint()
    some = {name: pair for name, pair in factors_of().items() if name.startswith("layers.0.")}
    about = {"source_sha256": checkpoint.sha256(), "base": "random", "scale": 2.0, "report": {}}
    write_delta(tmp_path / "d", some, **about)  # type: ignore[arg-type]
    delta = Delta(tmp_path / "d")
    adaptation = Adaptation(delta=delta)
    manifest = build(checkpoint, tmp_path / "a", cuts=CUTS, weights="int4", adaptation=adaptation)
    build(checkpoint, tmp_path / "plain", cuts=CUTS, weights="int4")
    assert json.loads(manifest.adaptation)["weights"] == "int8"
    name = "self_attn.q_proj.weight"
    full = f"model.layers.0.{name}"
    wanted = checkpoint.floats(full) + delta.update(full)
    stored = StoredWeights(Artifact(tmp_path / "a"))
    blocks = np.abs(wanted.reshape(len(wanted), -1, 32)).max(axis=-1, keepdims=True)
    step = np.broadcast_to(blocks / 127, (len(wanted), 2, 32)).reshape(wanted.shape)
    assert (np.abs(stored.layer(0)[name] - wanted) <= 0.51 * step).all()
    plain = StoredWeights(Artifact(tmp_path / "plain"))
    assert np.array_equal(stored.layer(1)[name], plain.layer(1)[name])  # untouched: int4 as ever


def test_the_fingerprint_tells_the_adapted_model_apart(artifact: Artifact, tmp_path: Path) -> None:
    delta = Delta(delta_file(tmp_path / "d", RandomCheckpoint()))
    made = build(RandomCheckpoint(), tmp_path / "a", cuts=CUTS, weights="fp32",
                 adaptation=Adaptation(delta=delta))  # fmt: skip
    assert made.fingerprint != artifact.fingerprint
    assert adaptation_of(made) == delta.sha256 and adaptation_of(artifact.manifest) == ""


def test_shipped_exits_of_the_untouched_model_are_left_out(tmp_path: Path) -> None:
    checkpoint = RandomCheckpoint()
    shipped = exit_file(tmp_path / "e", checkpoint.architecture, 1, "linear")
    delta = Delta(delta_file(tmp_path / "d", checkpoint))
    tensors, about = exit_tensors(checkpoint.architecture, "linear"), metadata(2, "linear")
    save_file(tensors, tmp_path / "own", {**about, "adaptation": delta.sha256})
    offered = [shipped, tmp_path / "own"]
    manifest = build(checkpoint, tmp_path / "a", cuts=CUTS, exits=lambda sha256: offered,
                     adaptation=Adaptation(delta=delta))  # fmt: skip
    assert [entry.cut for entry in manifest.exits if entry.trained] == [2]
    manifest = build(checkpoint, tmp_path / "b", cuts=CUTS, exits=lambda sha256: offered)
    assert [entry.cut for entry in manifest.exits if entry.trained] == [1]


def test_exits_of_another_adaptation_are_refused(
    artifact: Artifact, exported: ExportedAdaptation, tmp_path: Path
) -> None:
    before = tree(artifact.folder)
    with pytest.raises(ArtifactError, match="but the artifact is the untouched model; build one"):
        add_exit(artifact.folder, exported.exits[0].path)
    assert tree(artifact.folder) == before
    delta = Delta(delta_file(tmp_path / "d", RandomCheckpoint()))
    plain = exit_file(tmp_path / "e", artifact.architecture, 1, "linear")
    for path in (plain, exported.exits[0].path):
        adaptation = Adaptation(delta=delta, exits=(path,))
        with pytest.raises(ArtifactError, match="artifact is the model adapted by delta"):
            build(RandomCheckpoint(), tmp_path / "a", cuts=CUTS, adaptation=adaptation)
        assert not (tmp_path / "a").exists()


# --------------------------------------------------------------------- the file, the verb


def test_a_delta_for_another_checkpoint_is_refused(tmp_path: Path) -> None:
    delta = Delta(delta_file(tmp_path / "d", RandomCheckpoint(seed=1)))
    with pytest.raises(ArtifactError, match=r"a delta for the checkpoint random with sha256 0000"):
        build(RandomCheckpoint(), tmp_path / "a", adaptation=Adaptation(delta=delta))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("shape", "is F16 of shape"),
        ("dtype", "is F32 of shape"),
        ("nan", "not finite"),
        ("layer", "is no matrix of this model"),
        ("lonely", "has no B"),
        ("stranger", "is no part of a delta"),
        ("empty", "changes nothing"),
        ("scale", "out of range"),
        ("rank", "malformed metadata"),
        ("report", "malformed metadata"),
        ("format", "not a CoLLM delta"),
        ("truncated", "not a readable delta"),
        ("missing", "no such file"),
    ],
)
def test_a_bad_delta_is_refused_in_a_line(tmp_path: Path, case: str, message: str) -> None:
    path, checkpoint = tmp_path / "d", RandomCheckpoint()
    delta_file(path, checkpoint)
    tensors = load_file(path)
    about = {"format": "collm-delta", "version": "1", "source_sha256": checkpoint.sha256(),
             "base": "random", "rank": "2", "scale": "2.0", "report": "{}"}  # fmt: skip
    name = "layers.2.mlp.up_proj"
    a_RK = tensors[f"{name}.A"]
    if case == "shape":
        tensors[f"{name}.A"] = np.ascontiguousarray(a_RK[:, :-1])
    elif case == "dtype":
        tensors[f"{name}.A"] = a_RK.astype(np.float32)
    elif case == "nan":
        a_RK[0, 0] = np.nan
    elif case == "layer":
        tensors |= {f"layers.4.mlp.up_proj.{part}": tensors[f"{name}.{part}"] for part in "AB"}
    elif case == "lonely":
        del tensors[f"{name}.B"]
    elif case == "stranger":
        tensors["model.norm.weight"] = a_RK
    elif case == "empty":
        tensors = {}
    about |= {"scale": {"scale": "inf"}, "rank": {"rank": "two"}, "report": {"report": "[1]"},
              "format": {"format": "collm-exit"}}.get(case, {})  # fmt: skip
    save_file(tensors, path, about)
    if case == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif case == "missing":
        path.unlink()
    with pytest.raises(ArtifactError, match=message) as error:
        build(checkpoint, tmp_path / "a", adaptation=read_adaptation(path))
    assert "\n" not in str(error.value) and not (tmp_path / "a").exists()


def test_smollm2s_delta_is_at_most_16_megabytes() -> None:
    config = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
              "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
              "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
              "tie_word_embeddings": True}  # fmt: skip
    arch = architecture_of("llama", config, "test")
    a_rank = 2 * arch.layers * sum(n + k for n, k in matrix_shapes(arch).values())
    assert a_rank * AdaptConfig().rank <= a_rank * 24 <= 16e6 - 100_000


def test_collm_build_takes_a_delta_or_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from collm.cli.main import main
    from collm.model.sources import open_checkpoint

    source = save_random_folder(tmp_path / "source")
    checkpoint = open_checkpoint(str(source))
    folder = tmp_path / "adapted"
    delta = Delta(delta_file(folder / DELTA, checkpoint))
    tensors, about = exit_tensors(checkpoint.architecture, "linear"), metadata(1, "linear")
    save_file(tensors, folder / "exit-01.safetensors", {**about, "adaptation": delta.sha256})

    def collm(*words: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["collm", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        output = capsys.readouterr()
        return int(stopped.value.code or 0), output.out + output.err

    options = ("--cuts", "1,2", "--weights", "int8")
    code, text = collm("build", source, tmp_path / "a", *options, "--adapt", folder)
    assert code == 0 and "trained exits at 1, adapted" in text
    code, text = collm("build", source, tmp_path / "b", *options, "--adapt", folder / DELTA)
    assert code == 0 and "trained exits at none of the cuts, adapted" in text
    code, text = collm("build", source, tmp_path / "c", "--adapt", source)
    assert code == 2 and f"holds no {DELTA}" in text and text.count("\n") == 1
