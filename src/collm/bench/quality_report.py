"""What `collm eval quality` found: figures of every setting, per domain, with intervals.

A figure is a function of sums over prompts, such as agreed tokens / tokens; its interval
resamples prompts (`stats.bootstrap`). The same resamples serve all settings, so a difference's
interval is that of a paired comparison.

Not covered: intervals over models or machines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from collm.bench.machine import Machine, this_machine
from collm.bench.quality import Prompts
from collm.bench.quality_answers import Answered, Header
from collm.bench.quality_settings import BASELINE, Setting
from collm.bench.stats import Interval, bootstrap
from collm.model.artifact import Artifact

F64 = npt.NDArray[np.float64]
Part = Callable[[Answered], float | None]

ALL = "all"


@dataclass(frozen=True)
class Figure:
    """One figure: the sum of `top` over the sum of `bottom`, answers with a None left out.

    against: how it is set against the same ratio of the baseline's answers to the same prompts:
    `saved` is 1 − ours / theirs, `less` is ours − theirs.
    """

    name: str
    title: str
    top: Part
    bottom: Part
    against: str = ""
    kind: str = "share"
    """How it is shown: `share`, `nats`, `number`, `bytes` or `ms`."""


def _one(_: Answered) -> float:
    return 1.0


def _tokens(a: Answered) -> float:
    return float(a.tokens)


def _if(value: float | None) -> float | None:
    return None if value is None else 1.0


def _prefix(a: Answered) -> float:
    return a.same_prefix / a.longest if a.longest else 1.0


FIGURES = (
    Figure("agreement", "the full model's own choices", lambda a: a.agreed, _tokens),
    Figure("identical_prefix", "identical prefix", _prefix, _one),
    Figure("same_places", "same token in same place", lambda a: a.same_places,
           lambda a: a.longest),
    Figure("rouge_full", "ROUGE-L, full model's text", lambda a: a.rouge_full,
           lambda a: _if(a.rouge_full), kind="number"),
    Figure("rouge_reference", "ROUGE-L, references", lambda a: a.rouge_reference,
           lambda a: _if(a.rouge_reference), kind="number"),
    Figure("mean_logprob", "mean log-probability", lambda a: a.logprob, _tokens, kind="nats"),
    Figure("logprob_gap", "… less the full model's text's", lambda a: a.logprob, _tokens,
           against="less", kind="nats"),
    Figure("repeated_ngrams", "repeated 4-grams", lambda a: a.repeated_ngrams,
           lambda a: a.ngrams),
    Figure("end_repetition", "repetition at the end", lambda a: a.end_repetition, _one),
    Figure("drift", "drift from the prompt", lambda a: a.drift, lambda a: _if(a.drift),
           kind="number"),
    Figure("requests_per_token", "cloud requests a token", lambda a: a.rounds, _tokens,
           kind="number"),
    Figure("saved_time", "cloud time saved", lambda a: a.cloud_seconds, _tokens, against="saved"),
    Figure("saved_flops", "cloud FLOPs saved", lambda a: a.cloud_flops, _tokens,
           against="saved"),
    Figure("bytes_up", "bytes up a response", lambda a: a.bytes_up, _one, kind="bytes"),
    Figure("bytes_down", "bytes down a response", lambda a: a.bytes_down, _one, kind="bytes"),
    Figure("wall_per_token", "time a token", lambda a: a.wall_seconds, _tokens, kind="ms"),
    Figure("tokens", "tokens a response", _tokens, _one, kind="number"),
    Figure("degraded", "degraded tokens", lambda a: a.degraded, _tokens),
)  # fmt: skip
QUALITY = ("agreement", "mean_logprob")
"""What is set against cloud work in plots."""


@dataclass(frozen=True, kw_only=True)
class SettingReport:
    """One setting on one domain."""

    label: str
    setting: Setting
    domain: str
    prompts: int
    figures: Mapping[str, Interval | None]
    """By `Figure.name`; None where there is nothing to count."""
    differences: Mapping[str, Interval | None]
    """The same, less the compared setting's on the same prompts; empty where none was named."""


