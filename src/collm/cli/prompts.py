"""Prompts from the command line or a JSONL file, as token ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from collm.errors import PromptError
from collm.model.tokenizer import Tokenizer
from collm.tune.texts import json_lines

PROMPTS = (
    "Why is the sky blue? Answer in two sentences.",
    "List five things to pack for a day at the beach.",
    "Write a short Python function that returns the factorial of n.",
)
"""What demos and benchmarks ask."""
RECORDED = (
    "How do I make a good cup of tea?",
    "Explain what a computer network is to a child.",
    "Write a short story about a lost dog.",
    "What is the difference between a list and a tuple in Python?",
)
"""What is asked when exits' words are recorded for plans: other things than in benchmarks."""


def prompt_ids(tokenizer: Tokenizer, prompt: str, *, raw: bool) -> list[int]:
    """A single prompt: a user's message where the model has a chat template, unless `raw`."""
    if raw or not tokenizer.has_chat_template:
        return tokenizer.encode(prompt)
    return tokenizer.encode_chat([{"role": "user", "content": prompt}])


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """Lines of {"prompt": …} or {"messages": [{"role": …, "content": …}]}.

    Raises PromptError with the line's number.
    """
    return [_record(where, value) for where, value in json_lines(path)]


def record_ids(tokenizer: Tokenizer, record: dict[str, Any], *, raw: bool) -> list[int]:
    """The ids of one line of a prompt file."""
    if "messages" in record:
        return tokenizer.encode_chat(record["messages"])
    return prompt_ids(tokenizer, record["prompt"], raw=raw)


def _record(where: str, record: Any) -> dict[str, Any]:
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
