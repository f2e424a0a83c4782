"""Measured answers, one for each setting and prompt, and the folder that keeps them.

The folder of a run holds `answers.jsonl`: a header with what all answers share, then a line an
answer, written as soon as a prompt is through. A run that was broken off goes on from there; a
run with more prompts or other settings adds to it. Answers of settings that are not asked for
are left alone.

Not covered: a learned criterion's file may change under its name; use another folder then.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from collm.errors import UsageError

FILE = "answers.jsonl"
_FORMAT, _VERSION = "collm-quality", 1


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One answer, measured. Sums, so that answers can be added up; times in seconds."""

    setting: str
    """`Setting.key`."""
    prompt: str
    """Digest of the prompt's token ids."""
    domain: str
    prompt_tokens: int
    text: str
    token_ids: list[int]
    finish_reason: str
    sources: dict[str, int]
    """Tokens by where they were made."""
    criteria: dict[str, int]
    """Tokens by what let them pass."""

    agreed: int
    logprob: float
    same_prefix: int
    same_places: int
    longest: int
    """Tokens of the longer of this answer and the full model's own."""
    rouge_full: float | None
    rouge_reference: float | None
    repeated_ngrams: int
    ngrams: int
    end_repetition: float
    """`Coherence.repetition` at the answer's end."""
    drift: float | None
    """`Coherence.drift` there, in modes with exits: how far the states turned from the prompt's."""

    rounds: int
    cloud_rows: int
    cloud_heads: int
    cloud_flops: float
    bytes_up: int
    bytes_down: int
    degraded: int
    edge_seconds: float
    cloud_seconds: float
    wall_seconds: float
    first_token_seconds: float
    logprob_before: float | None
    """Mean under the full model of what `refine` first wrote, as it reports."""
    logprob_after: float | None
    corrections: int
    """Of `refine`."""

    @property
    def tokens(self) -> int:
        """Tokens of the answer."""
        return len(self.token_ids)


@dataclass(frozen=True, kw_only=True)
class Header:
    """What all answers of a folder share; a run that differs in any of it is refused."""

    fingerprint: str
    manifest: str
    """sha256 of the artifact's manifest.json: exits and their calibration."""
    data: str
    """sha256 of the data file."""
    max_tokens: int
    prompt_tokens: int
    """Longest prompt; longer articles were cut."""
    cloud: str
    threads: int


class AnswerFile:
    """The answers of one folder, in memory and on disk; without a folder in memory alone.

    Raises UsageError where the folder is of another run or cannot be used.
    """

    def __init__(self, folder: Path | None, header: Header) -> None:
        self._path = None if folder is None else folder / FILE
        self.answers: dict[tuple[str, str], Answered] = {}
        """By setting and prompt."""
        if folder is None or self._path is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self._path.exists() and self._path.stat().st_size:
                self._read(self._path, header)
            else:
                about = {"format": _FORMAT, "version": _VERSION, **asdict(header)}
                self._path.write_text(json.dumps(about) + "\n", encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"--out {folder}: {error.strerror}; expected a folder, which may not exist yet"
            ) from None

    def add(self, answered: Iterable[Answered]) -> None:
        """Keep answers, on disk before this returns."""
        some = list(answered)
        self.answers |= {(one.setting, one.prompt): one for one in some}
        if self._path is not None and some:
            lines = (json.dumps(asdict(one), ensure_ascii=False) for one in some)
            with self._path.open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in lines))

    def of(self, settings: Sequence[str], prompts: Sequence[str]) -> list[Answered] | None:
        """Of these settings (keys) to these prompts (digests), prompt-major; None: some lack."""
        wanted = [(setting, prompt) for prompt in prompts for setting in settings]
        if not all(one in self.answers for one in wanted):
            return None
        return [self.answers[one] for one in wanted]

    def others(self, settings: Collection[str]) -> str:
        """In words, what is kept of settings not among these keys; empty where nothing is."""
        others = [setting for setting, _ in self.answers if setting not in settings]
        if not others:
            return ""
        return (
            f"{len(others)} answers of {len(set(others))} settings that are not asked for now "
            "are left out of the report"
        )

    def _read(self, path: Path, header: Header) -> None:
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        lines = data[:whole].decode("utf-8", errors="replace").splitlines()
        _check_header(path, lines[0] if lines else "", header)
        for number, line in enumerate(lines[1:], start=2):
            one = _answered(f"{path}, line {number}", line)
            self.answers[one.setting, one.prompt] = one
        if whole < len(data):  # the last line of a run that was ended while it wrote
            with path.open("r+b") as file:
                file.truncate(whole)


def _check_header(path: Path, line: str, header: Header) -> None:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise UsageError(f"{path}: not a file of collm eval quality; give another --out")
    if found.get("version") != _VERSION:
        raise UsageError(
            f"{path}: version {found.get('version')!r}, this software reads {_VERSION}; "
            "give another --out"
        )
    for name, ours in asdict(header).items():
        if found.get(name) != ours:
            raise UsageError(
                f"{path}: made with {_NAMES[name]} {_short(found.get(name))}, this run has "
                f"{_short(ours)}; give another --out"
            )


_NAMES = {
    "fingerprint": "a model of fingerprint",
    "manifest": "exits or calibration of manifest",
    "data": "--data of sha256",
    "max_tokens": "--tokens",
    "prompt_tokens": "--prompt-tokens",
    "cloud": "--cloud",
    "threads": "--threads",
}


def _short(value: object) -> str:
    return str(value)[:24]


def _answered(where: str, line: str) -> Answered:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise UsageError(f"{where}: not JSON; give another --out")
    hints: dict[str, Any] = get_type_hints(Answered)
    for field in fields(Answered):
        value = record.get(field.name)
        kind = hints[field.name]
        wanted = getattr(kind, "__origin__", kind)
        allowed = (wanted | int) if wanted in (float, float | None) else wanted
        if field.name not in record or not isinstance(value, allowed):
            raise UsageError(f"{where}: no sound {field.name} in it; give another --out")
    return Answered(**{field.name: record[field.name] for field in fields(Answered)})
