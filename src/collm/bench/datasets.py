"""Prompts, and references where there are some, from files that users bring.

The format is told by the fields of a file's first record::

    prompts      JSONL                prompt or messages; perhaps reference, domain
    Alpaca       JSON array or JSONL  instruction, output; perhaps input
    XSum         JSONL or CSV         document, summary
    CNN/DailyMail  JSONL or CSV       article, highlights
    TruthfulQA   CSV or JSONL         Question, Best Answer (or question, best_answer)
    HumanEval    JSONL                prompt, canonical_solution
    text         .txt                 passages, each cut in two: the start, and how it goes on

A record's own `domain` comes before the format's. Corpora of `collm synthesize` are read by
`collm.tune.corpus`. Not covered: compressed files, Parquet, files beyond `MAX_BYTES`.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

from collm.errors import PromptError
from collm.limits import DEFAULT_LIMITS

MAX_BYTES = 2**28
MAX_RECORDS = DEFAULT_LIMITS.max_prompt_lines
_DOMAIN = re.compile(r"[\w-]{1,32}")
_PASSAGE = 1200
"""Characters of a passage of plain text, start and continuation together."""
_EXPECTED = (
    "expected records with prompt, messages, instruction and output, document and summary, "
    "article and highlights, Question and Best Answer, or prompt and canonical_solution"
)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One prompt: `prompt` and perhaps an `article` after it, or `messages`, or token ids."""

    prompt: str = ""
    article: str = ""
    """Follows the prompt after a blank line; the part that may be cut where all is too long."""
    messages: tuple[Mapping[str, str], ...] = ()
    ids: tuple[int, ...] = ()
    """Of a prompt that is tokens already."""
    is_chat: bool = True
    """Whether the prompt is a user's turn; otherwise it is text to be continued."""
    reference: str | None = None
    domain: str = "chat"


@dataclass(frozen=True)
class _Kind:
    """A format: the fields that tell it, what a prompt is made of, and the domain."""

    name: str
    fields: tuple[str, ...]
    domain: str
    instruction: str = ""
    """Put before the text of the first field, which is then an article."""
    is_chat: bool = True


_KINDS = (
    _Kind("HumanEval", ("prompt", "canonical_solution"), "code", is_chat=False),
    _Kind("Alpaca", ("instruction", "output"), "instruction"),
    _Kind("XSum", ("document", "summary"), "summary", "Summarize this article in one sentence."),
    _Kind(
        "CNN/DailyMail",
        ("article", "highlights"),
        "summary",
        "Summarize this article in three sentences.",
    ),
    _Kind("TruthfulQA", ("question", "best_answer"), "question"),
)