@dataclass(frozen=True, kw_only=True)
class QualityReport:
    """Everything, with what is needed to judge it."""

    machine: Machine
    artifact: str
    model: str
    weights: str
    layers: int
    data: str
    header: Header
    cut_prompts: int
    """Prompts whose article was cut to `header.prompt_tokens`."""
    left_out: int
    """Prompts too long for the model's context, or seen before."""
    compared: str
    """Label of the setting that differences are taken to; empty: none."""
    domains: tuple[str, ...]
    """`all` last, alone where the data has but one domain."""
    settings: Sequence[SettingReport]

    def of(self, domain: str) -> list[SettingReport]:
        """All settings on one domain."""
        return [found for found in self.settings if found.domain == domain]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; times in seconds, log-probabilities in nats."""
        return asdict(self)


def make_report(
    artifact: Artifact,
    settings: Sequence[Setting],
    answers: Sequence[Answered],
    prompts: Prompts,
    header: Header,
    *,
    data: str,
    compared: Setting | None = None,
) -> QualityReport:
    """Put everything together. answers: as `quality.Bench.run` returns them."""
    manifest = artifact.manifest
    domains, found = report_settings(settings, answers, compared)
    return QualityReport(
        machine=this_machine(),
        artifact=str(artifact.folder),
        model=manifest.name,
        weights=manifest.weights,
        layers=artifact.architecture.layers,
        data=data,
        header=header,
        cut_prompts=prompts.cut,
        left_out=prompts.too_long + prompts.doubles,
        compared="" if compared is None else compared.label,
        domains=domains,
        settings=found,
    )


def report_settings(
    settings: Sequence[Setting], answers: Sequence[Answered], compared: Setting | None = None
) -> tuple[tuple[str, ...], list[SettingReport]]:
    """Domains and figures. answers: the same prompts for every setting, in one order for all."""
    names = list(dict.fromkeys(a.domain for a in answers))
    domains = (*names, ALL) if len(names) > 1 else (ALL,)
    made = []
    for domain in domains:
        chosen = [a for a in answers if domain in (ALL, a.domain)]
        by_setting = {s.key: [a for a in chosen if a.setting == s.key] for s in settings}
        for setting in settings:
            ours, base = by_setting[setting.key], by_setting[BASELINE.key]
            theirs = by_setting[compared.key] if compared is not None else []
            differs = compared is not None and compared.key != setting.key
            made.append(
                SettingReport(
                    label=setting.label,
                    setting=setting,
                    domain=domain,
                    prompts=len(ours),
                    figures={f.name: measure(f, ours, base) for f in FIGURES},
                    differences={f.name: difference(f, ours, theirs, base) for f in FIGURES}
                    if differs
                    else {},
                )
            )
    return domains, made


def measure(figure: Figure, ours: Sequence[Answered], base: Sequence[Answered]) -> Interval | None:
    """A figure and its 95 % interval over prompts. base: the baseline's answers to the same."""
    columns = np.hstack([_parts(figure, ours), _parts(figure, base)])
    return bootstrap(columns, lambda sums: _value(figure, sums[:, :2], sums[:, 2:]))


def difference(
    figure: Figure, ours: Sequence[Answered], theirs: Sequence[Answered], base: Sequence[Answered]
) -> Interval | None:
    """`ours` less `theirs`, paired by prompt; positive where ours is the larger."""
    columns = np.hstack([_parts(figure, some) for some in (ours, theirs, base)])

    def statistic(sums: F64) -> F64:
        against = sums[:, 4:]
        return _value(figure, sums[:, :2], against) - _value(figure, sums[:, 2:4], against)

    return bootstrap(columns, statistic)


def _parts(figure: Figure, answers: Sequence[Answered]) -> F64:
    """float64 [prompts, 2]: top and bottom."""
    rows = [(figure.top(a), figure.bottom(a)) for a in answers]
    return np.array([(0.0, 0.0) if None in row else row for row in rows], dtype=np.float64)


def _value(figure: Figure, ours: F64, base: F64) -> F64:
    ratio = ours[:, 0] / ours[:, 1]
    if not figure.against:
        return ratio
    theirs = base[:, 0] / base[:, 1]
    made: F64 = 1 - ratio / theirs if figure.against == "saved" else ratio - theirs
    return made


def shown(figure: Figure, interval: Interval | None, *, signed: bool = False) -> str:
    """A figure for people: its value, and half its interval's width after ±."""
    if interval is None:
        return ""
    scale = {"share": 100.0, "ms": 1000.0}.get(figure.kind, 1.0)
    places = {"share": 1, "ms": 1, "bytes": 0, "nats": 3, "number": 3}[figure.kind]
    value = f"{scale * interval.value + 0.0:{'+' if signed else ''},.{places}f}"
    unit = {"share": " %", "ms": " ms"}.get(figure.kind, "")
    if interval.low is None or interval.high is None or math.isclose(interval.low, interval.high):
        return f"{value}{unit}"
    return f"{value} ± {scale * (interval.high - interval.low) / 2:,.{places}f}{unit}"
