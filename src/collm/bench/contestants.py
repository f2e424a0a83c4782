"""What is timed: one measurement each, all doing the same work.

A decode contestant takes the prompt, makes a first token untimed, then decodes `tokens` more,
each an argmax that is fed back; ends of text are ignored. A prefill contestant takes a prompt
from an empty cache to its next token.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from collm.bench.llama_cpp import LlamaCpp
from collm.runtime.stage import Stage, StageSession

Task = Literal["decode", "prefill"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The same for every contestant."""

    prompt: Sequence[int]
    tokens: int
    long_prompt: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One measurement."""

    seconds: float
    """A token."""
    cpu_share: float
    """CPU time / (wall time × threads); well below 1 means that others took the cores."""


class Contestant(Protocol):
    """Something that can be measured again and again."""

    @property
    def name(self) -> str: ...

    @property
    def task(self) -> Task: ...

    def measure(self) -> Sample:
        """One measurement from a fresh session on."""
        ...


@dataclass(frozen=True, kw_only=True)
class StageDecode:
    """Our stage decoding: the whole model, or from the exit at `cut`."""

    name: str
    stage: Stage
    exact: bool
    cut: int | None
    threads: int
    work: Work
    task: Task = "decode"

    def measure(self) -> Sample:
        session = self.stage.open(exact=self.exact)
        session.append_ids(self.work.prompt)
        token = next_token(session, self.cut)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(self.work.tokens):
            session.append_ids([token])
            token = next_token(session, self.cut)
        sample = _sample(wall, cpu, self.work.tokens, self.threads)
        session.close()
        return sample


@dataclass(frozen=True, kw_only=True)
class StagePrefill:
    """Our whole stage taking a long prompt, cache allocation included."""

    name: str
    stage: Stage
    exact: bool
    threads: int
    work: Work
    task: Task = "prefill"

    def measure(self) -> Sample:
        wall, cpu = time.perf_counter(), time.process_time()
        session = self.stage.open(exact=self.exact)
        session.append_ids(self.work.long_prompt)
        next_token(session, None)
        sample = _sample(wall, cpu, len(self.work.long_prompt), self.threads)
        session.close()
        return sample


@dataclass(frozen=True, kw_only=True)
class LlamaDecode:
    """llama.cpp decoding, by its own clock."""

    name: str
    server: LlamaCpp
    threads: int
    work: Work
    task: Task = "decode"

    def measure(self) -> Sample:
        made = self.server.complete(self.work.prompt, self.work.tokens + 1)
        # Its first token comes out of the prefill and is not in `decode_seconds`.
        return Sample(
            seconds=made.decode_seconds / self.work.tokens,
            cpu_share=made.cpu_seconds / (made.wall_seconds * self.threads),
        )


@dataclass(frozen=True, kw_only=True)
class LlamaPrefill:
    """llama.cpp taking a long prompt, by its own clock."""

    name: str
    server: LlamaCpp
    threads: int
    work: Work
    task: Task = "prefill"

    def measure(self) -> Sample:
        made = self.server.complete(self.work.long_prompt, 1)
        return Sample(
            seconds=made.prefill_seconds / len(self.work.long_prompt),
            cpu_share=made.cpu_seconds / (made.wall_seconds * self.threads),
        )


def next_token(session: StageSession, cut: int | None) -> int:
    """The likeliest next token, by the whole model or by the exit at `cut`."""
    if cut is not None:
        return session.exit_at(cut).token_id
    return int(session.logits(session.position - 1)[-1].argmax())


def _sample(wall: float, cpu: float, tokens: int, threads: int) -> Sample:
    spent, busy = time.perf_counter() - wall, time.process_time() - cpu
    return Sample(seconds=spent / tokens, cpu_share=busy / (spent * threads))
