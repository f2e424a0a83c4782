"""Appends waves to a corpus so that a crash, a full disk or Ctrl-C costs at most one wave.

A wave is whole once the mark after its examples is on the disk. Whatever follows the last mark
is cut away, when a corpus is opened again as well as when a write fails.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

from collm.errors import SourceError, UsageError
from collm.tune.corpus import (
    Example,
    Wave,
    example_line,
    header_line,
    read_entries,
    read_header,
    wave_line,
)


@dataclass(kw_only=True)
class Written:
    """What the whole waves of a corpus hold."""

    waves: Counter[str] = field(default_factory=Counter)
    """Waves by kind."""
    tokens: Counter[str] = field(default_factory=Counter)
    """Tokens by the kind of their wave."""
    examples: Counter[str] = field(default_factory=Counter)
    """Examples by domain."""
    held_out: int = 0
    user_turns: int = 0
    digests: set[bytes] = field(default_factory=set)

    def add(self, kind: str, examples: Iterable[Example]) -> None:
        """Count a wave."""
        self.waves[kind] += 1
        for example in examples:
            self.tokens[kind] += len(example.ids)
            self.examples[example.domain] += 1
            self.held_out += example.held_out
            self.user_turns += example.first > example.user
            self.digests.add(example.digest)


class CorpusWriter:
    """An open corpus, locked against a second writer. `about` is its header."""

    def __init__(self, path: Path, file: FileIO, about: Mapping[str, Any]) -> None:
        self.path = path
        self.about = about
        self.written = Written()
        self._file = file
        self._size = 0

    def append(self, kind: str, examples: list[Example], texts: list[str]) -> None:
        """Add a wave, on the disk when this returns. Raises UsageError when the disk is full."""
        wave = Wave(number=self.written.waves.total(), kind=kind)
        lines = [example_line(e, text) for e, text in zip(examples, texts, strict=True)]
        self._write("".join([*lines, wave_line(wave)]))
        self.written.add(kind, examples)

    def _write(self, text: str) -> None:
        left = memoryview(text.encode("utf-8"))
        size = self._size + len(left)
        try:
            self._file.seek(self._size)
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except BaseException as error:
            self._file.truncate(self._size)
            if not isinstance(error, OSError):
                raise
            raise UsageError(
                f"{self.path}: cannot be written: {error.strerror}; what was written before is "
                "kept, make room and run the same command to continue"
            ) from None
        self._size = size

    def _continue(self, file: BinaryIO) -> None:
        """Count what `file`, read up to its header, holds up to the last mark; cut off the rest."""
        self._size, pending = file.tell(), list[Example]()
        for entry, end in read_entries(self.path, file, self.about, cut_short=True):
            if isinstance(entry, Example):
                pending.append(entry)
                continue
            expected = self.written.waves.total()
            if entry.number != expected:
                raise SourceError(
                    f"{self.path}: wave {entry.number} where wave {expected} should be; "
                    "use another --out"
                )
            self.written.add(entry.kind, pending)
            self._size, pending = end, []
        self._file.truncate(self._size)


@contextmanager
def corpus_writer(
    path: Path, *, tokenizer: str, vocabulary: int, context: int, settings: Mapping[str, Any]
) -> Iterator[CorpusWriter]:
    """A new corpus, or one made with the same settings to be continued.

    Raises SourceError for a file that is no corpus or was made with other settings.
    """
    header = header_line(
        tokenizer=tokenizer, vocabulary=vocabulary, context=context, settings=settings
    )
    with _open(path) as file:
        if _lacks_header(file, header):
            file.truncate(0)
            try:
                CorpusWriter(path, file, {})._write(header)
            except BaseException:
                path.unlink()
                raise
        with path.open("rb") as reader:
            about = read_header(path, reader)
            _check_same(path, about, tokenizer, json.loads(header)["settings"])
            writer = CorpusWriter(path, file, about)
            writer._continue(reader)
        yield writer


def _open(path: Path) -> FileIO:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from None
    file = FileIO(descriptor, "r+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise UsageError(
            f"{path}: another collm synthesize is writing to it; wait for it or use another --out"
        ) from None
    return file


def _lacks_header(file: FileIO, header: str) -> bool:
    """Whether the file is empty or holds a part of the header: a crash at the very start."""
    start = file.read(len(header.encode())) or b""
    file.seek(0)
    return not start.endswith(b"\n") and header.encode().startswith(start)


def _check_same(
    path: Path, about: Mapping[str, Any], tokenizer: str, settings: Mapping[str, Any]
) -> None:
    if about["tokenizer"] != tokenizer:
        raise SourceError(f"{path}: made with another model's tokenizer; use another --out")
    before = about["settings"]
    for name in (*settings, *before):
        if before.get(name) != settings.get(name):
            raise SourceError(
                f"{path}: made with {name} {_short(before.get(name))}, now it is "
                f"{_short(settings.get(name))}; use the same settings or another --out"
            )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