def read_data(path: Path) -> list[Item]:
    """Read a data file of any of the formats above.

    Raises PromptError in one line: file, line or record, field, and what was expected.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise PromptError(
                f"{path}: {size:,} bytes; expected at most {MAX_BYTES:,}, give a part of the file"
            )
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".txt":
                items = [_passage(text) for text in passages(file.read())]
            else:
                items = list(_items(path, _bounded(path, _records(path, file))))
    except UnicodeDecodeError as error:
        raise PromptError(f"{path}: not UTF-8 text ({error.reason})") from None
    except OSError as error:
        raise PromptError(f"{path}: cannot be read: {error.strerror}") from None
    if not items:
        raise PromptError(f"{path}: no prompts in it; {_EXPECTED}")
    return items


Records = Iterator[tuple[str, Any]]
"""Each with the words that say where it stands."""


def _records(path: Path, file: TextIO) -> Records:
    if path.suffix.lower() in (".csv", ".tsv"):
        return _csv_rows(path, file)
    start = file.read(1)
    while start.isspace():
        start = file.read(1)
    file.seek(0)
    return _array(path, file) if start == "[" else _lines(path, file)


def _array(path: Path, file: TextIO) -> Records:
    values = _parsed(str(path), file.read())
    for number, value in enumerate(values, start=1):
        yield f"{path}, record {number}", value


def _lines(path: Path, file: TextIO) -> Records:
    for number, line in enumerate(file, start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _parsed(where, line)


def _csv_rows(path: Path, file: TextIO) -> Records:
    csv.field_size_limit(DEFAULT_LIMITS.max_prompt_bytes)
    rows = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    try:
        for row in rows:
            yield f"{path}, line {rows.line_num}", row
    except csv.Error as error:
        raise PromptError(f"{path}, line {rows.line_num}: not CSV: {error}") from None


def _parsed(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{where}: not JSON: {error}") from None


def _bounded(path: Path, records: Records) -> Records:
    yield from islice(records, MAX_RECORDS)
    if next(records, None) is not None:
        raise PromptError(f"{path}: more than {MAX_RECORDS:,} records; give a part of the file")


# ---------------------------------------------------------------------------------- records


def _items(path: Path, records: Records) -> Iterator[Item]:
    first = next(records, None)
    if first is None:
        return
    where, value = first
    names = set(_named(where, value))
    kind = next((kind for kind in _KINDS if names.issuperset(kind.fields)), None)
    if kind is None and not names & {"prompt", "messages"}:
        found = ", ".join(sorted(names)[:8]) or "no fields"
        raise PromptError(f"{where}: found {found}; {_EXPECTED}")
    for place, record in chain([first], records):
        fields = _named(place, record)
        yield _own(place, fields) if kind is None else _item(place, fields, kind)


def _named(where: str, record: Any) -> dict[str, Any]:
    """The record with its field names as they are compared: `Best Answer` is `best_answer`."""
    if not isinstance(record, dict):
        raise PromptError(f"{where}: {_what(record)}; expected an object with named fields")
    return {str(k or "").strip().lower().replace(" ", "_"): v for k, v in record.items()}


def _item(where: str, fields: dict[str, Any], kind: _Kind) -> Item:
    """A record of one of the known formats."""
    asked, answered = (_text(where, fields, name, kind.name) for name in kind.fields)
    prompt, article = (kind.instruction, asked) if kind.instruction else (asked, "")
    if kind.name == "Alpaca" and fields.get("input"):
        article = _text(where, fields, "input", kind.name)
    return Item(
        prompt=prompt,
        article=article,
        is_chat=kind.is_chat,
        reference=answered,
        domain=_domain(where, fields, kind.domain),
    )


def _own(where: str, fields: dict[str, Any]) -> Item:
    """A record of a prompt file."""
    reference = fields.get("reference")
    if reference is not None:
        reference = _text(where, fields, "reference", "a prompt file")
    domain = _domain(where, fields, "chat")
    if "messages" not in fields:
        prompt = _text(where, fields, "prompt", "a prompt file")
        return Item(prompt=prompt, reference=reference, domain=domain)
    messages = fields["messages"]
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise PromptError(
            f'{where}: field "messages": expected a list of objects with role and content'
        )
    chat = tuple({"role": m["role"], "content": m["content"]} for m in messages)
    return Item(messages=chat, reference=reference, domain=domain)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(name), str) for name in ("role", "content")
    )


def _text(where: str, fields: dict[str, Any], name: str, kind: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value.strip():
        raise PromptError(f'{where}: field "{name}" of {kind}: {_what(value)}; expected some text')
    return value


def _domain(where: str, fields: dict[str, Any], default: str) -> str:
    domain = fields.get("domain") or default
    if not isinstance(domain, str) or not _DOMAIN.fullmatch(domain):
        raise PromptError(
            f'{where}: field "domain": {domain!r}; expected up to 32 letters, digits, - or _'
        )
    return domain


def _what(value: Any) -> str:
    """A value's kind in words."""
    if value is None:
        return "missing"
    if isinstance(value, str):
        return "empty" if not value.strip() else "text"
    kinds = {bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return kinds.get(type(value), "an object")


# ----------------------------------------------------------------------------------- choice


def choose_items(items: Iterable[Item], domains: Iterable[str], limit: int | None) -> list[Item]:
    """Up to `limit` of the items of `domains` (of all where none is named), domains in turn.

    Raises PromptError for a domain that no item has.
    """
    queues: dict[str, list[Item]] = {}
    for item in items:
        queues.setdefault(item.domain, []).append(item)
    wanted = list(dict.fromkeys(domains)) or list(queues)
    for name in wanted:
        if name not in queues:
            raise PromptError(f"--domain {name}: the data has {', '.join(sorted(queues))}")
    longest = max((len(queues[name]) for name in wanted), default=0)
    turns = (queues[name][i] for i in range(longest) for name in wanted if i < len(queues[name]))
    return list(islice(turns, limit))


# ------------------------------------------------------------------------------- plain text


def passages(text: str) -> list[str]:
    """Passages of about 1,200 characters, ended at a paragraph, a sentence or a word."""
    made, rest = [], text.strip()
    while len(rest) > _PASSAGE:
        end = _break(rest, _PASSAGE // 2, _PASSAGE)
        made.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    # What is left of a long text may be too short to be cut in two.
    return [*made, rest] if len(rest) >= _PASSAGE // 4 or (rest and not made) else made


def _passage(text: str) -> Item:
    middle = _break(text, len(text) // 3, len(text) // 2 + 1)
    start, rest = text[:middle].rstrip(), text[middle:].strip()
    return Item(prompt=start, is_chat=False, reference=rest or None, domain="prose")


def _break(text: str, least: int, most: int) -> int:
    """The best place to cut in (least, most]: the last of the best kind of gap there is."""
    for gap in (r"\n\s*\n", r"(?<=[.!?])\s", r"\s"):
        found = [match.end() for match in re.finditer(gap, text[:most])]
        if found and found[-1] > least:
            return found[-1]
    return max(1, most)
