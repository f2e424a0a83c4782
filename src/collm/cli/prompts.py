"""Prompts from the command line or a JSONL file, as token ids."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from collm.errors import PromptError
from collm.limits import DEFAULT_LIMITS
from collm.model.tokenizer import Tokenizer


def prompt_ids(tokenizer: Tokenizer, prompt: str, *, raw: bool) -> list[int]:
    """A single prompt: a user's message where the model has a chat template, unless `raw`."""
    if raw or not tokenizer.has_chat_template:
        return tokenizer.encode(prompt)
    return tokenizer.encode_chat([{"role": "user", "content": prompt}])


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """Lines of {"prompt": …} or {"messages": [{"role": …, "content": …}]}.

    Raises PromptError with the line's number.
    """
    try:
        size = path.stat().st_size
    except OSError:
        raise PromptError(f"{path}: no such file; expected one JSON object a line") from None
    if size > DEFAULT_LIMITS.max_prompt_bytes * 64:
        raise PromptError(f"{path}: {size} bytes is more than a prompt file may have")
    return list(_lines(path))


def record_ids(tokenizer: Tokenizer, record: dict[str, Any], *, raw: bool) -> list[int]:
    """The ids of one line of a prompt file."""
    if "messages" in record:
        return tokenizer.encode_chat(record["messages"])
    return prompt_ids(tokenizer, record["prompt"], raw=raw)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    found = 0
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _record(f"{path}, line {number}", line)
                    found += 1
    except UnicodeDecodeError as error:
        raise PromptError(f"{path}: not UTF-8 text ({error.reason})") from None
    except OSError as error:
        raise PromptError(f"{path}: cannot be read: {error.strerror}") from None
    if not found:
        raise PromptError(f"{path}: no prompts in it; expected one JSON object a line")


def _record(where: str, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{where}: not JSON: {error}") from None
    if not isinstance(record, dict):
        raise PromptError(f"{where}: expected an object with prompt or messages")
    if isinstance(record.get("prompt"), str):
        return record
    messages = record.get("messages")
    fine = isinstance(messages, list) and messages
    if fine and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in messages or []
    ):
        return record
    raise PromptError(
        f'{where}: expected "prompt" (a string) or "messages" (objects with role and content)'
    )
