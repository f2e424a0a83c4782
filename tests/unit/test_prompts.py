"""Prompt files: what is wrong is named with its line, and nothing is guessed."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support import tokenizer_files

from collm.cli.prompts import prompt_ids, read_prompts, record_ids
from collm.errors import PromptError
from collm.model.tokenizer import Tokenizer

GOOD = [
    {"prompt": "the edge"},
    {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "é 🙂"}]},
    {"prompt": "", "id": 7},
]


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_prompts_are_read_in_order(tmp_path: Path) -> None:
    lines = [json.dumps(record, ensure_ascii=False) for record in GOOD]
    assert read_prompts(write(tmp_path / "p.jsonl", *lines)) == GOOD
    assert read_prompts(write(tmp_path / "p.jsonl", "", *lines, "   ", "")) == GOOD


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("the edge", "not JSON"),
        ('{"prompt": "a"', "not JSON"),
        ('["a"]', "expected an object"),
        ("null", "expected an object"),
        ("{}", "prompt"),
        ('{"prompt": 3}', "prompt"),
        ('{"prompt": null, "messages": null}', "messages"),
        ('{"messages": []}', "messages"),
        ('{"messages": "hello"}', "messages"),
        ('{"messages": ["hello"]}', "messages"),
        ('{"messages": [{"role": "user"}]}', "content"),
        ('{"messages": [{"role": "user", "content": 3}]}', "content"),
        ('{"messages": [{"role": 3, "content": "a"}]}', "role"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = write(tmp_path / "p.jsonl", '{"prompt": "fine"}', "", line, '{"prompt": "fine"}')
    with pytest.raises(PromptError, match=says) as caught:
        read_prompts(path)
    assert f"{path}, line 3: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_hold_no_prompts(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="no such file"):
        read_prompts(tmp_path / "nothing.jsonl")
    with pytest.raises(PromptError, match="no prompts"):
        read_prompts(write(tmp_path / "empty.jsonl"))
    with pytest.raises(PromptError, match="no prompts"):
        read_prompts(write(tmp_path / "blank.jsonl", "", "  "))
    with pytest.raises(PromptError, match="cannot be read"):
        read_prompts(tmp_path)
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "caf\xe9"}')
    with pytest.raises(PromptError, match="UTF-8"):
        read_prompts(tmp_path / "latin.jsonl")


def test_a_prompt_is_a_users_message_where_there_is_a_template() -> None:
    files = tokenizer_files()
    chat, plain = Tokenizer(files), Tokenizer(replace(files, chat_template=None, bos_id=1))
    message = [{"role": "user", "content": "the edge"}]
    assert prompt_ids(chat, "the edge", raw=False) == chat.encode_chat(message)
    assert prompt_ids(chat, "the edge", raw=True) == chat.encode("the edge")
    assert prompt_ids(plain, "the edge", raw=False) == [1, *chat.encode("the edge")]
    assert record_ids(chat, {"prompt": "the edge"}, raw=True) == chat.encode("the edge")
    assert record_ids(chat, {"messages": message}, raw=True) == chat.encode_chat(message)
    with pytest.raises(PromptError, match="no chat template"):
        record_ids(plain, {"messages": message}, raw=False)


def test_others_run_while_a_long_text_is_cut_into_tokens() -> None:
    tokenizer, steps = Tokenizer(tokenizer_files()), 0
    worker = threading.Thread(target=tokenizer.encode, args=("the edge answers " * 30_000,))
    worker.start()
    while worker.is_alive():
        time.sleep(0.001)
        steps += 1
    assert steps > 8  # 2 or 3, where it holds the interpreter's lock


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('only users speak') }}",
        "{% for m in messages %}{{ m.content.missing.deeper }}{% endfor %}",
        "{% if %}",
        "{{ messages[0]['content'] + 3 }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_template_that_fails_is_a_prompt_error(template: str) -> None:
    tokenizer = Tokenizer(replace(tokenizer_files(), chat_template=template))
    with pytest.raises(PromptError, match="template"):
        tokenizer.encode_chat([{"role": "user", "content": "hi"}])
