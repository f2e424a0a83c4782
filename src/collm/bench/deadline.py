"""Does every token come in time when the cloud does not?

`threshold` mode with a deadline a token, over real gRPC to a cloud process whose answers arrive
late (`link.delayed`). The same prompts are answered without a delay for comparison. What is timed
is the edge: from the moment it is asked for a token (for the first: from the end of the prompt's
prefill) to the moment that it has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from collm.bench.machine import load_average, this_machine
from collm.config import Generation
from collm.link.base import Link
from collm.link.delayed import DelayedLink
from collm.model.artifact import Artifact
from collm.session.edge import Edge
from collm.session.events import Account


@dataclass(frozen=True, kw_only=True)
class DeadlineOptions:
    """What is run."""

    placement: int
    exits: tuple[int, ...] | None
    criterion: str
    deadline_seconds: float
    tokens: int
    threads: int


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The tokens of all prompts under one delay of the cloud's answers. Times are seconds."""

    delay: float
    tokens: int
    median: float
    p95: float
    p99: float
    longest: float
    late: float
    """Share of tokens later than the deadline."""
    degraded: float
    """Share taken only because they were due."""
    from_cloud: float
    """Share that the full model chose."""


@dataclass(frozen=True, kw_only=True)
class DeadlineReport:
    """What was run, where, and how the tokens came."""

    options: DeadlineOptions
    timings: tuple[Timing, ...]
    load: float
    """Runnable processes over the minute before."""

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self) | {"machine": asdict(this_machine())}


def run_deadline(
    artifact: Artifact,
    prompts: Sequence[Sequence[int]],
    connect: Callable[[], Link],
    delays: Sequence[float],
    options: DeadlineOptions,
) -> DeadlineReport:
    """Answer the prompts once for every delay of the cloud's answers, in seconds."""
    load = load_average()
    generation = Generation(
        mode="threshold",
        max_tokens=options.tokens,
        criterion=options.criterion,
        deadline_seconds=options.deadline_seconds,
        ignore_eos=True,
    )
    timings = []
    for delay in delays:
        edge = Edge(
            artifact,
            mode="threshold",
            placement=options.placement,
            exits=options.exits,
            threads=options.threads,
            connect=lambda delay=delay: DelayedLink(connect(), delay),  # type: ignore[misc]
        )
        accounts = [edge.answer(prompt, generation).finish() for prompt in prompts]
        timings.append(_timing(delay, accounts, options.deadline_seconds))
    return DeadlineReport(options=options, timings=tuple(timings), load=load)


def _timing(delay: float, accounts: Sequence[Account], deadline: float) -> Timing:
    seconds = np.array([s for account in accounts for s in account.token_seconds])
    median, p95, p99, longest = np.quantile(seconds, [0.5, 0.95, 0.99, 1.0]).tolist()
    return Timing(
        delay=delay,
        tokens=len(seconds),
        median=median,
        p95=p95,
        p99=p99,
        longest=longest,
        late=float((seconds > deadline).mean()),
        degraded=sum(account.degraded for account in accounts) / len(seconds),
        from_cloud=sum(a.sources.get("cloud", 0) for a in accounts) / len(seconds),
    )
