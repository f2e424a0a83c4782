"""Figures of `collm bench table`, from the dictionary that table.json holds and nothing else.

Times are medians over answers (of a link and a contender). Against plain cloud stands the median
of ratios of answers to the same prompt in the same round on the same link, so that what drifts
slowly cancels; its interval resamples prompts.

Not covered: intervals over machines or models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import Any

import numpy as np

from collm.bench.stats import Interval

PLAIN = "plain cloud"
Answer = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A contender on a link. Seconds, bytes, nats; shares from 0 to 1."""

    name: str
    kind: str
    tokens: int
    """Of an answer."""
    answers: int
    wall: float
    """A token: an answer's time over its tokens."""
    first_token: float
    gap_p50: float
    gap_p95: float
    edge: float
    cloud: float
    communication: float
    """What is left of the wall time: trips, and waiting for them. All three a token."""
    requests: float
    """A token."""
    cpu_saved: float | None
    """Cloud CPU a token against plain cloud's."""
    flops_saved: float | None
    bytes_up: float
    bytes_down: float
    """An answer."""
    identical: float
    agreed: float
    logprob: float
    rouge: float | None
    against_plain: Interval | None
    """Wall time a token over plain cloud's: below 1 is faster."""


def rows(raw: Mapping[str, Any], link: str, only: str | None = None) -> list[Row]:
    """Every contender (or only one) that answered on this link, in the order of the file."""
    answers = [a for a in raw["answers"] if a["link"] == link]
    plain = {(a["prompt"], a["round"]): a for a in answers if a["contender"] == PLAIN}
    made = []
    for contender in raw["contenders"]:
        some = [a for a in answers if a["contender"] == contender["name"]]
        if some and only in (None, contender["name"]):
            made.append(_row(contender, some, plain))
    return made


def break_even(raw: Mapping[str, Any], contender: str) -> float | None:
    """The round trip, in seconds, at which it stops being faster than plain cloud.

    By linear interpolation of the ratio between links in the order of their round trips. None
    where it never is faster, or is so on every link.
    """
    points = []
    for link in sorted(raw["links"], key=lambda one: one["round_trip_seconds"]):
        found = rows(raw, link["name"], contender)
        if found and found[0].against_plain is not None:
            points.append((link["round_trip_seconds"], found[0].against_plain.value))
    for (near, before), (far, after) in pairwise(points):
        if before < 1 <= after:
            return float(near + (far - near) * (1 - before) / (after - before))
    return None


def _row(
    contender: Mapping[str, Any],
    some: Sequence[Answer],
    plain: Mapping[tuple[str, int], Answer],
) -> Row:
    gaps = np.array([gap for a in some for gap in a["gap_seconds"]])
    p50, p95 = np.quantile(gaps, [0.5, 0.95]).tolist()
    rouges = [a["rouge_full"] for a in some if a["rouge_full"] is not None]
    return Row(
        name=contender["name"],
        kind=contender["kind"],
        tokens=int(median(_tokens(a) for a in some)),
        answers=len(some),
        wall=median(a["wall_seconds"] / _tokens(a) for a in some),
        first_token=median(a["first_token_seconds"] for a in some),
        gap_p50=p50,
        gap_p95=p95,
        edge=median(a["edge_seconds"] / _tokens(a) for a in some),
        cloud=median(a["cloud_seconds"] / _tokens(a) for a in some),
        communication=median(
            max(0.0, a["wall_seconds"] - a["edge_seconds"] - a["cloud_seconds"]) / _tokens(a)
            for a in some
        ),
        requests=sum(a["requests"] for a in some) / sum(_tokens(a) for a in some),
        cpu_saved=_saved(some, plain, "cloud_cpu_seconds"),
        flops_saved=_saved(some, plain, "cloud_flops"),
        bytes_up=median(a["bytes_up"] for a in some),
        bytes_down=median(a["bytes_down"] for a in some),
        identical=fmean(a["identical"] for a in some),
        agreed=sum(a["agreed"] for a in some) / sum(_tokens(a) for a in some),
        logprob=sum(a["logprob"] for a in some) / sum(_tokens(a) for a in some),
        rouge=fmean(rouges) if rouges else None,
        against_plain=_against(some, plain),
    )


def _tokens(answer: Answer) -> int:
    return len(answer["gap_seconds"]) + 1


def _pairs(
    some: Sequence[Answer], plain: Mapping[tuple[str, int], Answer]
) -> list[tuple[Answer, Answer]]:
    keys = ((a, (a["prompt"], a["round"])) for a in some)
    return [(a, plain[key]) for a, key in keys if key in plain]


def _saved(
    some: Sequence[Answer], plain: Mapping[tuple[str, int], Answer], name: str
) -> float | None:
    """1 − work a token / plain cloud's, of the same prompts."""
    pairs = _pairs(some, plain)
    ours = sum(a[name] for a, _ in pairs) / max(1, sum(_tokens(a) for a, _ in pairs))
    theirs = sum(b[name] for _, b in pairs) / max(1, sum(_tokens(b) for _, b in pairs))
    return 1 - ours / theirs if theirs else None


def _against(some: Sequence[Answer], plain: Mapping[tuple[str, int], Answer]) -> Interval | None:
    by_prompt: dict[str, list[float]] = {}
    for a, b in _pairs(some, plain):
        ratio = a["wall_seconds"] / _tokens(a) * _tokens(b) / b["wall_seconds"]
        by_prompt.setdefault(a["prompt"], []).append(ratio)
    if not by_prompt:
        return None
    ratios = [np.array(values) for values in by_prompt.values()]
    value = float(np.median(np.concatenate(ratios)))
    if len(ratios) < 2:
        return Interval(value=value, low=None, high=None)
    most = max(map(len, ratios))
    padded = np.array([np.pad(one, (0, most - len(one)), constant_values=np.nan) for one in ratios])
    chosen = np.random.default_rng(0).integers(len(ratios), size=(2000, len(ratios)))
    drawn = np.nanmedian(padded[chosen].reshape(len(chosen), -1), axis=1)
    low, high = (float(q) for q in np.quantile(drawn, [0.025, 0.975]))
    return Interval(value=value, low=low, high=high)
