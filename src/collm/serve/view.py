"""What `collm top` shows: two readings of a process's metrics, as figures a second."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from collm.serve.scrape import Samples


@dataclass(frozen=True, kw_only=True)
class View:
    """A process at work. Rates are a second, None before there is a second reading.

    Shares and quantiles are of the time between the readings, or since the process began where
    there is one reading only, or nothing came between two.
    """

    seconds: float | None
    """Between the readings."""
    sessions: float | None
    """That a cloud holds."""
    active: float | None
    """Answers under way at an edge."""
    waiting: float | None
    """Turns that wait for a compute thread."""
    kv_bytes: float | None
    kv_budget: float | None
    tokens: float
    """Since it began."""
    tokens_rate: float | None
    verdicts_rate: float | None
    bytes_in_rate: float | None
    bytes_out_rate: float | None
    accepted: float | None
    """Tokens of a draft that stood, on average."""
    evictions: float
    reconnects: float
    refusals: Mapping[str, float] = field(default_factory=dict)
    turn_p50: float | None = None
    """Seconds that computing an answer took."""
    turn_p95: float | None = None
    question_p50: float | None = None
    """Seconds from an edge's question to its answer."""
    question_p95: float | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    """Of tokens, by who made them."""

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)


def view(now: Samples, before: Samples | None = None, seconds: float = 0.0) -> View:
    """The figures of `now`, against a reading `seconds` earlier."""
    earlier = before if before is not None and seconds > 0 else None

    def since(name: str) -> float | None:
        """What was added meanwhile, a second."""
        value = now.total(name)
        if earlier is None or value is None:
            return None
        old = earlier.total(name) or 0.0
        return (value - old if value >= old else value) / seconds

    def quantiles(name: str) -> tuple[float | None, float | None]:
        found = now.histogram(name)
        fresh = found.since(earlier.histogram(name)) if earlier is not None else found
        fresh = fresh if fresh.count else found
        return fresh.quantile(0.5), fresh.quantile(0.95)

    stood = now.histogram("collm_accepted_tokens")
    fresh = stood.since(earlier.histogram("collm_accepted_tokens")) if earlier else stood
    fresh = fresh if fresh.count else stood
    turns, questions = quantiles("collm_turn_seconds"), quantiles("collm_question_seconds")
    # Every process has every number; whose they are shows in those that it has counted.
    is_edge = bool(now.total("collm_emitted_total"))
    tokens = "collm_emitted_total" if is_edge else "collm_tokens_total"
    return View(
        seconds=seconds if earlier is not None else None,
        sessions=now.total("collm_sessions"),
        active=now.total("collm_answers_active"),
        waiting=now.total("collm_queue_depth"),
        kv_bytes=now.total("collm_kv_bytes"),
        kv_budget=now.total("collm_kv_budget_bytes"),
        tokens=now.total(tokens) or 0.0,
        tokens_rate=since(tokens),
        verdicts_rate=since("collm_verdicts_total"),
        bytes_in_rate=since("collm_received_bytes_total"),
        bytes_out_rate=since("collm_sent_bytes_total"),
        accepted=fresh.total / fresh.count if fresh.count else None,
        evictions=now.total("collm_evictions_total") or 0.0,
        reconnects=now.total("collm_reconnects_total") or 0.0,
        refusals={k: v for k, v in now.by("collm_refusals_total", "code").items() if v},
        turn_p50=turns[0],
        turn_p95=turns[1],
        question_p50=questions[0],
        question_p95=questions[1],
        shares=_shares(now, earlier, is_edge=is_edge),
    )


def _shares(now: Samples, before: Samples | None, *, is_edge: bool) -> dict[str, float]:
    name, label = ("collm_emitted_total", "source") if is_edge else ("collm_answered_total", "by")
    found = now.by(name, label)
    if before is not None:
        old = before.by(name, label)
        fresh = {key: value - old.get(key, 0.0) for key, value in found.items()}
        if min(fresh.values(), default=0.0) >= 0 and sum(fresh.values()) > 0:
            found = fresh
    total = sum(found.values())
    return {key: value / total for key, value in sorted(found.items()) if value} if total else {}
