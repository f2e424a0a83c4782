"""Answers of `collm bench table`: one for each link, contender, prompt and round.

Not covered: a contender or named link whose definition changes; use another folder then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from collm.bench.answer_lines import AnswerLines, Form

_TENTH_OF_A_MILLISECOND = 4
Key = tuple[str, str, str, int]
"""Link, contender, prompt and round."""


@dataclass(frozen=True, kw_only=True)
class TableAnswer:
    """One answer, measured. Times in seconds, as the user sees them."""

    link: str
    contender: str
    prompt: str
    """Digest of the prompt's token ids."""
    domain: str
    round: int
    prompt_tokens: int
    token_ids: list[int]
    text: str

    wall_seconds: float
    """From the question to the last token; the connection stood, the session did not."""
    first_token_seconds: float
    gap_seconds: list[float]
    """From token to token, without the first."""
    edge_seconds: float
    """Inside the edge's work, as the session counts it."""
    cloud_seconds: float
    """As the cloud reports."""
    edge_cpu_seconds: float
    """Of this process, all threads."""
    cloud_cpu_seconds: float
    """Of the cloud process, all threads, with what it did after the last token."""
    cloud_flops: float
    requests: int
    """Times the edge waited for the cloud."""
    bytes_up: int
    bytes_down: int

    same_prefix: int
    same_places: int
    longest: int
    """Tokens of the longer of this answer and the full model's, cut to what was asked for."""
    agreed: int
    logprob: float
    rouge_full: float | None
    identical: bool

    @property
    def key(self) -> Key:
        """What it is stored under."""
        return self.link, self.contender, self.prompt, self.round

    def to_json(self) -> dict[str, Any]:
        """For table.json: figures only."""
        data = asdict(self)
        del data["token_ids"], data["text"]
        data["gap_seconds"] = [round(gap, _TENTH_OF_A_MILLISECOND) for gap in self.gap_seconds]
        return data


@dataclass(frozen=True, kw_only=True)
class TableHeader:
    """What all answers of a folder share; a run that differs in any of it is refused."""

    fingerprint: str
    manifest: str
    """sha256 of the artifact's manifest.json: exits and their calibration."""
    data: str
    """sha256 of the prompts."""
    tokens: int
    naive_tokens: int
    prompt_tokens: int
    placement: int
    threads: int
    seed: int
    cloud_load: int
    edge_load: int


_NAMES = {
    "fingerprint": "a model of fingerprint",
    "manifest": "exits or calibration of manifest",
    "data": "--prompts of sha256",
    "tokens": "--tokens",
    "naive_tokens": "--naive-tokens",
    "prompt_tokens": "--prompt-tokens",
    "placement": "--placement",
    "threads": "--threads",
    "seed": "--seed",
    "cloud_load": "--cloud-load",
    "edge_load": "--edge-load",
}
_FORM = Form(
    format="collm-table-answers",
    version=1,
    verb="collm bench table",
    names=_NAMES,
    line=TableAnswer,
)


class TableFile:
    """The answers of one folder, in memory and on disk; without a folder in memory alone.

    Raises UsageError where the folder is of another run or cannot be used.
    """

    def __init__(self, folder: Path | None, header: TableHeader) -> None:
        self._lines = AnswerLines(folder, header, _FORM)
        self.answers = {one.key: one for one in self._lines.found}

    def add(self, answers: Iterable[TableAnswer]) -> None:
        """Keep answers, on disk before this returns."""
        some = list(answers)
        self.answers |= {one.key: one for one in some}
        self._lines.add(some)

    def own_text(self, contender: str, prompt: str) -> list[int] | None:
        """What this contender has answered to this prompt, in whatever round."""
        for (_, name, digest, _), one in self.answers.items():
            if (name, digest) == (contender, prompt):
                return one.token_ids
        return None

    def of(self, keys: Collection[Key]) -> list[TableAnswer]:
        """Those of `keys` that are there, in that order."""
        return [self.answers[key] for key in keys if key in self.answers]


def digest_of(texts: Iterable[str]) -> str:
    """sha256 of prompts that are not in a file."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
