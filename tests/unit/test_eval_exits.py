"""`collm eval exits` and `collm calibrate` on a tiny model, beside figures counted by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file
from tests.exit_files import metadata
from tests.support import RandomCheckpoint, random_artifact, token_ids, tree
from typer.main import get_command

from collm.cli.main import app, main
from collm.model.artifact import Artifact
from collm.model.build import build
from collm.model.exits import add_exit
from collm.runtime.stage import Stage
from collm.tune.corpus import Example, example_line, header_line, read_corpus
from collm.tune.scores import choose_examples, score_exits
from collm.tune.thresholds import for_check

CUTS = (1, 2)
COMMAND = get_command(app)
"""Typer builds it anew at every call, which takes longer than most calls here."""
Rows = list[tuple[bool, float]]
"""Of an example: whether exit and model choose alike, and the confidence, row by row."""


class ShallowCheckpoint(RandomCheckpoint):
    """Its last two layers change little, so that exits before them are often right."""

    def floats(self, name: str) -> npt.NDArray[np.float32]:
        values = super().floats(name)
        late = name.startswith(("model.layers.2.", "model.layers.3."))
        quiet = late and name.split(".")[-2] in ("o_proj", "down_proj")
        return values * np.float32(0.35) if quiet else values


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with trained exits at 1 and 2: the model's own norm and head, as it happens."""
    root = tmp_path_factory.mktemp("eval")
    checkpoint = ShallowCheckpoint()
    build(checkpoint, root / "artifact", cuts=CUTS, weights="fp32")
    d = checkpoint.architecture.hidden_size
    for cut, temperature in zip(CUTS, (0.3, 0.2), strict=True):
        norm = checkpoint.floats("model.norm.weight")
        tensors = {"norm.weight": norm, "linear.weight": np.zeros((d, d), np.float32)}
        path = root / f"exit-{cut}.safetensors"
        save_file(tensors, path, metadata(cut, "linear", temperature=temperature))
        add_exit(root / "artifact", path)
    return root / "artifact"


