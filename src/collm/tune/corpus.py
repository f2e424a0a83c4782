"""A corpus on disk: the token sequences that exits are trained, calibrated and measured on.

JSONL. The first line is a header, every other an example or the mark that ends a wave::

    {"format": "collm-corpus", "version": 1, "tokenizer": sha256, "vocabulary": V, "context": T,
     "settings": {...}}
    {"domain", "greedy", "user", "first", "held_out", "ids": [...], "text": "for the reader"}
    {"wave": 0, "kind": "chat"}

Token ids only: the full model's states are computed again where they are needed. No PyTorch here.
`collm.tune.corpus_writer` writes. Not covered: corpora that do not fit into memory.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from collm.errors import SourceError
from collm.limits import DEFAULT_LIMITS
from collm.model.artifact import Artifact

FORMAT, VERSION = "collm-corpus", 1
MAX_LINE_BYTES = 16 * 2**20
DOMAIN = re.compile(r"[\w-]{1,32}")


@dataclass(frozen=True, kw_only=True)
class Example:
    """One token sequence. The row at position p predicts token p + 1."""

    ids: NDArray[np.int32]
    """`[T]`, without the token that would end the answer."""
    domain: str
    greedy: bool | None
    """Whether the answer is the model's greedy one; None: text that the model did not write."""
    user: int
    """Index of the first token that is a training target: the user turn's, 1 for plain text."""
    first: int
    """Index of the first token that counts in evaluation: the answer's, 1 for plain text."""
    held_out: bool

    @property
    def digest(self) -> bytes:
        """What decides the split and what makes two examples duplicates: the user turn or text."""
        return digest(self.ids[self.user : self.first] if self.first > self.user else self.ids)


@dataclass(frozen=True, kw_only=True)
class Wave:
    """The mark after the examples that were written together; `kind` says how."""

    number: int
    kind: str


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A corpus in memory."""

    path: Path
    about: Mapping[str, Any]
    """The header."""
    examples: list[Example]

    @property
    def training(self) -> list[Example]:
        """What exits may be trained on."""
        return [example for example in self.examples if not example.held_out]

    @property
    def held_out(self) -> list[Example]:
        """What exits are calibrated and measured on."""
        return [example for example in self.examples if example.held_out]

    @property
    def domains(self) -> tuple[str, ...]:
        """Every domain, in alphabetical order."""
        return tuple(sorted({example.domain for example in self.examples}))


def digest(ids: NDArray[np.int32]) -> bytes:
    """Hash of token ids, the same on every machine."""
    return hashlib.blake2b(ids.astype("<i4").tobytes(), digest_size=16).digest()


def is_held_out(digest: bytes, share: float) -> bool:
    """Whether an example of that digest is held out, where `share` of all are."""
    return int.from_bytes(digest[:4], "big") < share * 2**32


def read_corpus(path: Path) -> Corpus:
    """Read a corpus. Raises SourceError naming the file and the line that is wrong."""
    try:
        with path.open("rb") as file:
            about = read_header(path, file)
            entries = [entry for entry, _ in read_entries(path, file, about)]
    except OSError as error:
        raise SourceError(
            f"{path}: {error.strerror}; expected a file made by collm synthesize"
        ) from None
    examples = [entry for entry in entries if isinstance(entry, Example)]
    if not examples:
        raise SourceError(f"{path}: no examples in it; run collm synthesize to write some")
    return Corpus(path=path, about=about, examples=examples)


def check_tokenizer(corpus: Corpus, artifact: Artifact) -> None:
    """Raise SourceError unless the corpus can be run through the artifact's model."""
    if corpus.about["tokenizer"] != artifact.manifest.files["tokenizer.json"].sha256:
        raise SourceError(
            f"{corpus.path}: made with another tokenizer than {artifact.folder}'s; "
            f"make one with collm synthesize {artifact.folder}"
        )
    arch = artifact.architecture
    for example in corpus.examples:
        if len(example.ids) > arch.context_length or int(example.ids.max()) >= arch.vocab_size:
            raise SourceError(
                f"{corpus.path}: has examples beyond the context of {arch.context_length} "
                f"tokens or the vocabulary of {arch.vocab_size} of {artifact.folder}"
            )


def header_line(
    *, tokenizer: str, vocabulary: int, context: int, settings: Mapping[str, Any]
) -> str:
    """A corpus's first line. tokenizer: sha256 of the artifact's tokenizer.json."""
    about = {
        "format": FORMAT,
        "version": VERSION,
        "tokenizer": tokenizer,
        "vocabulary": vocabulary,
        "context": context,
        "settings": dict(settings),
    }
    return json.dumps(about, ensure_ascii=False) + "\n"


