"""Training on from exits that are there, and adapting the model, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.corpora import random_corpus
from tests.support import RandomCheckpoint, random_artifact, save_random_folder, tree

torch = pytest.importorskip("torch")

from collm.cli.main import main  # noqa: E402
from collm.model.artifact import Artifact  # noqa: E402
from collm.model.build import build  # noqa: E402

SMALL = ("--tokens", "1000", "--shortlist", "288", "--batch", "128", "--device", "cpu")


class Collm:
    """The command line, in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self._capsys, self._patch = capsys, patch

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        self._patch.setattr("sys.argv", ["collm", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = self._capsys.readouterr()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, out, err


@pytest.fixture
def collm(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Collm:
    return Collm(capsys, monkeypatch)


def test_exits_are_trained_on_from_their_files(collm: Collm, tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "model")
    corpus = random_corpus(tmp_path / "corpus.jsonl", artifact)
    common = ("tune", artifact.folder, "--data", corpus, "--no-install", "--json", *SMALL)
    code, out, _ = collm(*common, "--work", tmp_path / "first")
    assert code == 0
    first = {made["exit"]: made for made in json.loads(out)}
    start = tmp_path / "first" / "exits"
    code, out, _ = collm(*common, "--work", tmp_path / "second", "--start", start)
    assert code == 0
    for made in json.loads(out):
        # It began where the other ended: the same files, measured on the same text.
        before = first[made["exit"]]["agreement"]
        assert made["agreement_untrained"] == pytest.approx(before, abs=1e-9)
    other = ("--work", tmp_path / "third", "--start", start, "--kind", "mlp")
    code, _, err = collm(*common, *other)
    assert code == 2 and "made as" in err
    code, _, err = collm(*common, "--work", tmp_path / "fourth", "--start", corpus.parent)
    assert code == 2 and "no exit-*.safetensors there" in err


def test_an_adapted_model_is_built_with_its_exits(collm: Collm, tmp_path: Path) -> None:
    source = save_random_folder(tmp_path / "source")
    code, _, err = collm("build", source, tmp_path / "model", "--cuts", "1,2", "--weights", "fp32")
    assert code == 0, err
    artifact = Artifact(tmp_path / "model")
    before = tree(artifact.folder)
    corpus = random_corpus(tmp_path / "corpus.jsonl", artifact)
    arguments = ("--adapt", "lora", "--rank", "2", "--looks", "2", "--work", tmp_path / "work")
    code, out, err = collm("tune", artifact.folder, "--data", corpus, *arguments, *SMALL)
    assert code == 0, err
    assert "full depth" in out and "collm build SOURCE OUT --adapt" in out
    assert tree(artifact.folder) == before
    adapted = tmp_path / "adapted"
    options = ("--cuts", "1,2", "--weights", "fp32", "--adapt", tmp_path / "work" / "adapted")
    code, _, err = collm("build", source, adapted, *options)
    assert code == 0, err
    manifest = Artifact(adapted).manifest
    assert [entry.trained for entry in manifest.exits] == [True, True]
    assert json.loads(manifest.adaptation)
    assert manifest.fingerprint != artifact.manifest.fingerprint
    code, out, _ = collm("info", adapted)
    assert code == 0 and "adaptation" in out
    code, _, err = collm("tune", adapted, "--data", corpus, *arguments, *SMALL)
    assert code == 2 and "is adapted already" in err


def test_a_plain_exit_is_refused_by_an_adapted_model_and_the_other_way(
    collm: Collm, tmp_path: Path
) -> None:
    build(RandomCheckpoint(), tmp_path / "model", cuts=(1, 2), weights="fp32")
    artifact = Artifact(tmp_path / "model")
    corpus = random_corpus(tmp_path / "corpus.jsonl", artifact)
    arguments = ("--adapt", "lora", "--rank", "2", "--looks", "1", "--work", tmp_path / "work")
    code, _, err = collm("tune", artifact.folder, "--data", corpus, *arguments, *SMALL)
    assert code == 0, err
    made = tmp_path / "work" / "adapted" / "exit-01.safetensors"
    code, _, err = collm("add-exit", artifact.folder, made)
    assert code == 2 and "adapt" in err
