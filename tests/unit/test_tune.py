"""Tuning exits: the arithmetic, the run, and that the runtime computes what was trained."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from tests.corpora import random_corpus
from tests.support import random_artifact, tree

torch = pytest.importorskip("torch")

from collm.cli.main import main  # noqa: E402
from collm.errors import PlacementError, SourceError, UsageError  # noqa: E402
from collm.model.artifact import Artifact  # noqa: E402
from collm.model.exits import ExitFile  # noqa: E402
from collm.runtime.stage import Stage  # noqa: E402
from collm.tune.backbone import load_backbone  # noqa: E402
from collm.tune.corpus import read_corpus  # noqa: E402
from collm.tune.distill import DistillConfig, learning_rate_share  # noqa: E402
from collm.tune.objective import divergence, make_target  # noqa: E402
from collm.tune.quantize import dequantize, quantize  # noqa: E402
from collm.tune.shortlist import choose_shortlist  # noqa: E402
from collm.tune.teacher import Teacher, cached_lessons  # noqa: E402
from collm.tune.tuning import TuneConfig, tune  # noqa: E402

CUTS = (1, 2)
VOCABULARY = 300
TRAINING = DistillConfig(tokens=1000, shortlist=288, batch_tokens=128, learning_rate=3e-3)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # these models are too small to share


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return random_artifact(tmp_path / "artifact", cuts=CUTS)


@pytest.fixture
def corpus(artifact: Artifact, tmp_path: Path) -> Path:
    return random_corpus(tmp_path / "corpus.jsonl", artifact)


@pytest.fixture
def config(corpus: Path, tmp_path: Path) -> TuneConfig:
    return TuneConfig(work=tmp_path / "work", cuts=CUTS, data=corpus, training=TRAINING)


# ------------------------------------------------------------------------- arithmetic


def test_the_gradient_by_hand_is_autograds() -> None:
    generator = torch.Generator().manual_seed(0)
    normed = torch.randn(70, 16, generator=generator, requires_grad=True)
    unembedding = torch.randn(50, 16, generator=generator)
    probs, ids = torch.randn(70, 50, generator=generator).softmax(-1).topk(32)
    target = make_target(
        ids, probs.log(), unembedding, torch.arange(50), negatives=0, generator=generator
    )
    loss, gradient = divergence(normed.detach(), target)
    wanted = torch.zeros(70, 50).scatter(1, ids, probs / probs.sum(-1, keepdim=True))
    # All 50 are scored, likely ones first: the order must not matter.
    log_probs = (normed @ unembedding.T).log_softmax(-1)
    reference = torch.nn.functional.kl_div(log_probs, wanted, reduction="batchmean")
    reference.backward()
    assert loss == pytest.approx(float(reference.detach()), rel=1e-4)
    assert torch.allclose(gradient, normed.grad, atol=1e-6)


def test_a_sample_of_the_tokens_stands_for_all_of_them() -> None:
    """Mean loss over samples is near the loss over all tokens: within four standard errors."""
    generator = torch.Generator().manual_seed(1)
    normed = torch.randn(8, 16, generator=generator) / 4
    unembedding = torch.randn(1000, 16, generator=generator)
    probs, ids = (torch.randn(8, 1000, generator=generator) * 3).softmax(-1).topk(12)
    common = (ids, probs.log(), unembedding, torch.arange(1000))
    whole, _ = divergence(normed, make_target(*common, negatives=0, generator=generator))
    losses = [
        divergence(normed, make_target(*common, negatives=300, generator=generator))[0]
        for _ in range(200)
    ]
    error = np.std(losses) / np.sqrt(len(losses))
    assert abs(np.mean(losses) - whole) < 4 * error + 0.01


def test_the_schedule_rises_then_falls_to_zero() -> None:
    shares = [learning_rate_share(step, 100, 0.1) for step in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert max(shares) == shares[9] == 1.0
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert shares[-1] < 0.01


def test_int8_is_within_half_a_step_and_keeps_zero() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    weight[2, :32] = 0
    q, scale = quantize(weight)
    made = dequantize(q, scale)
    step = scale.float().repeat_interleave(32, dim=1)
    # Half a step, and what the scale lost by becoming float16 at the outermost level.
    assert ((made - weight).abs() <= 0.5 * step + weight.abs() * 2**-10).all()
    assert (made[2, :32] == 0).all()


# ------------------------------------------------------------------------ the teacher


def test_lessons_hold_the_full_models_states_and_likeliest_tokens(
    artifact: Artifact, corpus: Path, tmp_path: Path
) -> None:
    backbone = load_backbone(artifact)
    examples = read_corpus(corpus).examples
    teacher = Teacher(backbone=backbone, cuts=CUTS)
    lessons = cached_lessons(teacher, examples, tmp_path / "states")
    assert {id(lesson.example) for lesson in lessons} == {id(example) for example in examples}
    lesson = lessons[7]
    states = backbone.states(torch.tensor(lesson.example.ids).long()[None], CUTS)[:, 0]
    assert torch.allclose(lesson.states_CTD.float(), states, atol=2e-2)
    log_probs = backbone.logits(states[-1]).log_softmax(-1)
    assert torch.equal(lesson.top_TK[:, 0].long(), log_probs.argmax(-1))
    expected = log_probs.gather(1, lesson.top_TK.long())
    assert torch.allclose(lesson.log_probs_TK.float(), expected, atol=1e-2)


def test_states_are_computed_once_and_again_for_other_text(
    artifact: Artifact, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = Teacher(backbone=load_backbone(artifact), cuts=CUTS)
    examples = read_corpus(corpus).examples
    first = cached_lessons(teacher, examples, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "lessons", lambda *_: pytest.fail("computed again"))
        again = cached_lessons(teacher, examples, tmp_path)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.states_CTD, other.states_CTD)
        assert one.example is other.example
    changed = [replace(examples[0], ids=examples[0].ids[::-1].copy()), *examples[1:]]
    other = cached_lessons(teacher, changed, tmp_path)
    made = next(lesson for lesson in other if lesson.example is changed[0])
    alone = teacher.lessons([changed[0]])[0]
    assert torch.allclose(made.states_CTD.float(), alone.states_CTD.float(), atol=1e-2)


def test_the_shortlist_holds_the_likeliest_and_every_special_token(
    artifact: Artifact, corpus: Path
) -> None:
    teacher = Teacher(backbone=load_backbone(artifact), cuts=CUTS)
    lessons = teacher.lessons(read_corpus(corpus).examples[:8])
    chosen = choose_shortlist(lessons, 32, [0, 299], VOCABULARY).tolist()
    assert chosen == sorted(chosen) and {0, 299} <= set(chosen) and len(chosen) == 32
    likeliest = torch.cat([lesson.top_TK[:, 0] for lesson in lessons]).bincount(minlength=300)
    assert int(likeliest.argmax()) in chosen
    with pytest.raises(UsageError, match="special tokens"):
        choose_shortlist(lessons, 32, list(range(40)), VOCABULARY)


# ---------------------------------------------------------------------------- the run


@pytest.mark.parametrize(
    ("kind", "window", "feed"),
    [("layer", 0, True), ("layer", 4, False), ("mlp", 0, True), ("linear", 0, False)],
)
def test_exits_get_better_and_the_runtime_computes_what_was_trained(
    artifact: Artifact, config: TuneConfig, kind: str, window: int, feed: bool
) -> None:
    training = replace(TRAINING, tokens=4000)
    exported = tune(
        artifact, replace(config, kind=kind, window=window, feed=feed, training=training)
    )
    for made in exported:
        assert made.measured.divergence < made.before.divergence
    manifest = Artifact(artifact.folder).manifest
    assert [(entry.cut, entry.kind, entry.trained) for entry in manifest.exits] == [
        (cut, kind, True) for cut in CUTS
    ]
    held_out = read_corpus(config.data or Path()).held_out[1]
    session = Stage(Artifact(artifact.folder), range(4), exits=CUTS).open()
    session.append_ids(held_out.ids.tolist())
    backbone = load_backbone(artifact)
    for made in exported:
        entry = manifest.exit_at(made.cut)
        assert entry is not None and entry.temperature == made.temperature
        expected = _torch_logits(made.path, backbone, held_out.ids)
        logits = session.exit_row_logits(made.cut, 0)
        # The exit's matrices are int8 in the file and floats in this fp32 artifact.
        assert np.abs(logits - expected).max() < 2e-3 * max(1.0, np.abs(expected).max())


def _torch_logits(path: Path, backbone: Any, ids: np.ndarray) -> np.ndarray:
    """The exit's logits at every row, from the file's numbers and the tuner's arithmetic."""
    from collm.tune.heads import ExitHead, ExitSpec

    file = ExitFile(path)
    feed = tuple(json.loads(file.metadata["feed"]))
    spec = ExitSpec(cut=file.cut, kind=file.kind, window=file.window, feed=feed)
    head = ExitHead(backbone, spec)
    state = {}
    for name, parameter in head.named_parameters():
        stored = torch.from_numpy(file.tensor(name, tuple(parameter.shape)))
        if file.has(f"{name}.scale"):
            n, k = parameter.shape
            scale = torch.from_numpy(file.tensor(f"{name}.scale", (n, k // 32)))
            stored = dequantize(stored, scale)
        state[name] = stored
    head.load_state_dict(state)
    ids_BT = torch.from_numpy(ids).long()[None]
    states = backbone.states(ids_BT, (file.cut, *feed))[:-1]
    rows = torch.ones(ids_BT.shape, dtype=torch.bool)
    with torch.no_grad():
        normed = head(torch.cat(list(states), dim=-1), backbone.ropes(len(ids)), rows)
        shortlist = file.shortlist(VOCABULARY)
        return (normed @ backbone.unembedding_VD[shortlist].T).numpy()


def test_interrupted_and_resumed_is_as_uninterrupted(
    artifact: Artifact, config: TuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tune(artifact, replace(config, work=tmp_path / "whole"), install=False)
    from collm.tune.distill import Distiller

    step = Distiller.step

    def interrupted(self: Distiller) -> list[float]:
        if self.step_number == 4:
            raise KeyboardInterrupt
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Distiller, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tune(artifact, config, install=False)
    assert not (config.work / "exits").exists()
    resumed = tune(artifact, config, install=False)
    for one, other in zip(whole, resumed, strict=True):
        assert _content(one.path) == _content(other.path)


def _content(path: Path) -> tuple[Any, Any]:
    """Metadata and tensors: safetensors writes the metadata in no fixed order."""
    with safe_open(path, "np") as file:
        return file.metadata(), {n: file.get_tensor(n).tobytes() for n in file.keys()}  # noqa: SIM118


def test_a_checkpoint_of_other_settings_is_refused(artifact: Artifact, config: TuneConfig) -> None:
    tune(artifact, config, install=False)
    other = replace(config, training=replace(TRAINING, learning_rate=1e-4))
    with pytest.raises(SourceError, match="other settings"):
        tune(artifact, other)


def test_a_checkpoint_of_other_text_is_refused(artifact: Artifact, config: TuneConfig) -> None:
    """As many examples of the same lengths, but for one token."""
    tune(artifact, config, install=False)
    assert config.data is not None
    lines = config.data.read_text().splitlines(keepends=True)
    place = next(i for i, line in enumerate(lines) if '"held_out": false' in line)
    record = json.loads(lines[place])
    record["ids"][-1] = (record["ids"][-1] + 1) % VOCABULARY
    lines[place] = json.dumps(record) + "\n"
    config.data.write_text("".join(lines))
    with pytest.raises(SourceError, match="other settings or data"):
        tune(artifact, config, install=False)


def test_a_loss_that_is_no_number_stops_before_anything_is_written(
    artifact: Artifact, config: TuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(artifact.folder)
    monkeypatch.setattr(
        "collm.tune.distill.divergence", lambda normed, _: (float("nan"), torch.zeros_like(normed))
    )
    with pytest.raises(UsageError, match=r"no longer a number at step 0.*--learning-rate"):
        tune(artifact, config)
    assert tree(artifact.folder) == before
    assert not (config.work / "exits").exists()


def test_a_full_disk_leaves_nothing_half_written(
    artifact: Artifact, config: TuneConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(artifact.folder)

    def full(tensors: dict[str, np.ndarray], path: str, *rest: object, **about: object) -> None:
        if Path(path).name.startswith("exit-"):
            raise OSError(28, "No space left on device")
        save_file(tensors, path, *rest, **about)

    monkeypatch.setattr("collm.model.files.save_file", full)
    with pytest.raises(UsageError, match=r"exit-01.*No space left"):
        tune(artifact, config)
    assert tree(artifact.folder) == before
    assert list((config.work / "exits").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--exits", "3"], "exit 3: .* has cuts at 1, 2"),
        (["--exits", "x"], "expected layer numbers"),
        (["--kind", "tree"], "kind 'tree': expected one of linear, mlp, layer"),
        (["--layers", "3"], "3 layers: expected 1 or 2"),
        (["--window", "-1"], "window -1"),
        (["--adapt", "full"], "--adapt 'full': expected lora"),
        (["--learning-rate", "7"], "--learning-rate 7: expected"),
        (["--data", "missing.jsonl"], "missing.jsonl: No such file"),
        (["--shortlist", "33"], "multiple of 32"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    said: str,
    artifact: Artifact,
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = tree(artifact.folder)
    data = [] if "--data" in arguments else ["--data", str(corpus)]
    command = ["collm", "tune", str(artifact.folder), "--threads", "1", *data, *arguments]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and re.search(said, lines[0])
    assert tree(artifact.folder) == before


def test_without_pytorch_it_says_which_extra(
    artifact: Artifact, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collm.cli.options.find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["collm", "tune", str(artifact.folder)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "pip install 'collm[tune]'" in capsys.readouterr().err


def test_a_dry_run_says_how_long_and_writes_nothing(
    artifact: Artifact,
    config: TuneConfig,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = tree(artifact.folder.parent)
    command = ["collm", "tune", str(artifact.folder), "--data", str(config.data), "--threads", "1"]
    monkeypatch.setattr("sys.argv", [*command, "--tokens", "5000", "--dry-run", "--json"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert said["seconds"]["writing_text"] == 0
    assert said["seconds"]["training"] > 0
    assert tree(artifact.folder.parent) == before


def test_an_exit_at_no_cut_is_refused(artifact: Artifact, config: TuneConfig) -> None:
    with pytest.raises(PlacementError, match="cuts at 1, 2"):
        tune(artifact, replace(config, cuts=(4,)))