def example_line(example: Example, text: str) -> str:
    """An example's line; `text` is for people to read."""
    record = {
        "domain": example.domain,
        "greedy": example.greedy,
        "user": example.user,
        "first": example.first,
        "held_out": example.held_out,
        "ids": example.ids.tolist(),
        "text": text,
    }
    return json.dumps(record, ensure_ascii=False) + "\n"


def wave_line(wave: Wave) -> str:
    """The line that ends a wave."""
    return json.dumps({"wave": wave.number, "kind": wave.kind}) + "\n"


def read_header(path: Path, file: BinaryIO) -> dict[str, Any]:
    """The first line of an opened corpus."""
    where = f"{path}, line 1"
    line = file.readline(MAX_LINE_BYTES + 1)
    try:
        about = _object(where, line) if line else {}
    except SourceError:
        about = {}  # some other file: say that, not what is wrong with its first line
    if about.get("format") != FORMAT:
        raise SourceError(f"{where}: no corpus header; expected a file made by collm synthesize")
    if about.get("version") != VERSION:
        raise SourceError(
            f"{where}: corpus version {about.get('version')!r}, this software reads {VERSION}"
        )
    if not isinstance(about.get("tokenizer"), str) or not isinstance(about.get("settings"), dict):
        raise SourceError(f"{where}: the header has no tokenizer or no settings")
    for name in ("vocabulary", "context"):
        if type(about.get(name, 1)) is not int or about.get(name, 1) < 1:
            raise SourceError(f"{where}: {name} {about[name]!r} in the header; expected a count")
    return about


def read_entries(
    path: Path, file: BinaryIO, about: Mapping[str, Any], *, cut_short: bool = False
) -> Iterator[tuple[Example | Wave, int]]:
    """What follows the header, each with the offset where its line ends.

    cut_short: leave out a last line that has no end, where it would be an error.
    """
    vocabulary = about.get("vocabulary", DEFAULT_LIMITS.max_token_id)
    context = about.get("context", DEFAULT_LIMITS.max_positions)
    end, number = file.tell(), 1
    while line := file.readline(MAX_LINE_BYTES + 1):
        end, number = end + len(line), number + 1
        where = f"{path}, line {number}"
        if len(line) > MAX_LINE_BYTES:
            raise SourceError(f"{where}: longer than {MAX_LINE_BYTES} bytes")
        if not line.endswith(b"\n"):
            if cut_short:
                return
            raise SourceError(
                f"{where}: cut short; the collm synthesize that wrote it repairs it when run again"
            )
        record = _object(where, line)
        yield _wave(where, record) or _example(where, record, vocabulary, context), end


def _object(where: str, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where}: not JSON: {error}") from None
    if not isinstance(record, dict):
        raise SourceError(f"{where}: expected a JSON object")
    return record


def _wave(where: str, record: dict[str, Any]) -> Wave | None:
    if "wave" not in record:
        return None
    number, kind = record["wave"], record.get("kind")
    if type(number) is not int or number < 0 or not isinstance(kind, str):
        raise SourceError(f"{where}: expected a wave's number and kind")
    return Wave(number=number, kind=kind)


def _example(where: str, record: dict[str, Any], vocabulary: int, context: int) -> Example:
    ids, user, first = (record.get(name) for name in ("ids", "user", "first"))
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        raise SourceError(f'{where}: expected "ids", a list of token ids')
    if not 2 <= len(ids) <= context:
        raise SourceError(f"{where}: {len(ids)} tokens; expected 2 to {context}")
    if min(ids) < 0 or max(ids) >= vocabulary:
        raise SourceError(f"{where}: a token id outside of the vocabulary of {vocabulary}")
    if type(user) is not int or type(first) is not int or not 1 <= user <= first < len(ids):
        raise SourceError(
            f'{where}: expected "user" and "first", indices with 1 ≤ user ≤ first < {len(ids)}'
        )
    domain, greedy, held_out = (record.get(name) for name in ("domain", "greedy", "held_out"))
    if not isinstance(domain, str) or not DOMAIN.fullmatch(domain):
        raise SourceError(f'{where}: expected "domain", a word')
    if not isinstance(greedy, bool | None) or not isinstance(held_out, bool):
        raise SourceError(f'{where}: expected "greedy" and "held_out", true or false')
    return Example(
        ids=np.array(ids, np.int32),
        domain=domain,
        greedy=greedy,
        user=user,
        first=first,
        held_out=held_out,
    )
