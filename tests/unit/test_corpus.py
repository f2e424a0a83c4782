"""Corpora, texts and prompt sets that are read: what is wrong is named with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support import random_artifact

from collm.errors import SourceError, UsageError
from collm.tune.corpus import check_tokenizer, example_line, header_line, read_corpus
from collm.tune.texts import chunks, read_prompt_set, text_files

GOOD = {
    "domain": "chat",
    "greedy": True,
    "user": 1,
    "first": 2,
    "held_out": False,
    "ids": [1, 2, 3],
}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not JSON"),
        ("[]", "JSON object"),
        (json.dumps({**GOOD, "ids": [1]}), "1 tokens"),
        (json.dumps({**GOOD, "ids": [1] * 600}), "600 tokens"),
        (json.dumps({**GOOD, "ids": [1, 2, 300]}), "vocabulary of 300"),
        (json.dumps({**GOOD, "ids": [1, 2, -1]}), "vocabulary"),
        (json.dumps({**GOOD, "ids": [1, 2, 1.5]}), "ids"),
        (json.dumps({**GOOD, "ids": "abc"}), "ids"),
        (json.dumps({**GOOD, "first": 3}), "first"),
        (json.dumps({**GOOD, "user": 0}), "user"),
        (json.dumps({**GOOD, "domain": "a b"}), "domain"),
        (json.dumps({**GOOD, "greedy": 1}), "greedy"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "held_out"}), "held_out"),
        ('{"wave": "a"}', "wave"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    header = header_line(tokenizer="0", vocabulary=300, context=512, settings={})
    path = tmp_path / "c.jsonl"
    path.write_text(f"{header}{json.dumps(GOOD)}\n{line}\n{json.dumps(GOOD)}\n")
    with pytest.raises(SourceError, match=says) as caught:
        read_corpus(path)
    assert f"{path}, line 3: " in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_no_corpus(tmp_path: Path) -> None:
    header = header_line(tokenizer="0", vocabulary=300, context=512, settings={})
    path = tmp_path / "c.jsonl"
    for text, says in (
        ("", "no corpus header"),
        ("\x00\xff", "no corpus header"),
        ('{"prompt": "a"}\n', "no corpus header"),
        (header.replace('"version": 1', '"version": 2'), "version 2"),
        (header, "no examples"),
        (f"{header}{json.dumps(GOOD)}", "line 2: cut short"),
    ):
        path.write_text(text)
        with pytest.raises(SourceError, match=says):
            read_corpus(path)
    with pytest.raises(SourceError, match="No such file"):
        read_corpus(tmp_path / "none")
    path.write_text(f"{header}{json.dumps(GOOD)}\n")
    with pytest.raises(SourceError, match="another tokenizer"):
        check_tokenizer(read_corpus(path), random_artifact(tmp_path / "a"))
    example = read_corpus(path).examples[0]
    path.write_text(header + example_line(example, "é"))
    assert read_corpus(path).examples[0].ids.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("line", "text", "domain"),
    [
        ('{"prompt": "a"}', "a", "chat"),
        ('{"instruction": "a", "input": "b", "output": "c"}', "a\n\nb", "chat"),
        ('{"instruction": "a", "input": ""}', "a", "chat"),
        ('{"question": "a", "domain": "quiz"}', "a", "quiz"),
        ('{"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": "a"}]}',)
        + ("a", "chat"),
        ('"a"', "a", "chat"),
    ],
)
def test_the_usual_prompt_sets(tmp_path: Path, line: str, text: str, domain: str) -> None:
    (tmp_path / "p").write_text(f"\n{line}\n")
    assert [(p.text, p.domain) for p in read_prompt_set(tmp_path / "p")] == [(text, domain)]


@pytest.mark.parametrize(
    "line", ["3", "{}", '""', '{"prompt": ""}', '{"messages": []}', '{"prompt": "a", "domain": 1}']
)
def test_prompts_that_cannot_be_used(tmp_path: Path, line: str) -> None:
    (tmp_path / "p").write_text(f'"fine"\n{line}\n')
    with pytest.raises(UsageError, match="line 2: "):
        read_prompt_set(tmp_path / "p")


def test_chunks_end_where_paragraphs_do_and_lose_nothing() -> None:
    def encode(text: str) -> list[int]:
        return [7, *text.encode()]

    paragraphs = [f"{n}. " + "word " * (3 + n % 5) + "end.\n\n" for n in range(30)]
    parts = [bytes(ids[1:]).decode() for ids in chunks("".join(paragraphs), encode, 100)]
    assert all(len(part) < 100 and part.endswith("end.") for part in parts)
    assert " ".join(parts).split() == "".join(paragraphs).split()
    lines = "a line of it\n" * 50
    parts = [bytes(ids[1:]).decode() for ids in chunks(lines, encode, 100)]
    assert all(part.startswith("a line") and part.endswith("of it") for part in parts)
    parts = [bytes(ids[1:]).decode() for ids in chunks("x" * 1000, encode, 100)]
    assert "".join(parts) == "x" * 1000 and all(len(part) < 100 for part in parts)
    indented = "class A:\n" + "    def f(self):\n        return 1\n\n" * 20
    parts = [bytes(ids[1:]).decode() for ids in chunks(indented, encode, 80)]
    assert all(part.startswith(("class", "    def")) for part in parts)


def test_a_folder_stands_for_the_texts_in_it(tmp_path: Path) -> None:
    (tmp_path / "folder" / "deeper").mkdir(parents=True)
    with pytest.raises(UsageError, match="folder"):
        text_files((tmp_path / "folder",))
    for name in ("b.txt", "a.py", "deeper/c.md", "picture.png"):
        (tmp_path / "folder" / name).write_text("x")
    found = [p.name for p in text_files((tmp_path / "folder",))]
    assert found == ["a.py", "b.txt", "c.md"]
