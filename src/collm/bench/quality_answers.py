"""Measured answers, one for each setting and prompt, and the folder that keeps them.

The folder of a run holds `answers.jsonl`: a header with what all answers share, then a line an
answer, written as soon as a prompt is through. A run that was broken off goes on from there; a
run with more prompts or other settings adds to it. Answers of settings that are not asked for
are left alone.

Not covered: a learned criterion's file may change under its name; use another folder then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from collm.bench.answer_lines import FILE as FILE
from collm.bench.answer_lines import AnswerLines, Form


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
        self._lines = AnswerLines(folder, header, _FORM)
        self.answers = {(one.setting, one.prompt): one for one in self._lines.found}
        """By setting and prompt."""

    def add(self, answered: Iterable[Answered]) -> None:
        """Keep answers, on disk before this returns."""
        some = list(answered)
        self.answers |= {(one.setting, one.prompt): one for one in some}
        self._lines.add(some)

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


_NAMES = {
    "fingerprint": "a model of fingerprint",
    "manifest": "exits or calibration of manifest",
    "data": "--data of sha256",
    "max_tokens": "--tokens",
    "prompt_tokens": "--prompt-tokens",
    "cloud": "--cloud",
    "threads": "--threads",
}
_FORM = Form(
    format="collm-quality", version=1, verb="collm eval quality", names=_NAMES, line=Answered
)
