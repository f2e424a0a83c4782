"""`collm trace` on a tiny model, and the files it writes."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tests.corpora import random_corpus
from tests.exit_files import exit_file
from tests.policy_traces import made_up_traces
from tests.support import random_artifact, token_ids

from collm.cli.main import main
from collm.errors import UsageError
from collm.model.artifact import Artifact
from collm.model.exits import add_exit
from collm.runtime.stage import Stage
from collm.tune.corpus import read_corpus
from collm.tune.rollouts import TOKENS, Continuations, fill_drops, sample_disagreements
from collm.tune.trace import examples_to_trace, trace
from collm.tune.trace_file import COHERENCE, Traces, join_traces, read_traces, write_traces

CUTS = (1, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trace")
    artifact = random_artifact(root / "artifact")
    for cut in CUTS:
        path = exit_file(root / f"{cut}.safetensors", artifact.architecture, cut, "linear")
        add_exit(root / "artifact", path)
    return root / "artifact"


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Path:
    return random_corpus(folder.parent / "corpus.jsonl", Artifact(folder), 12)


@pytest.fixture(scope="module")
def traced(folder: Path, corpus: Path) -> Traces:
    examples = examples_to_trace(read_corpus(corpus), "held-out", 100)
    return trace(Artifact(folder), corpus, examples, CUTS, rollouts=5)


def collm(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["collm", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_rows_are_what_a_token_at_a_time_sees(folder: Path, corpus: Path, traced: Traces) -> None:
    stage = Stage(Artifact(folder), range(4), exits=CUTS)
    (example, *_) = examples_to_trace(read_corpus(corpus), "held-out", 100)
    session = stage.open()
    session.append_ids(example.ids[: example.first - 1].tolist())
    for row, position in enumerate(range(example.first - 1, len(example.ids))):
        session.append_ids([int(example.ids[position])])
        for i, cut in enumerate(CUTS):
            guess = session.exit_at(cut)
            assert traced.tokens[row, i] == guess.token_id
            assert traced.confidences[row, i] == pytest.approx(guess.confidence, abs=1e-5)
            assert traced.entropies[row, i] == pytest.approx(guess.entropy, abs=1e-4)
        logits = session.logits(position)[-1].astype(np.float64)
        logprobs = logits - np.log(np.exp(logits).sum())
        assert traced.model_tokens[row] == logits.argmax()
        assert traced.model_logprobs[row] == pytest.approx(logprobs.max(), abs=1e-4)
        for i in range(2):
            said = logprobs[traced.tokens[row, i]]
            assert traced.exit_logprobs[row, i] == pytest.approx(said, abs=1e-4)
    assert traced.starts[1] == row + 1
    assert traced.coherence[: row + 1, COHERENCE.index("tokens")].tolist() == list(range(row + 1))


def test_costs_are_measured(traced: Traces) -> None:
    assert 0 < traced.costs.layers[0] < traced.costs.layers[1]
    assert traced.costs.cloud > 0
    assert traced.costs.edge_seconds(2) > traced.costs.edge_seconds(1) > 0


def test_every_wrong_token_has_a_drop_and_no_right_one(traced: Traces) -> None:
    assert traced.rolled.sum() == 5
    assert (traced.drops[traced.right] == 0).all()
    assert (traced.drops >= 0).all() and np.isfinite(traced.drops).all()
    assert not (traced.rolled & traced.right).any()


def test_a_continuation_is_the_full_models_own(folder: Path) -> None:
    """Rolled out from the end to the beginning, or afresh: the same figures."""
    artifact = Artifact(folder)
    stage, ids = Stage(artifact, range(4)), token_ids(3, 20)
    going = Continuations(stage, ids)
    found = {row: going.at(row, 5, [7, 9]) for row in (15, 9, 4)}
    for row, made in found.items():
        assert made is not None
        for wrong, rollout in zip((7, 9), made, strict=True):
            sums, tails = {}, {}
            for token in (5, wrong):
                text = [*ids[: row + 1], token]
                session = stage.open()
                session.append_ids(text)
                total = _logprob(stage, text, row)
                for _ in range(TOKENS):
                    text.append(int(session.logits(len(text) - 1)[-1].argmax()))
                    session.append_ids(text[-1:])
                total += sum(_logprob(stage, text, at) for at in range(row + 1, row + 1 + TOKENS))
                sums[token], tails[token] = total, text[row + 2 :]
            expected = max(0.0, (sums[5] - sums[wrong]) / (TOKENS + 1))
            assert rollout.drop == pytest.approx(expected, abs=1e-4)
            assert rollout.rejoined == (tails[5] == tails[wrong])


def _logprob(stage: Stage, text: list[int], position: int) -> float:
    session = stage.open()
    session.append_ids(text[: position + 1])
    logits = session.logits(position)[-1].astype(np.float64)
    return float(logits[text[position + 1]] - np.log(np.exp(logits).sum()))


def test_unrolled_disagreements_take_the_mean_of_alike_gaps() -> None:
    gaps = np.array([[0.1], [0.2], [5.0], [5.1], [0.15], [4.9], [0.0]], np.float32)
    wrong = np.array([[1], [1], [1], [1], [1], [1], [0]], np.bool_)
    rolled = np.array([[1], [1], [1], [1], [0], [0], [0]], np.bool_)
    drops = np.array([[0.1], [0.1], [2.0], [2.0], [9], [9], [9]], np.float32)
    filled = fill_drops(gaps, wrong, rolled, drops)[:, 0]
    assert filled[4] == pytest.approx(0.1) and filled[5] == pytest.approx(2.0)
    assert filled[6] == 0
    none = fill_drops(gaps, wrong, np.zeros_like(rolled), drops)[:, 0]
    assert none[2] == pytest.approx(5.0 / (TOKENS + 1))


def test_the_same_seed_samples_the_same_disagreements() -> None:
    wrong = np.random.default_rng(0).random((50, 3)) < 0.5
    first, again = (sample_disagreements(wrong, 10, 4) for _ in range(2))
    assert (first == again).all() and len(first) == 10
    assert wrong[first[:, 0], first[:, 1]].all()


def test_a_file_comes_back_and_names_its_artifact(
    folder: Path, traced: Traces, tmp_path: Path
) -> None:
    path = tmp_path / "traces.safetensors"
    write_traces(path, traced)
    read = read_traces(path, Artifact(folder))
    for name in ("tokens", "drops", "rolled", "coherence", "starts", "model_logprobs"):
        assert (getattr(read, name) == getattr(traced, name)).all()
    assert (read.cuts, read.domains, read.costs) == (traced.cuts, traced.domains, traced.costs)


def test_traces_of_another_artifact_or_other_exits_are_refused(
    folder: Path, traced: Traces, tmp_path: Path
) -> None:
    path = tmp_path / "traces.safetensors"
    for changed, said in (
        (replace(traced, fingerprint="0" * 64), "another artifact"),
        (replace(traced, exits_digest="0" * 64), "other exits"),
    ):
        write_traces(path, changed)
        with pytest.raises(UsageError, match=said) as caught:
            read_traces(path, Artifact(folder))
        assert "\n" not in str(caught.value)


def test_files_that_are_no_sound_traces_are_refused(tmp_path: Path, traced: Traces) -> None:
    path = tmp_path / "traces.safetensors"
    with pytest.raises(UsageError, match="No such file"):
        read_traces(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(UsageError, match="no sound traces"):
        read_traces(path)
    save_file({"x": np.zeros(1, np.float32)}, path)
    with pytest.raises(UsageError, match="no traces"):
        read_traces(path)
    write_traces(path, replace(traced, drops=traced.drops * np.nan))
    with pytest.raises(UsageError, match="not finite"):
        read_traces(path)


def test_exits_that_were_not_traced_are_named() -> None:
    traces = made_up_traces(3, 4)
    assert traces.with_cuts((2,)).tokens.shape == (12, 1)
    with pytest.raises(UsageError, match="exit 7: the traces have the exits 1, 2"):
        traces.with_cuts((7,))


def test_traces_join_and_part_again() -> None:
    one, other = made_up_traces(3, 4), made_up_traces(2, 5, seed=1)
    joined = join_traces([one, other])
    assert joined.texts == 5 and len(joined) == 22
    assert (joined.of_texts([3, 4]).tokens == other.tokens).all()
    with pytest.raises(UsageError, match="cannot be joined"):
        join_traces([one, made_up_traces(2, 5, cuts=(1, 3))])


def test_the_command_writes_a_file(
    folder: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "t.safetensors"
    arguments = ("trace", folder, "--data", corpus, "--out", out, "--threads", "1")
    assert collm(monkeypatch, *arguments, "--rollouts", "2", "--exits", "2") == 0
    said = capsys.readouterr()
    assert "rolling out 2 of" in said.err and f"wrote {out}" in said.out
    assert read_traces(out, Artifact(folder)).cuts == (2,)
    assert collm(monkeypatch, *arguments, "--exits", "3") == 2
    assert capsys.readouterr().err.count("\n") == 1
