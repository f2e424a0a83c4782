"""What `collm eval exits` found: agreement, confidence and drafts of every exit, per domain.

Plain figures, ready for JSON, tables and plots. Agreement, coverage and precision count every
row alike; its interval resamples whole examples.

Not covered: cascades of several exits, speed (that is `collm bench`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from collm.model.artifact import Artifact
from collm.policy.calibration import (
    AtThreshold,
    Drafting,
    ReliabilityBin,
    Rows,
    agreement_interval,
    at_threshold,
    expected_calibration_error,
    reliability,
    risk_coverage,
    simulate_drafting,
    widest_at_precision,
)
from collm.tune.scores import ExampleScores, ExitScores, perplexity

THRESHOLDS = tuple(round(0.3 + 0.05 * i, 2) for i in range(14))
DRAFT_LENGTHS = (1, 2, 4, 8, 16)
PRECISION = 0.97
_CURVE_POINTS = 200
_NEAR_BEST = 0.99


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """A point of the risk-coverage curve: the share of wrong rows among the surest ones."""

    coverage: float
    risk: float


@dataclass(frozen=True, kw_only=True)
class DomainReport:
    """One exit on the text of one domain; `low` and `high` bound agreement with 95 %."""

    domain: str
    examples: int
    rows: int
    agreement: float
    low: float
    high: float
    calibration_error: float
    thresholds: tuple[AtThreshold, ...]
    widest: AtThreshold | None
    """Most coverage with a precision of at least `PRECISION`; None where nothing reaches it."""


@dataclass(frozen=True, kw_only=True)
class ExitReport:
    """One exit. Drafting is of greedy text only; bins and curve are of all text."""

    cut: int
    kind: str
    vocabulary: int
    threshold: float | None
    """What the manifest says to use."""
    domains: tuple[DomainReport, ...]
    drafting: tuple[Drafting, ...]
    best: Drafting | None
    bins: tuple[ReliabilityBin, ...]
    curve: tuple[CurvePoint, ...]

    def domain(self, name: str) -> DomainReport:
        """The report of one domain."""
        return next(d for d in self.domains if d.domain == name)


@dataclass(frozen=True, kw_only=True)
class DomainText:
    """The text that was scored, and how likely the full model finds it."""

    domain: str
    examples: int
    rows: int
    perplexity: float | None


@dataclass(frozen=True, kw_only=True)
class ExitsReport:
    """Everything, for one artifact and one corpus."""

    artifact: str
    model: str
    weights: str
    layers: int
    fingerprint: str
    corpus: str
    corpus_sha256: str
    text: tuple[DomainText, ...]
    exits: tuple[ExitReport, ...]

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the parts that agreement is given for, `all` first."""
        return tuple(text.domain for text in self.text)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        made = asdict(self)
        for data, report in zip(made["exits"], self.exits, strict=True):
            data["drafting"] = [drafting_json(drafting) for drafting in report.drafting]
            data["best"] = None if report.best is None else drafting_json(report.best)
        return made


def drafting_json(drafting: Drafting) -> dict[str, Any]:
    """Counts and the ratios that follow from them."""
    return asdict(drafting) | {
        "tokens_per_round": drafting.tokens_per_round,
        "drafted_per_token": drafting.drafted_per_token,
        "silent_share": drafting.silent_share,
    }


def make_report(
    artifact: Artifact, scores: ExitScores, *, corpus: str, corpus_sha256: str
) -> ExitsReport:
    """Every figure of the report from the scores."""
    manifest = artifact.manifest
    parts = _parts(scores.examples)
    return ExitsReport(
        artifact=str(artifact.folder),
        model=manifest.name,
        weights=manifest.weights,
        layers=manifest.architecture.layers,
        fingerprint=artifact.fingerprint,
        corpus=corpus,
        corpus_sha256=corpus_sha256,
        text=tuple(
            DomainText(
                domain=name,
                examples=len(part),
                rows=sum(len(scored.model_tokens) for scored in part),
                perplexity=perplexity(part),
            )
            for name, part in parts.items()
        ),
        exits=tuple(_exit(artifact, cut, parts) for cut in scores.cuts),
    )


def best_setting(draftings: Sequence[Drafting]) -> Drafting | None:
    """The setting with the most tokens a round; within 1 % of it, the one that drafts least."""
    if not draftings or not draftings[0].tokens:
        return None
    most = max(drafting.tokens_per_round for drafting in draftings)
    near = [d for d in draftings if d.tokens_per_round >= _NEAR_BEST * most]
    return min(near, key=lambda d: (d.drafted, -d.tokens_per_round))


def _exit(artifact: Artifact, cut: int, parts: dict[str, Sequence[ExampleScores]]) -> ExitReport:
    entry = artifact.manifest.exit_at(cut)
    assert entry is not None  # it was scored
    everything = Rows.joined([scored.rows(cut) for scored in parts["all"]])
    greedy = [scored.rows(cut) for scored in parts["all"] if scored.example.greedy]
    drafting = tuple(
        simulate_drafting(greedy, threshold, length)
        for threshold in THRESHOLDS
        for length in DRAFT_LENGTHS
        if greedy
    )
    return ExitReport(
        cut=cut,
        kind=entry.kind,
        vocabulary=artifact.manifest.heads[entry.head].vocabulary,
        threshold=entry.threshold,
        domains=tuple(
            _domain(name, [scored.rows(cut) for scored in part]) for name, part in parts.items()
        ),
        drafting=drafting,
        best=best_setting(drafting),
        bins=reliability(everything),
        curve=_curve(everything),
    )


def _domain(name: str, texts: Sequence[Rows]) -> DomainReport:
    rows = Rows.joined(texts)
    low, high = agreement_interval(texts)
    return DomainReport(
        domain=name,
        examples=len(texts),
        rows=len(rows),
        agreement=float(rows.right.mean()),
        low=low,
        high=high,
        calibration_error=expected_calibration_error(rows),
        thresholds=tuple(at_threshold(rows, threshold) for threshold in THRESHOLDS),
        widest=widest_at_precision(rows, PRECISION),
    )


def _curve(rows: Rows) -> tuple[CurvePoint, ...]:
    """The risk-coverage curve at evenly spaced coverages: a plot shows no more."""
    curve = risk_coverage(rows)
    wanted = np.linspace(0, 1, _CURVE_POINTS + 1)[1:]
    index = np.unique(np.searchsorted(curve.coverage, wanted - 1e-12).clip(max=len(curve.risk) - 1))
    return tuple(
        CurvePoint(coverage=float(curve.coverage[i]), risk=float(curve.risk[i])) for i in index
    )


def _parts(examples: Sequence[ExampleScores]) -> dict[str, Sequence[ExampleScores]]:
    """All examples, then by domain, and where a domain has both kinds, greedy and sampled."""
    parts: dict[str, Sequence[ExampleScores]] = {"all": examples}
    for domain in sorted({scored.example.domain for scored in examples}):
        mine = [scored for scored in examples if scored.example.domain == domain]
        parts[domain] = mine
        kinds = {
            "greedy": [scored for scored in mine if scored.example.greedy is True],
            "sampled": [scored for scored in mine if scored.example.greedy is False],
        }
        if all(kinds.values()):
            parts |= {f"{domain}, {kind}": some for kind, some in kinds.items()}
    return parts
