"""Data files as users have them: every format by its fields, and one line for what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from collm.bench import datasets
from collm.bench.datasets import Item, choose_items, passages, read_data
from collm.errors import PromptError


def lines(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(PromptError) as caught:
        read_data(path)
    said = str(caught.value)
    assert said.startswith(str(path)) and "\n" not in said
    return said


def test_our_own_prompts(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Brief!"}, {"role": "user", "content": "Hi"}]
    plain, talk = read_data(
        lines(
            tmp_path / "p.jsonl",
            {"prompt": "Name a colour.", "reference": "Red.", "domain": "quiz"},
            {"messages": chat},
        )
    )
    assert plain == Item(prompt="Name a colour.", reference="Red.", domain="quiz")
    assert talk.messages == tuple(chat) and talk.reference is None and talk.domain == "chat"


def test_alpaca_as_an_array_and_as_lines(tmp_path: Path) -> None:
    records = [
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"instruction": "Say hello.", "input": "", "output": "Hello."},
    ]
    array = tmp_path / "alpaca.json"
    array.write_text("\n " + json.dumps(records, indent=1), encoding="utf-8")
    items = read_data(array)
    assert items == read_data(lines(tmp_path / "alpaca.jsonl", *records))
    assert [(i.prompt, i.article, i.reference) for i in items] == [
        ("Add.", "1 and 2", "3"),
        ("Say hello.", "", "Hello."),
    ]


@pytest.mark.parametrize(
    ("asked", "answered"), [("document", "summary"), ("article", "highlights")]
)
def test_summaries_from_lines_and_csv(tmp_path: Path, asked: str, answered: str) -> None:
    (item,) = read_data(lines(tmp_path / "s.jsonl", {asked: "Long text.", answered: "Short."}))
    assert item.article == "Long text." and item.reference == "Short."
    assert "ummar" in item.prompt and item.domain == "summary"
    table = tmp_path / "s.csv"
    table.write_text(f'id,{asked},{answered}\n7,"Long\ntext, with ""quotes"".",Short.\n')
    (item,) = read_data(table)
    assert item.article == 'Long\ntext, with "quotes".' and item.reference == "Short."


def test_truthfulqa(tmp_path: Path) -> None:
    table = tmp_path / "TruthfulQA.csv"
    table.write_text("﻿Type,Category,Question,Best Answer\nA,B,Is it?,No.\n", encoding="utf-8")
    record = lines(tmp_path / "t.jsonl", {"question": "Is it?", "best_answer": "No."})
    assert read_data(table) == read_data(record)
    assert read_data(table) == [Item(prompt="Is it?", reference="No.", domain="question")]


def test_human_eval_is_code_to_go_on_with(tmp_path: Path) -> None:
    record = {"task_id": "HumanEval/0", "prompt": "def f():", "canonical_solution": "    pass"}
    (item,) = read_data(lines(tmp_path / "h.jsonl", record))
    assert not item.is_chat and item.domain == "code" and item.reference == "    pass"


def test_plain_text_is_cut_into_passages_with_their_continuation(tmp_path: Path) -> None:
    sentence = "The keeper climbed the stairs, lit the lamp and looked out at the sea. "
    text = "\n\n".join(sentence * 6 for _ in range(9))
    path = tmp_path / "book.txt"
    path.write_text(text, encoding="utf-8")
    items = read_data(path)
    assert len(items) == len(passages(text)) > 3
    for item in items:
        assert item.domain == "prose" and not item.is_chat and item.reference
        assert item.prompt.endswith(".") and len(item.prompt) + len(item.reference) <= 1200
    joined = " ".join(f"{item.prompt} {item.reference}" for item in items)
    assert joined.split() == text.split()


def test_a_short_text_is_one_passage(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("Once upon a time there was a lamp.")
    (item,) = read_data(path)
    assert item.prompt and f"{item.prompt} {item.reference}" == path.read_text()


# ------------------------------------------------------------------------------- bad input


def test_what_is_wrong_is_named_with_line_and_field(tmp_path: Path) -> None:
    good = {"instruction": "Add.", "output": "3"}
    said = refusal(lines(tmp_path / "a.jsonl", good, {"instruction": "Add.", "output": 3}))
    assert 'line 2: field "output" of Alpaca: a number; expected some text' in said
    said = refusal(lines(tmp_path / "b.jsonl", good, {"instruction": "Add."}))
    assert 'line 2: field "output"' in said and "missing" in said
    said = refusal(lines(tmp_path / "c.jsonl", {"prompt": "a", "domain": "two words"}))
    assert 'field "domain"' in said
    said = refusal(lines(tmp_path / "d.jsonl", {"messages": [{"role": "user"}]}))
    assert 'field "messages"' in said
    said = refusal(lines(tmp_path / "e.jsonl", {"url": "x", "body": "y"}))
    assert "found body, url" in said and "instruction and output" in said
    assert "expected an object" in refusal(lines(tmp_path / "f.jsonl", "words"))
    array = tmp_path / "g.json"
    array.write_text(json.dumps([good, {"instruction": " ", "output": "3"}]))
    assert "record 2" in refusal(array)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none.jsonl")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    assert "no prompts" in refusal(empty)
    (tmp_path / "bad.jsonl").write_text('{"prompt": \n')
    assert "line 1: not JSON" in refusal(tmp_path / "bad.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "caf\xe9"}\n')
    assert "not UTF-8" in refusal(tmp_path / "latin.jsonl")
    (tmp_path / "bad.csv").write_text("Question,Best Answer\n" + "x" * 2**21 + ",y\n")
    assert "not CSV" in refusal(tmp_path / "bad.csv")


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lines(tmp_path / "p.jsonl", *({"prompt": str(i)} for i in range(5)))
    monkeypatch.setattr(datasets, "MAX_RECORDS", 5)
    assert len(read_data(path)) == 5
    monkeypatch.setattr(datasets, "MAX_RECORDS", 4)
    assert "more than 4 records" in refusal(path)
    monkeypatch.setattr(datasets, "MAX_BYTES", 20)
    assert "expected at most 20" in refusal(path)


# ---------------------------------------------------------------------------------- choice


def test_domains_take_turns_up_to_the_limit() -> None:
    items = [Item(prompt=str(i), domain="ab"[i >= 4]) for i in range(6)]
    assert [i.prompt for i in choose_items(items, [], 5)] == ["0", "4", "1", "5", "2"]
    assert [i.prompt for i in choose_items(items, ["b"], None)] == ["4", "5"]
    with pytest.raises(PromptError, match="--domain c: the data has a, b"):
        choose_items(items, ["c"], None)