@pytest.fixture(scope="module")
def corpus(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", Artifact(folder), 48)


def write_corpus(path: Path, artifact: Artifact, count: int, held_out: int | None = None) -> Path:
    """So many examples, the first few held out (all by default), of three kinds in turn."""
    kinds: tuple[tuple[str, bool | None], ...] = (("chat", True), ("chat", False), ("prose", None))
    tokenizer = artifact.manifest.files["tokenizer.json"].sha256
    lines = [header_line(tokenizer=tokenizer, vocabulary=300, context=512, settings={})]
    for i in range(count):
        domain, greedy = kinds[i % 3]
        first = 1 if domain == "prose" else 5
        example = Example(
            ids=np.array(token_ids(i, 12 + i % 9), np.int32),
            domain=domain,
            greedy=greedy,
            user=min(2, first),
            first=first,
            held_out=i < (count if held_out is None else held_out),
        )
        lines.append(example_line(example, "words"))
    path.write_text("".join(lines), encoding="utf-8")
    return path


class Cli:
    """The command as a user types it: exit code, standard output, standard error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str | Path) -> tuple[int, str, str]:
        self._monkeypatch.setattr("collm.cli.main.app", COMMAND)
        self._monkeypatch.setattr(sys, "argv", ["collm", *map(str, arguments), "--threads", "1"])
        with pytest.raises(SystemExit) as ended:
            main()
        said = self._capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    def json(self, *arguments: str | Path) -> dict[str, Any]:
        code, out, err = self(*arguments, "--json")
        assert code == 0, err
        made: dict[str, Any] = json.loads(out)
        return made

    def refuses(self, *arguments: str | Path) -> str:
        code, out, err = self(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("error: ") and err.count("\n") == 1
        return err


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


@pytest.fixture(scope="module")
def by_hand(folder: Path, corpus: Path) -> dict[tuple[int, bytes], Rows]:
    """The rows of every cut and example, by its digest; a token at a time, as in an answer."""
    stage = Stage(Artifact(folder), range(4), exits=CUTS)
    found: dict[tuple[int, bytes], Rows] = {}
    for example in read_corpus(corpus).held_out:
        session = stage.open()
        session.append_ids(example.ids[: example.first - 1].tolist())
        for position in range(example.first - 1, len(example.ids)):
            session.append_ids([int(example.ids[position])])
            guesses = [session.exit_at(cut) for cut in CUTS]
            model = int(session.logits(position)[-1].argmax())
            for cut, guess in zip(CUTS, guesses, strict=True):
                rows = found.setdefault((cut, example.digest), [])
                rows.append((guess.token_id == model, guess.confidence))
    return found


def test_figures_are_those_counted_by_hand(
    folder: Path, corpus: Path, cli: Cli, by_hand: dict[tuple[int, bytes], Rows]
) -> None:
    report = cli.json("eval", "exits", folder, "--data", corpus)
    examples = read_corpus(corpus).held_out
    assert [text["examples"] for text in report["text"]] == [48, 32, 16, 16, 16]
    for made, cut in zip(report["exits"], CUTS, strict=True):
        assert made["cut"] == cut
        hand = [by_hand[cut, example.digest] for example in examples]
        names = {"all": [True] * 48, "chat": [e.domain == "chat" for e in examples],
                 "chat, greedy": [e.greedy is True for e in examples],
                 "chat, sampled": [e.greedy is False for e in examples],
                 "prose": [e.domain == "prose" for e in examples]}  # fmt: skip
        assert [domain["domain"] for domain in made["domains"]] == list(names)
        for domain, (name, mine) in zip(made["domains"], names.items(), strict=True):
            rows = [row for rows, taken in zip(hand, mine, strict=True) if taken for row in rows]
            right = [is_right for is_right, _ in rows]
            assert domain["domain"] == name and domain["rows"] == len(rows)
            assert domain["agreement"] == pytest.approx(np.mean(right))
            assert domain["low"] <= domain["agreement"] <= domain["high"]
            for at in domain["thresholds"]:
                sure = [is_right for is_right, said in rows if said >= at["threshold"]]
                assert at["coverage"] == pytest.approx(len(sure) / len(rows))
                precise = None if not sure else pytest.approx(np.mean(sure))
                assert at["precision"] == precise
    assert 0.3 < made["domains"][0]["agreement"] < 0.95  # or the test would say little


def test_drafts_are_counted_on_greedy_text_only(
    folder: Path, corpus: Path, cli: Cli, by_hand: dict[tuple[int, bytes], Rows]
) -> None:
    report = cli.json("eval", "exits", folder, "--data", corpus, "--exits", "2")
    hand = [by_hand[2, e.digest] for e in read_corpus(corpus).held_out if e.greedy]
    (made,) = report["exits"]
    for setting in made["drafting"]:
        assert setting["tokens"] == sum(map(len, hand))
        rounds = 0
        for rows in hand:
            at = 0
            while at < len(rows):
                drafts = 0
                while drafts < min(setting["length"], len(rows) - at - 1):
                    is_right, said = rows[at + drafts]
                    if not is_right or said < setting["threshold"]:
                        break
                    drafts += 1
                at, rounds = at + drafts + 1, rounds + 1
        assert setting["tokens_per_round"] == pytest.approx(setting["tokens"] / rounds)
    most = max(setting["tokens_per_round"] for setting in made["drafting"])
    assert 0.99 * most <= made["best"]["tokens_per_round"] <= most


def test_perplexity_is_of_the_text_as_it_stands(folder: Path, corpus: Path, cli: Cli) -> None:
    report = cli.json("eval", "exits", folder, "--data", corpus)
    stage = Stage(Artifact(folder), range(4))
    losses = []
    for example in read_corpus(corpus).held_out:
        session = stage.open()
        session.append_ids(example.ids.tolist())
        logits = session.logits(0).astype(np.float64)
        for position in range(example.first - 1, len(example.ids) - 1):
            row = logits[position]
            losses.append(np.log(np.exp(row).sum()) - row[example.ids[position + 1]])
    assert report["text"][0]["perplexity"] == pytest.approx(np.exp(np.mean(losses)), rel=1e-4)


def test_tables_are_readable_and_json_goes_to_a_file(
    folder: Path, corpus: Path, cli: Cli, tmp_path: Path
) -> None:
    code, out, err = cli("eval", "exits", folder, "--data", corpus, "--out", tmp_path / "r.json")
    assert code == 0, err
    report = json.loads((tmp_path / "r.json").read_text())
    for made in report["exits"]:
        assert f"{made['domains'][0]['agreement']:.1%}" in out
        assert f"Exit after layer {made['cut']}" in out
    assert max(map(len, out.splitlines()[1:])) <= 100  # the first names files
    assert "agreement, chat, greedy" in out and "tokens a round" in out


def test_a_limit_takes_the_same_share_from_every_domain(folder: Path, corpus: Path) -> None:
    some = choose_examples(read_corpus(corpus), 200)
    taken = dict.fromkeys(("chat", "prose"), 0)
    for example in some:
        taken[example.domain] += len(example.ids) - example.first + 1
    assert 150 < sum(taken.values()) <= 200
    assert abs(taken["chat"] - taken["prose"]) <= 21
    assert {example.greedy for example in some} == {True, False, None}
    more = choose_examples(read_corpus(corpus), 400)
    assert [e.digest for e in more[: len(some)]] == [e.digest for e in some]
    assert len(choose_examples(read_corpus(corpus), 1)) == 1


def test_progress_counts_every_row(folder: Path, corpus: Path) -> None:
    examples = read_corpus(corpus).held_out
    told: list[tuple[int, int]] = []
    scores = score_exits(
        Artifact(folder), examples, CUTS, progress=lambda _, done, total: told.append((done, total))
    )
    assert told[0] == (0, scores.row_count) and told[-1] == (scores.row_count, scores.row_count)
    assert told == sorted(told)


def test_plots_are_drawn(folder: Path, corpus: Path, cli: Cli, tmp_path: Path) -> None:
    plots = tmp_path / "new" / "plots"
    code, out, err = cli("eval", "exits", folder, "--data", corpus, "--plot", plots)
    assert code == 0, err
    names = {"agreement-by-depth", "reliability", "risk-coverage", "tokens-per-round"}
    assert {path.stem for path in plots.iterdir()} == names
    for path in plots.iterdir():
        assert str(path) in out
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


def test_plots_without_matplotlib_name_the_extra(
    folder: Path, corpus: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    plots = tmp_path / "plots"
    said = cli.refuses("eval", "exits", folder, "--data", corpus, "--plot", plots)
    assert "pip install 'collm[plot]'" in said
    assert not plots.exists()


# ------------------------------------------------------------------------------- calibrate


@pytest.mark.parametrize("together", [False, True])
def test_thresholds_keep_the_bound_and_are_written(
    folder: Path,
    corpus: Path,
    cli: Cli,
    by_hand: dict[tuple[int, bytes], Rows],
    together: bool,
) -> None:
    options = ["--together"] if together else []
    made = cli.json("calibrate", folder, "--data", corpus, "--agreement", "0.8", *options)
    examples = read_corpus(corpus).held_out
    used = [example for example in examples if not for_check(example)]
    alpha = 0.2 / (2 if together else 1)
    for found in made["chosen"]:
        entry = Artifact(folder).manifest.exit_at(found["cut"])
        assert entry is not None and entry.threshold == found["threshold"]
        record = json.loads(entry.calibration)
        assert record["agreement"] == 0.8 and record["calibrated"] == found["calibrated"]
        assert record["corpus_sha256"] == made["corpus_sha256"]
        assert record["together"] == (2 if together else 1)
        n = found["calibrated"]["examples"]
        assert n == len(used) and n + found["checked"]["examples"] == len(examples)
        hand = [by_hand[found["cut"], example.digest] for example in used]
        threshold = 9 if found["threshold"] is None else found["threshold"]
        losses = [np.mean([said >= threshold and not ok for ok, said in rows]) for rows in hand]
        assert found["calibrated"]["agreement"] == pytest.approx(1 - np.mean(losses))
        assert (n * np.mean(losses) + 1) / (n + 1) <= alpha + 1e-9
    assert any(found["calibrated"]["coverage"] > 0.02 for found in made["chosen"])
    assert (made["cascade"] is not None) == together


def test_the_check_can_be_left_out(folder: Path, corpus: Path, cli: Cli) -> None:
    arguments = ("calibrate", folder, "--data", corpus, "--agreement", "0.8", "--no-check")
    made = cli.json(*arguments)
    assert all(c["checked"] is None for c in made["chosen"])
    assert all(c["calibrated"]["examples"] == 48 for c in made["chosen"])
    code, out, _ = cli(*arguments)
    assert code == 0 and "48 examples" in out and "nothing was kept" in out


def test_an_exit_that_is_never_sure_enough_answers_nothing(
    corpus: Path, cli: Cli, tmp_path: Path
) -> None:
    artifact = random_artifact(tmp_path / "artifact", cuts=CUTS)
    d = artifact.architecture.hidden_size
    # A head turned around: what the model finds likeliest is the last thing this exit says.
    tensors = {"norm.weight": -np.ones(d, np.float32), "linear.weight": np.zeros((d, d), "f4")}
    save_file(tensors, tmp_path / "exit", metadata(2, "linear", temperature=0.02))
    add_exit(artifact.folder, tmp_path / "exit")
    code, out, err = cli("calibrate", artifact.folder, "--data", corpus, "--agreement", "0.95")
    assert code == 0, err
    assert "answers nothing" in out
    entry = Artifact(artifact.folder).manifest.exit_at(2)
    assert entry is not None and entry.threshold is None and entry.calibration


# ------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("verb", [("eval", "exits"), ("calibrate", "--agreement", "0.9")])
def test_what_cannot_be_scored_is_refused_in_a_line(
    folder: Path, corpus: Path, cli: Cli, tmp_path: Path, verb: tuple[str, ...]
) -> None:
    before = tree(folder)
    assert "no/such" in cli.refuses(*verb, "no/such", "--data", corpus)
    assert "no.jsonl" in cli.refuses(*verb, folder, "--data", tmp_path / "no.jsonl")
    (tmp_path / "text").write_text("just words\n")
    assert "line 1" in cli.refuses(*verb, folder, "--data", tmp_path / "text")
    bad = tmp_path / "bad.jsonl"
    bad.write_text(corpus.read_text() + '{"ids": 3}\n')
    assert "line 50" in cli.refuses(*verb, folder, "--data", bad)
    training = write_corpus(tmp_path / "training.jsonl", Artifact(folder), 6, held_out=0)
    assert "no held-out" in cli.refuses(*verb, folder, "--data", training)
    other = tmp_path / "other.jsonl"
    sha256 = Artifact(folder).manifest.files["tokenizer.json"].sha256
    other.write_text(corpus.read_text().replace(sha256, "0" * 64))
    assert "another tokenizer" in cli.refuses(*verb, folder, "--data", other)
    assert "exits at 1, 2" in cli.refuses(*verb, folder, "--data", corpus, "--exits", "3")
    assert "--exits" in cli.refuses(*verb, folder, "--data", corpus, "--exits", "two")
    untrained = random_artifact(tmp_path / "untrained", cuts=CUTS).folder
    assert "no trained exits" in cli.refuses(*verb, untrained, "--data", corpus)
    assert "untrained" in cli.refuses(*verb, untrained, "--data", corpus, "--exits", "1")
    assert tree(folder) == before


@pytest.mark.parametrize("agreement", ["0.5", "1", "98", "-1", "nan"])
def test_an_agreement_that_cannot_be_promised(
    folder: Path, corpus: Path, cli: Cli, agreement: str
) -> None:
    said = cli.refuses("calibrate", folder, "--data", corpus, f"--agreement={agreement}")
    assert "above 0.5 and below 1" in said


def test_too_few_examples_are_counted(folder: Path, corpus: Path, cli: Cli) -> None:
    before = tree(folder)
    said = cli.refuses("calibrate", folder, "--data", corpus, "--agreement", "0.98")
    kept = sum(for_check(example) for example in read_corpus(corpus).held_out)
    assert f"{48 - kept} held-out examples" in said and "takes 49" in said
    assert f"{kept} more are kept" in said
    said = cli.refuses("calibrate", folder, "--agreement", "0.9")
    assert "--data" in said and "collm synthesize" in said
    assert tree(folder) == before


def test_output_that_cannot_be_written_is_refused_first(
    folder: Path, corpus: Path, cli: Cli, tmp_path: Path
) -> None:
    arguments = ("eval", "exits", folder, "--data", corpus)
    assert "folder that exists" in cli.refuses(*arguments, "--out", tmp_path / "no" / "r.json")
    (tmp_path / "file").write_text("")
    assert "expected a folder" in cli.refuses(*arguments, "--plot", tmp_path / "file")
