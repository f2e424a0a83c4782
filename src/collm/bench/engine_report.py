"""What `collm bench engine` found, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from collm.bench.contestants import Sample, Task
from collm.bench.llama_cpp import LlamaConfig
from collm.bench.llama_trial import Trial
from collm.bench.machine import Machine
from collm.bench.stats import Ratio, Share, Summary, speed_ratio, summary


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How much is measured."""

    threads: int = 1
    tokens: int = 128
    prefill: int = 512
    rounds: int = 7
    exit: int | None = None
    """The standalone exit; None takes the one nearest to half the layers."""
    agreement_tokens: int = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One contestant at one task; times in seconds per token."""

    name: str
    task: Task
    seconds: Summary
    cpu_share: float
    """Median over the rounds."""
    rounds: tuple[float, ...]
    """Seconds per token, round by round."""

    @classmethod
    def of(cls, name: str, task: Task, samples: Sequence[Sample]) -> Result:
        """The figures of so many samples."""
        times = tuple(sample.seconds for sample in samples)
        share = summary([sample.cpu_share for sample in samples]).median
        return cls(name=name, task=task, seconds=summary(times), cpu_share=share, rounds=times)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The speed of one contestant in units of another's."""

    task: Task
    name: str
    baseline: str
    ratio: Ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """Everything, with what is needed to judge it."""

    machine: Machine
    llama_system: str
    artifact: str
    model: str
    weights: str
    fingerprint: str
    gguf: str
    same_source: bool
    """Whether the artifact was built from this very file."""
    options: EngineOptions
    exit_cut: int | None
    prompt_tokens: int
    trials: Sequence[Trial]
    llama_decode: LlamaConfig
    llama_prefill: LlamaConfig
    load_before: float
    load_after: float
    results: Sequence[Result]
    ratios: Sequence[Comparison]
    agreement: dict[str, Share]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; times in seconds per token."""
        data = asdict(self)
        data["agreement"] = {
            name: {"hits": s.hits, "total": s.total, "share": s.value, "margin95": s.margin}
            for name, s in self.agreement.items()
        }
        return data


def compare(
    results: Sequence[Result], exact: str, fast: str, baseline: str, standalone: str
) -> list[Comparison]:
    """Everything of ours against the baseline; standalone against full depth as well."""
    found = {(result.task, result.name): result for result in results}
    pairs: list[tuple[Task, str, str]] = [
        *((r.task, r.name, baseline) for r in results if r.name != baseline),
        ("decode", standalone, fast),
        ("decode", standalone, exact),
    ]
    return [
        Comparison(
            task=task,
            name=name,
            baseline=base,
            ratio=speed_ratio(found[task, name].rounds, found[task, base].rounds),
        )
        for task, name, base in pairs
        if (task, name) in found
    ]
