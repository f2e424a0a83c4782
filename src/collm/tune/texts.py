"""Text and prompts that users bring: plain files cut into chunks, and JSONL prompt sets.

Not covered: PDF, HTML, and other formats that are not plain UTF-8 text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collm.errors import PromptError, UsageError
from collm.limits import DEFAULT_LIMITS
from collm.tune.corpus import DOMAIN

MAX_TEXT_BYTES = 2**28
MAX_PROMPT_FILE_BYTES = DEFAULT_LIMITS.max_prompt_bytes * 64
SHORTEST_CHUNK = 8
"""Tokens. Shorter remains of a text are left out."""
_CODE = (
    "bash c cc cpp cs css go h hpp html java js json kt lua php pl proto py r rb rs scala sh sql"
)
CODE_SUFFIXES = frozenset(f".{name}" for name in f"{_CODE} swift toml ts xml yaml yml".split())
_BOUNDARIES = (r"(?<=\n\n)", r"(?<=\n)", r"(?<=[.!?;] )", r"(?<=\s)")
"""Where a text may be cut, the best place first."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A user turn that the model is to answer."""

    text: str
    domain: str


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """The values of a JSONL file, each with the words that say where it stands.

    Raises PromptError naming the file and the line, also where there is none.
    """
    found = 0
    try:
        with path.open(encoding="utf-8") as file:
            if (size := path.stat().st_size) > MAX_PROMPT_FILE_BYTES:
                raise PromptError(f"{path}: {size} bytes is more than a prompt file may have")
            for number, line in enumerate(file, start=1):
                if line.strip():
                    where = f"{path}, line {number}"
                    try:
                        value = json.loads(line)
                    except (ValueError, RecursionError) as error:
                        raise PromptError(f"{where}: not JSON: {error}") from None
                    found += 1
                    yield where, value
    except FileNotFoundError:
        raise PromptError(f"{path}: no such file; expected one JSON object a line") from None
    except UnicodeDecodeError as error:
        raise PromptError(f"{path}: not UTF-8 text ({error.reason})") from None
    except OSError as error:
        raise PromptError(f"{path}: cannot be read: {error.strerror}") from None
    if not found:
        raise PromptError(f"{path}: no prompts in it; expected one JSON object a line")


def read_prompt_set(path: Path, domain: str | None = None) -> list[Prompt]:
    """The prompts of a JSONL file in the usual forms.

    A line is a string, or an object with `prompt`, with `instruction` and perhaps `input`, with
    `question`, or with `messages`, of which the user's last is taken. `domain` is for lines that
    name none; where it is None too they are chat.
    """
    return [_prompt(where, value, domain or "chat") for where, value in json_lines(path)]


def _prompt(where: str, value: Any, domain: str) -> Prompt:
    text: Any = value
    if isinstance(value, dict):
        domain = value.get("domain", domain)
        text = next((value[k] for k in ("prompt", "instruction", "question") if k in value), None)
        if "messages" in value:
            text = _last_user_message(value["messages"])
        elif "instruction" in value and "prompt" not in value and value.get("input"):
            text = f"{text}\n\n{value['input']}"
    if not isinstance(text, str) or not text.strip():
        raise PromptError(
            f'{where}: expected a string, "prompt", "instruction", "question" or "messages" with '
            "some text"
        )
    check_domain(domain, where)
    return Prompt(text=text, domain=domain)


def _last_user_message(messages: Any) -> Any:
    if not isinstance(messages, list):
        return None
    turns = [m for m in messages if isinstance(m, dict) and m.get("role") == "user"]
    return turns[-1].get("content") if turns else None


def check_domain(domain: Any, where: str) -> None:
    """Raise UsageError unless `domain` is one word."""
    if not isinstance(domain, str) or not DOMAIN.fullmatch(domain):
        raise UsageError(
            f"{where}: domain {domain!r}; expected up to 32 letters, digits, - or _, such as prose"
        )


def text_files(paths: tuple[Path, ...]) -> list[Path]:
    """The files named, and of folders those below that are text or source code, by name."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            known = CODE_SUFFIXES | {".txt", ".md", ".rst"}
            inside = sorted(p for p in path.rglob("*") if p.suffix in known and p.is_file())
            if not inside:
                raise UsageError(f"{path}: no .txt, .md or source files in this folder")
            found += inside
        else:
            found.append(path)
    return found


def domain_of(path: Path) -> str:
    """What a text file's suffix says of it."""
    return "code" if path.suffix.lower() in CODE_SUFFIXES else "prose"


def read_text(path: Path) -> str:
    """A whole text file, with `\\n` line ends."""
    try:
        size = path.stat().st_size
        if size > MAX_TEXT_BYTES:
            raise UsageError(f"{path}: {size} bytes; expected at most {MAX_TEXT_BYTES}, split it")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error.reason})") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    if not text.strip():
        raise UsageError(f"{path}: no text in it")
    return text


def chunks(text: str, encode: Callable[[str], list[int]], longest: int) -> Iterator[list[int]]:
    """Token ids of pieces of `text`, each at most `longest`, cut between paragraphs where possible.

    `encode` gives a chunk's ids, with whatever the model wants before a text.
    """
    extra = len(encode(""))
    held: list[str] = []
    room = longest - extra
    for piece, count in _pieces(text, lambda part: len(encode(part)) - extra, longest - extra):
        if count > room:
            yield from _chunk(held, encode, longest)
            held, room = [], longest - extra
        held.append(piece)
        room -= count
    yield from _chunk(held, encode, longest)


def _chunk(
    held: list[str], encode: Callable[[str], list[int]], longest: int
) -> Iterator[list[int]]:
    ids = encode("".join(held).strip("\n").rstrip())
    if len(ids) >= SHORTEST_CHUNK:
        yield ids[:longest]  # joined pieces may, rarely, take a token more than each alone


def _pieces(
    text: str, count: Callable[[str], int], longest: int, level: int = 0
) -> Iterator[tuple[str, int]]:
    """Pieces of at most `longest` tokens with their counts, in order; nothing is left out."""
    if level < len(_BOUNDARIES):
        parts = re.split(_BOUNDARIES[level], text)
    else:
        parts = [text[: len(text) // 2], text[len(text) // 2 :]]
    for part in filter(None, parts):
        # Counting is what takes time, and so many characters fit only by chance.
        tokens = longest + 1 if len(part) > 6 * longest else count(part)
        if tokens <= longest or len(part) == 1:
            yield part, min(tokens, longest)
        else:
            yield from _pieces(part, count, longest, min(level + 1, len(_BOUNDARIES)))
