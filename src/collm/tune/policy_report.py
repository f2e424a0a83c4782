"""`collm eval policy`: every criterion's curve, and whether it beats the best fixed threshold.

The baseline is the best confidence threshold in hindsight: at every level, of all sets of exits
and all thresholds, the one with the fewest cloud requests (or the best agreement) on these very
texts. The other criteria are read off the same texts at the same level, each kind at its best set
of exits, so that choosing is as easy for both; the knob is swept for all of them alike. A learned
policy has one set of exits, and was trained on other texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from collm.model.policy_file import PolicyFile
from collm.policy.observation import Criterion
from collm.tune.policy_curves import (
    READ,
    Counts,
    Curve,
    Interval,
    Point,
    compare_with_criterion,
    curve,
    difference,
    point_of,
    sweep,
)
from collm.tune.policy_families import (
    Family,
    entropy,
    exit_sets,
    fixed_families,
    hybrid,
    learned,
    margin,
    patience,
)
from collm.tune.trace_file import Traces

AGREEMENTS = (0.90, 0.95, 0.98)
REQUESTS = (0.4, 0.6, 0.8)
FIXED = "confidence"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One kind of criterion against the best fixed threshold, at one level."""

    kind: str
    what: str
    """`requests` at an agreement; `agreement` or `drop` at a share of cloud requests."""
    at: float
    family: str
    value: float
    baseline: str
    baseline_value: float
    difference: Interval

    @property
    def verdict(self) -> str:
        """`beats`, `does not beat` or `loses to`: whether the interval leaves out zero."""
        sign = 1 if self.what == "agreement" else -1
        low, high = sorted((sign * self.difference.low, sign * self.difference.high))
        if low > 0:
            return "beats"
        return "loses to" if high < 0 else "does not beat"


@dataclass(frozen=True, kw_only=True)
class PolicyReport:
    """Everything that `collm eval policy` found."""

    traces: str
    texts: int
    rows: int
    cuts: tuple[int, ...]
    rolled_out: int
    compared_rows: int
    """Rows on which sweep and criterion were compared, all alike."""
    curves: Mapping[str, Curve]
    kinds: Mapping[str, str]
    """Kind of every curve."""
    comparisons: tuple[Comparison, ...]
    points: tuple[Point, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        made = asdict(self)
        made["curves"] = {
            name: {key: values.tolist() for key, values in asdict(one).items()}
            for name, one in self.curves.items()
        }
        for data, comparison in zip(made["comparisons"], self.comparisons, strict=True):
            data["verdict"] = comparison.verdict
        return made


def make_policy_report(
    traces: Traces,
    path: str,
    policies: Mapping[str, PolicyFile],
    criteria: Sequence[Criterion] = (),
    progress: Callable[[str], None] | None = None,
) -> PolicyReport:
    """Sweep, compare and decide. policies: by the name that they are to have."""
    families = list(fixed_families(traces))
    for cuts in exit_sets(traces.cuts):
        families += [hybrid(traces, cuts), margin(traces, cuts), entropy(traces, cuts)]
        families += [patience(traces, cuts, n) for n in (2, 3) if n <= len(cuts)]
    families += [learned(traces, policy, name) for name, policy in policies.items()]
    counted: list[Counts] = []
    compared = 0
    for family in families:
        if progress is not None:
            progress(family.name)
        counted.append(sweep(traces, family))
        if family.cuts == traces.cuts or family.kind == "learned":
            compared += compare_with_criterion(traces, family)
    if progress is not None:
        progress("intervals")
    return PolicyReport(
        traces=path,
        texts=traces.texts,
        rows=len(traces),
        cuts=traces.cuts,
        rolled_out=int(traces.rolled.sum()),
        compared_rows=compared,
        curves={counts.family.name: curve(counts) for counts in counted},
        kinds={counts.family.name: _kind(counts.family) for counts in counted},
        comparisons=tuple(_comparisons(counted)),
        points=tuple(point_of(traces, criterion) for criterion in criteria),
    )


def _comparisons(counted: Sequence[Counts]) -> list[Comparison]:
    kinds: dict[str, list[Counts]] = {}
    for counts in counted:
        kinds.setdefault(_kind(counts.family), []).append(counts)
    levels = [("requests", at) for at in AGREEMENTS]
    levels += [(what, at) for what in ("agreement", "drop") for at in REQUESTS]
    made = []
    for what, at in levels:
        base = _best(kinds[FIXED], what, at)
        for kind, members in kinds.items():
            if kind == FIXED:
                continue
            ours = _best(members, what, at)
            off = difference(ours, base, what, at)
            if not math.isfinite(off.low) or not math.isfinite(off.high):
                continue  # this kind cannot be made to ask the cloud so seldom
            made.append(
                Comparison(
                    kind=kind,
                    what=what,
                    at=at,
                    family=ours.family.name,
                    value=READ[what](curve(ours), at),
                    baseline=base.family.name,
                    baseline_value=READ[what](curve(base), at),
                    difference=off,
                )
            )
    return made


def _best(members: Sequence[Counts], what: str, at: float) -> Counts:
    sign = -1 if what == "agreement" else 1
    return min(members, key=lambda counts: sign * READ[what](curve(counts), at))


def _kind(family: Family) -> str:
    """Learned policies are compared one by one, the others by their kind."""
    return family.name if family.kind == "learned" else family.kind


def print_policy_report(console: Console, report: PolicyReport) -> None:
    """Tables of the comparisons, and a plain verdict for every kind."""
    console.print(
        f"{report.texts} texts, {report.rows:,} tokens, exits {', '.join(map(str, report.cuts))}; "
        f"{report.rolled_out:,} wrong tokens rolled out",
        highlight=False,
    )
    for what, title in (
        ("requests", "Cloud requests per token at equal agreement"),
        ("agreement", "Agreement at equal cloud requests per token"),
        ("drop", "Consequence, nats per token, at equal cloud requests per token"),
    ):
        console.print(_table(title, [c for c in report.comparisons if c.what == what]))
    for kind in dict.fromkeys(c.kind for c in report.comparisons):
        told = [c for c in report.comparisons if c.kind == kind]
        for verdict in ("beats", "does not beat", "loses to"):
            where = [_level(c) for c in told if c.verdict == verdict]
            if where:
                console.print(
                    f"{kind} {verdict} the best fixed threshold: {'; '.join(where)}",
                    highlight=False,
                )
    for point in report.points:
        console.print(
            f"{point.name}: {point.requests:.3f} cloud requests per token, agreement "
            f"{point.agreement:.2%}, {point.drop:.4f} nats per token",
            highlight=False,
        )


def _table(title: str, comparisons: Sequence[Comparison]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(("at", "criterion", "it", "best fixed", "difference (95 %)", "")):
        table.add_column(column, justify="left" if i in (1, 5) else "right", no_wrap=True)
    for one in comparisons:
        off = one.difference
        digits = 4 if one.what != "requests" else 3
        table.add_row(
            f"{one.at:.0%}",
            one.family,
            f"{one.value:.{digits}f}",
            f"{one.baseline_value:.{digits}f} {one.baseline.removeprefix(FIXED).strip()}",
            f"{off.value:+.{digits}f} ({off.low:+.{digits}f} … {off.high:+.{digits}f})",
            one.verdict,
        )
    return table


def _level(one: Comparison) -> str:
    if one.what == "requests":
        return f"cloud work at {one.at:.0%} agreement"
    return f"{'agreement' if one.what == 'agreement' else 'consequence'} at {one.at:.0%} requests"
