"""A file of measured answers: a header with what all of them share, then a line an answer.

A line is written as soon as its answer is measured, so a run that was broken off goes on from
there, and a larger run adds to it. A file of another run, or of other software, is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar, get_type_hints

from collm.errors import UsageError

FILE = "answers.jsonl"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Form(Generic[T]):
    """What such a file is."""

    format: str
    version: int
    verb: str
    """Whose file it is, such as `collm eval quality`."""
    names: Mapping[str, str]
    """What users call the header's fields."""
    line: type[T]
    """The dataclass of a line."""


class AnswerLines(Generic[T]):
    """The file in `folder`, made where it is missing; without a folder nothing is kept.

    header: a dataclass. Raises UsageError where the folder is of another run or cannot be used.
    """

    def __init__(self, folder: Path | None, header: Any, form: Form[T]) -> None:
        self._path = None if folder is None else folder / FILE
        self._form = form
        self.found: list[T] = []
        """What was there."""
        if folder is None or self._path is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self._path.exists() and self._path.stat().st_size:
                self._read(self._path, asdict(header))
            else:
                about = {"format": form.format, "version": form.version, **asdict(header)}
                self._path.write_text(json.dumps(about) + "\n", encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"--out {folder}: {error.strerror}; expected a folder, which may not exist yet"
            ) from None

    def add(self, some: Iterable[Any]) -> None:
        """Keep these lines, on disk before this returns."""
        lines = [json.dumps(asdict(one), ensure_ascii=False) for one in some]
        if self._path is not None and lines:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in lines))

    def _read(self, path: Path, header: Mapping[str, Any]) -> None:
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        lines = data[:whole].decode("utf-8", errors="replace").splitlines()
        self._check_header(path, lines[0] if lines else "", header)
        for number, line in enumerate(lines[1:], start=2):
            self.found.append(_parsed(f"{path}, line {number}", line, self._form.line))
        if whole < len(data):  # the last line of a run that was ended while it wrote
            with path.open("r+b") as file:
                file.truncate(whole)

    def _check_header(self, path: Path, line: str, header: Mapping[str, Any]) -> None:
        form = self._form
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict) or found.get("format") != form.format:
            raise UsageError(f"{path}: not a file of {form.verb}; give another --out")
        if found.get("version") != form.version:
            raise UsageError(
                f"{path}: version {found.get('version')!r}, this software reads {form.version}; "
                "give another --out"
            )
        for name, ours in header.items():
            if found.get(name) != ours:
                raise UsageError(
                    f"{path}: made with {form.names[name]} {_short(found.get(name))}, this run "
                    f"has {_short(ours)}; give another --out"
                )


def _short(value: object) -> str:
    return str(value)[:24]


def _parsed(where: str, line: str, kind: type[T]) -> T:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise UsageError(f"{where}: not JSON; give another --out")
    hints: dict[str, Any] = get_type_hints(kind)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for name in names:
        wanted = getattr(hints[name], "__origin__", hints[name])
        allowed = (wanted | int) if wanted in (float, float | None) else wanted
        if name not in record or not isinstance(record[name], allowed):
            raise UsageError(f"{where}: no sound {name} in it; give another --out")
    return kind(**{name: record[name] for name in names})
