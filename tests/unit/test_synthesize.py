"""Writing a corpus: the same bytes however it was interrupted, and nothing odd in or out."""

from __future__ import annotations

import errno
import itertools
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support import CHAT_TEMPLATE, RandomCheckpoint, random_artifact, tokenizer_files

torch = pytest.importorskip("torch")

from collm.cli import main as command_line  # noqa: E402
from collm.cli import options  # noqa: E402
from collm.errors import PromptError, SourceError, UsageError  # noqa: E402
from collm.model.artifact import Artifact  # noqa: E402
from collm.model.build import build  # noqa: E402
from collm.tune import wave  # noqa: E402
from collm.tune.backbone import load_backbone  # noqa: E402
from collm.tune.chat_form import chat_form  # noqa: E402
from collm.tune.corpus import (  # noqa: E402
    Corpus,
    check_tokenizer,
    read_corpus,
)
from collm.tune.synthesize import SynthesisConfig, Synthesizer  # noqa: E402
from collm.tune.wave import draw  # noqa: E402

TEXT = "The edge answers the easy tokens.\n\nThe cloud finishes the hard ones, token by token. " * 8


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # these models are too small to share


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return random_artifact(tmp_path_factory.mktemp("artifact") / "a", cuts=(), num_hidden_layers=1)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A text, a source file and two prompts."""
    tmp_path = tmp_path_factory.mktemp("given")
    (tmp_path / "t.txt").write_text(TEXT)
    (tmp_path / "t.py").write_text("def answer(token):\n    return token\n\n\n" * 4)
    (tmp_path / "p.jsonl").write_text('{"prompt": "the edge?", "domain": "asks"}\n"the cloud?"\n')
    return {"texts": (tmp_path / "t.txt", tmp_path / "t.py"), "prompts": (tmp_path / "p.jsonl",)}


@pytest.fixture(scope="module")
def whole(
    artifact: Artifact, given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> bytes:
    """An uninterrupted corpus of everything."""
    path = tmp_path_factory.mktemp("whole") / "c"
    synthesize(artifact, path, **given)
    return path.read_bytes()


def config(out: Path, **changes: Any) -> SynthesisConfig:
    small = {"tokens": 800, "slots": 8, "max_length": 36, "max_user": 12, "max_text": 80}
    return SynthesisConfig(out=out, **{**small, **changes})


def synthesize(artifact: Artifact, out: Path, **changes: Any) -> Corpus:
    Synthesizer(artifact, config(out, **changes)).run()
    return read_corpus(out)


def test_a_corpus_has_texts_answers_and_chats(
    artifact: Artifact, given: dict[str, Any], tmp_path: Path
) -> None:
    corpus = synthesize(artifact, tmp_path / "c.jsonl", **given)
    check_tokenizer(corpus, artifact)
    assert corpus.domains == ("asks", "chat", "code", "prose")
    assert sum(len(e.ids) for e in corpus.examples) >= 800
    assert len(corpus.training) + len(corpus.held_out) == len(corpus.examples)
    tokenizer, form = artifact.tokenizer(), chat_form(artifact)
    for example in corpus.examples:
        if example.domain in ("code", "prose"):
            assert (example.user, example.first, example.greedy) == (1, 1, None)
            assert tokenizer.decode(example.ids) in TEXT + given["texts"][1].read_text()
            continue
        ids = tuple(example.ids.tolist())
        assert ids[: example.user] == form.prefix
        assert ids[example.first - len(form.suffix) : example.first] == form.suffix
        assert not {0, 1, 2} & set(ids[example.first :]), "no special token in an answer"
        turn = tokenizer.decode(ids[example.user : example.first])
        assert len(ids) <= (80 if turn.startswith(("the edge?", "the cloud?")) else 36)
    chats = [e for e in corpus.examples if e.domain == "chat" and e.user < e.first]
    assert {e.greedy for e in chats} == {True, False}
    asked = [e for e in corpus.examples if e.domain == "asks"]
    assert tokenizer.encode_chat([{"role": "user", "content": "the edge?"}]) == list(
        asked[0].ids[: asked[0].first]
    )


def test_a_greedy_answer_is_the_models_argmax(artifact: Artifact, tmp_path: Path) -> None:
    backbone = load_backbone(artifact)
    greedy = [e for e in synthesize(artifact, tmp_path / "c").examples if e.greedy]
    assert greedy
    for example in greedy:
        ids = torch.from_numpy(example.ids.astype(np.int64))[None]
        argmax = backbone.logits(backbone.states(ids, ())[0, 0]).argmax(-1).numpy()
        assert (argmax[example.first - 1 : -1] == example.ids[example.first :]).all()


def test_a_chat_does_not_depend_on_how_many_are_written_at_once(
    artifact: Artifact, tmp_path: Path
) -> None:
    few = synthesize(artifact, tmp_path / "a", slots=4, tokens=400).examples
    many = synthesize(artifact, tmp_path / "b", slots=12, tokens=400).examples
    for one, other in zip(few, many, strict=False):
        assert one.ids.tolist() == other.ids.tolist()


class Stopped(Exception):
    """Stands for whatever ends a process."""


@pytest.mark.parametrize("after", [0, 40, 110])
def test_interrupted_and_resumed_is_the_same_file(
    artifact: Artifact,
    given: dict[str, Any],
    whole: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    counter = itertools.count()

    class Stopping(wave.Decoder):
        def step(self, ids_B: Any) -> Any:
            if next(counter) == after:
                raise Stopped
            return super().step(ids_B)

    with monkeypatch.context() as patch:
        patch.setattr(wave, "Decoder", Stopping)
        with pytest.raises(Stopped):
            synthesize(artifact, tmp_path / "parts", **given)
    synthesize(artifact, tmp_path / "parts", **given)
    assert (tmp_path / "parts").read_bytes() == whole


@pytest.mark.parametrize("share", [0.005, 0.3, 0.77, 0.999])
def test_a_file_cut_anywhere_is_continued_to_the_same_bytes(
    artifact: Artifact, given: dict[str, Any], whole: bytes, tmp_path: Path, share: float
) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(whole[: int(len(whole) * share)])
    synthesize(artifact, path, **given)
    assert path.read_bytes() == whole


def test_a_larger_number_continues(artifact: Artifact, tmp_path: Path) -> None:
    synthesize(artifact, tmp_path / "a", tokens=200)
    first = (tmp_path / "a").read_bytes()
    synthesize(artifact, tmp_path / "a", tokens=100)
    assert (tmp_path / "a").read_bytes() == first
    synthesize(artifact, tmp_path / "a", tokens=500)
    synthesize(artifact, tmp_path / "b", tokens=500)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes().startswith(first)


def test_the_seed_decides(artifact: Artifact, tmp_path: Path) -> None:
    ids = [
        [
            e.ids.tolist()
            for e in synthesize(artifact, tmp_path / f"{n}", seed=s, tokens=200).examples
        ]
        for n, s in enumerate((0, 0, 1))
    ]
    assert ids[0] == ids[1] != ids[2]


def test_the_shares_mix(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("".join(f"{n} edges and {n * n} tokens.\n" for n in range(999)))
    options = {"texts": (tmp_path / "t.txt",), "text_share": 0.5, "slots": 48, "tokens": 6000}
    corpus = synthesize(artifact, tmp_path / "c", **options)
    text = sum(len(e.ids) for e in corpus.examples if e.greedy is None)
    total = sum(len(e.ids) for e in corpus.examples)
    assert 0.3 < text / total < 0.7


def test_what_repeats_is_left_out_and_the_split_is_by_hash(
    artifact: Artifact, tmp_path: Path
) -> None:
    lines = [json.dumps({"question": f"is {n % 40} {n % 40}?"}) for n in range(80)]
    lines += ['"is 3 3?"', '{"prompt": "is 3 3?", "domain": "again"}']
    (tmp_path / "p").write_text("\n".join(lines))
    (tmp_path / "t").write_text("".join(f"{n} edges and {n * n} tokens.\n" for n in range(99)))
    options = {"prompts": (tmp_path / "p",), "slots": 60, "tokens": 2500, "held_out": 0.3}
    plain = synthesize(artifact, tmp_path / "a", **options)
    other = synthesize(artifact, tmp_path / "b", **options, seed=5, texts=(tmp_path / "t",))
    split = [{e.digest: e.held_out for e in corpus.examples} for corpus in (plain, other)]
    assert len(split[0]) == len(plain.examples) and len(split[1]) == len(other.examples)
    shared = split[0].keys() & split[1].keys()
    assert len(shared) >= 20
    assert all(split[0][d] == split[1][d] for d in shared)
    # Among 60 and more at 0.3: outside of this by chance once in ten thousand.
    assert 0.08 < len(plain.held_out) / len(plain.examples) < 0.55


def test_a_full_disk_keeps_what_was_whole(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.jsonl"
    synthesize(artifact, tmp_path / "whole", tokens=500)
    synthesize(artifact, path, tokens=200)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UsageError, match="No space left") as caught:
            synthesize(artifact, path, tokens=500)
        with pytest.raises(UsageError, match="No space left"):
            synthesize(artifact, tmp_path / "new", tokens=500)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before and not (tmp_path / "new").exists()
    synthesize(artifact, path, tokens=500)
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()


def test_what_does_not_fit_is_refused_and_left_alone(artifact: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    synthesize(artifact, path, tokens=200)
    before = path.read_bytes()
    with pytest.raises(SourceError, match="seed 0, now it is 1"):
        synthesize(artifact, path, tokens=900, seed=1)
    with pytest.raises(SourceError, match="made with artifact"):
        synthesize(random_artifact(tmp_path / "other", seed=1), path, tokens=900)
    assert path.read_bytes() == before
    (tmp_path / "notes").write_text("my notes\n")
    with pytest.raises(SourceError, match="no corpus header"):
        synthesize(artifact, tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == "my notes\n"
    with pytest.raises(UsageError, match="context of 512"):
        synthesize(artifact, tmp_path / "new", max_length=600)
    with pytest.raises(UsageError, match="no room for an answer"):
        synthesize(artifact, tmp_path / "new", max_user=50)


def test_two_writers_do_not_mix(artifact: Artifact, tmp_path: Path) -> None:
    path, inner = tmp_path / "c.jsonl", Synthesizer(artifact, config(tmp_path / "c.jsonl"))

    def second(tokens: int) -> None:
        with pytest.raises(UsageError, match="another collm synthesize"):
            inner.run()
        raise Stopped

    with pytest.raises(Stopped):
        Synthesizer(artifact, config(path)).run(second)


def test_a_model_without_a_chat_template_takes_texts_only(
    given: dict[str, Any], tmp_path: Path
) -> None:
    class Plain(RandomCheckpoint):
        def tokenizer(self) -> Any:
            return replace(tokenizer_files(), chat_template=None, bos_id=1)

    build(Plain(num_hidden_layers=1), tmp_path / "a", cuts=(), weights="fp32")
    plain = Artifact(tmp_path / "a")
    corpus = synthesize(plain, tmp_path / "c", texts=given["texts"], tokens=100)
    assert all(e.ids[0] == 1 for e in corpus.examples)
    with pytest.raises(UsageError, match="no chat template"):
        synthesize(plain, tmp_path / "c", texts=given["texts"])
    assert read_corpus(tmp_path / "c").examples


@pytest.mark.parametrize(
    "template",
    [
        CHAT_TEMPLATE,
        "{% for m in messages %}USER: {{ m['content'] }} ASSISTANT:{% endfor %}",
        "{{ bos_token }}[INST] {{ messages[0]['content'] }} [/INST]",
    ],
)
def test_any_template_can_be_split(template: str, tmp_path: Path) -> None:
    class Other(RandomCheckpoint):
        def tokenizer(self) -> Any:
            return replace(tokenizer_files(), chat_template=template)

    build(Other(num_hidden_layers=1), tmp_path / "a", cuts=(), weights="fp32")
    made = Artifact(tmp_path / "a")
    form = chat_form(made)
    words = tuple(made.tokenizer().encode("hello"))
    whole = made.tokenizer().encode_chat([{"role": "user", "content": "hello"}])
    assert made.tokenizer().decode(form.prefix + words + form.suffix) == made.tokenizer().decode(
        whole
    )
    assert form.suffix[: len(form.end)] == form.end
    corpus = synthesize(made, tmp_path / "c", tokens=200)
    assert all(tuple(e.ids[: e.user].tolist()) == form.prefix for e in corpus.examples)


def test_sampling_follows_the_distribution() -> None:
    probabilities = np.array([0.5, 0.0, 0.3, 0.2, 0.0])
    logits = torch.from_numpy(np.log(probabilities + 1e-30)).float().expand(20_000, -1)
    uniform = np.random.default_rng(0).random(20_000, np.float32)
    tokens = draw(logits, np.ones(20_000), uniform)
    # the standard deviation of a share is at most 0.0036: this fails by chance never
    assert np.bincount(tokens, minlength=5) / 20_000 == pytest.approx(probabilities, abs=0.02)
    edges = np.array([0.0, 1 - 2**-24], np.float32)
    assert draw(logits[:2], np.ones(2), edges).tolist() == [0, 3]


def test_long_prompts_are_left_out_and_counted(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "p").write_text('"short"\n' + json.dumps("long " * 100) + "\n")
    made = Synthesizer(artifact, config(tmp_path / "c", prompts=(tmp_path / "p",)))
    assert (len(made.prompts), made.skipped) == (1, 1)
    (tmp_path / "p").write_text(json.dumps("long " * 100))
    with pytest.raises(UsageError, match="every prompt"):
        Synthesizer(artifact, config(tmp_path / "c", prompts=(tmp_path / "p",)))
    with pytest.raises(PromptError, match="no such file"):
        Synthesizer(artifact, config(tmp_path / "c", prompts=(tmp_path / "none",)))


def test_texts_that_cannot_be_used(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 40)
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "short.txt").write_text("a")
    for name, says in (
        ("latin.txt", "UTF-8"),
        ("blank.txt", "no text"),
        ("short.txt", "too little"),
        ("none.txt", "No such file"),
    ):
        with pytest.raises(UsageError, match=says) as caught:
            Synthesizer(artifact, config(tmp_path / "c", texts=(tmp_path / name,)))
        assert name in str(caught.value)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["collm", "synthesize", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_code:
        command_line.main()
    return int(exit_code.value.code or 0)


def test_the_command(
    artifact: Artifact,
    given: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "c.jsonl"
    arguments = [artifact.folder, "--tokens", 600, "--out", out, "--slots", 8, "--threads", 1]
    arguments += ["--text", given["texts"][0], "--prompts", given["prompts"][0], "--device", "cpu"]
    arguments += ["--max-length", 80, "--max-user", 16]
    assert run(monkeypatch, *arguments) == 0
    said = capsys.readouterr().out
    assert "tokens" in said and "prose" in said and "held out" in said and "user turns" in said
    assert run(monkeypatch, *arguments, "--json") == 0
    account = json.loads(capsys.readouterr().out)
    corpus = read_corpus(out)
    assert account["tokens"] == sum(len(e.ids) for e in corpus.examples)
    assert account["examples"]["asks"] == 1
    for wrong, says in (
        (["--domain", "a b"], "domain"),
        (["--device", "abacus"], "expected auto, cpu or cuda"),
        (["--seed", 1], "made with seed 0"),
    ):
        assert run(monkeypatch, *arguments, *wrong) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
    monkeypatch.setattr(options, "find_spec", lambda name: None)
    assert run(monkeypatch, *arguments) == 2
    assert "collm synthesize needs PyTorch: pip install 'collm[tune]'" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(
    artifact: Artifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*given: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("collm.tune.synthesize.write_wave", interrupted)
    assert run(monkeypatch, artifact.folder, "--tokens", 5, "--out", tmp_path / "c") == 130
    assert "run the same command again to continue" in capsys.readouterr().err
