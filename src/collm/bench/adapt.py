"""A link that becomes slow in mid-answer: how soon, and how well, the controller copes.

::

    for each round:
        for each contender, in turning order:
            answer the prompt; after `change_at` tokens the link takes its other shape

Fixed settings stay as they are; `auto` and `verified` with the wire format `auto` change. What is
looked at is when tokens come: the rate of every run of 24 tokens after the change beside the best
fixed setting's rate of the same tokens, and when the controller's stays above `good` of it.
`verified auto`, which may not leave all to the cloud, is set beside fixed settings that do not.

Not covered: a link that becomes faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from collm.bench.cores import choose_cores, pin, pinned_here
from collm.bench.machine import load_average, this_machine
from collm.bench.stats import rotated
from collm.config import Generation
from collm.limits import DEFAULT_LIMITS
from collm.link.grpc_client import connect
from collm.link.shapes import LinkShape
from collm.model.artifact import Artifact
from collm.serve.spawn import Spawned, spawned_cloud, spawned_link
from collm.session.edge import Edge

Progress = Callable[[str, int, int], None]
CONTENDERS = {
    "cloud": ("cloud", "f32"),
    "verified f32": ("verified", "f32"),
    "verified f16": ("verified", "f16"),
    "verified int8": ("verified", "int8"),
    "verified int4": ("verified", "int4"),
    "verified ids": ("verified", "ids"),
    "verified auto": ("verified", "auto"),
    "auto": ("auto", "f32"),
}
"""Mode and wire format."""
CONTROLLED = ("verified auto", "auto")
_RUN = 24
"""Tokens looked at together."""
_STEP = 4


@dataclass(frozen=True, kw_only=True)
class AdaptOptions:
    """What is run."""

    before: LinkShape
    after: LinkShape
    tokens: int
    change_at: int
    rounds: int
    placement: int
    threads: int
    good: float
    cloud_load: int = 0


@dataclass(frozen=True, kw_only=True)
class Course:
    """One answer as it came."""

    contender: str
    token_ids: list[int]
    arrivals: list[float]
    """Seconds since the change; negative before it."""
    changes: list[tuple[int, str, str, int]]
    """Token, mode, wire format and layers on the edge from there on."""

    @property
    def steady(self) -> float:
        """Tokens a second from two seconds after the change, or from its half, to the end."""
        last = self.arrivals[-1]
        start = min(2.0, last / 2)
        late = [at for at in self.arrivals if at >= start]
        return (len(late) - 1) / (late[-1] - late[0]) if len(late) > 2 else 0.0

    @property
    def before(self) -> float:
        """Tokens a second before the change."""
        early = [at for at in self.arrivals if at < 0]
        return (len(early) - 1) / (early[-1] - early[0]) if len(early) > 2 else 0.0

    def seconds(self, first: int, count: int) -> float:
        """That tokens [first, first + count) took."""
        return self.arrivals[first + count - 1] - self.arrivals[first - 1]

    def settles(self, best: Sequence[Course], good: float) -> float | None:
        """Seconds after the change from which on every run of tokens comes at `good` of the rate
        at which the best setting's same tokens come (the median of its answers); None: never.

        The same tokens, because some parts of a text are easier than others.
        """
        after = [index for index, at in enumerate(self.arrivals) if at >= 0]
        poor = [
            first
            for first in range(after[0] + 1, len(self.arrivals) - _RUN, _STEP)
            if good * self.seconds(first, _RUN) > median(one.seconds(first, _RUN) for one in best)
        ]
        if not poor:
            return 0.0
        end = poor[-1] + _STEP
        return None if end >= len(self.arrivals) - _RUN else max(0.0, self.arrivals[end])


def run_adapt(
    artifact: Artifact,
    folder: Path,
    ids: list[int],
    contenders: Sequence[str],
    options: AdaptOptions,
    progress: Progress,
) -> dict[str, Any]:
    """All answers and what they say, ready for `json.dumps`."""
    cores, load = choose_cores(options.threads), load_average()
    courses: list[Course] = []
    with ExitStack() as stack:
        cloud = stack.enter_context(
            spawned_cloud(folder, threads=options.threads, limits=DEFAULT_LIMITS)
        )
        pin(cloud.pid, cores.cloud)
        link = stack.enter_context(spawned_link(options.before, cloud.address))
        pin(link.pid, cores.link)
        edges = {name: _edge(artifact, name, link.address, options) for name in contenders}
        stack.enter_context(pinned_here(cores.edge))
        for edge in edges.values():  # warm: the controller has learnt the link before it changes
            for _ in range(3):
                edge.answer(ids, _generation(edge, 32)).finish()
        total = options.rounds * len(contenders)
        for number in range(options.rounds):
            for name in rotated(list(contenders), number):
                progress(name, len(courses), total)
                courses.append(_course(name, edges[name], ids, link, options))
    progress("done", total, total)
    return {
        "options": asdict(options),
        "machine": asdict(this_machine()),
        "load": (load, load_average()),
        "cores": asdict(cores),
        "courses": [asdict(one) for one in courses],
        "figures": figures(courses, contenders, options.good),
    }


def figures(courses: Sequence[Course], contenders: Sequence[str], good: float) -> list[Any]:
    """A line a contender; medians over the rounds."""
    made = []
    of = {name: [one for one in courses if one.contender == name] for name in contenders}
    texts = {tuple(one.token_ids) for name in contenders for one in of[name] if _is_exact(name)}
    for name in contenders:
        # One that may not leave all to the cloud is set beside those that do not.
        fixed = [
            other
            for other in contenders
            if other not in CONTROLLED
            and (CONTENDERS[name][0] != "verified" or CONTENDERS[other][0] == "verified")
        ]
        best_name = max(fixed, key=lambda other: median(one.steady for one in of[other]))
        best = median(one.steady for one in of[best_name])
        settled = [one.settles(of[best_name], good) for one in of[name]]
        known = [seconds for seconds in settled if seconds is not None]
        made.append(
            {
                "contender": name,
                "before": median(one.before for one in of[name]),
                "after": median(one.steady for one in of[name]),
                "of_best_fixed": median(one.steady for one in of[name]) / best,
                "best_fixed": best_name,
                "settled_seconds": median(known) if len(known) > len(settled) / 2 else None,
                "identical": len({tuple(one.token_ids) for one in of[name]}) == 1
                and (not _is_exact(name) or len(texts) == 1),
            }
        )
    return made


def _is_exact(name: str) -> bool:
    return name.split()[-1] not in ("f16", "int8", "int4")


def _edge(artifact: Artifact, name: str, address: str, options: AdaptOptions) -> Edge:
    mode, wire = CONTENDERS[name]
    return Edge(
        artifact,
        mode=mode,
        placement=options.placement,
        threads=options.threads,
        connect=lambda: connect(address, DEFAULT_LIMITS),
        wire=wire,
    )


def _generation(edge: Edge, tokens: int) -> Generation:
    return Generation(mode=edge.mode, max_tokens=tokens, ignore_eos=True)


def _course(name: str, edge: Edge, ids: list[int], link: Spawned, options: AdaptOptions) -> Course:
    link.say(options.before.words)
    time.sleep(0.3)
    answer = edge.answer(ids, _generation(edge, options.tokens))
    arrivals: list[float] = []
    changed_at = 0.0
    try:
        for _ in answer:
            count = len(answer.account.tokens)
            arrivals += [time.perf_counter()] * (count - len(arrivals))
            if not changed_at and count >= options.change_at:
                link.say(options.after.words)
                changed_at = time.perf_counter()
    finally:
        link.say(options.before.words)
    account = answer.account
    return Course(
        contender=name,
        token_ids=account.token_ids,
        arrivals=[at - changed_at for at in arrivals],
        changes=[(c.index, c.way.mode, c.way.wire, c.way.placement) for c in account.changes],
    )


def markdown(report: dict[str, Any]) -> str:
    """The table of docs/transmission.md, from `run_adapt`."""
    lines = [
        "| setting | tokens/s before | after | of the best fixed one | settled after | same text |",
        "|---|---|---|---|---|---|",
    ]
    for one in report["figures"]:
        settled = one["settled_seconds"]
        lines.append(
            f"| {one['contender']} | {one['before']:.1f} | {one['after']:.1f} | "
            f"{one['of_best_fixed']:.2f} ({one['best_fixed']}) | "
            f"{'never' if settled is None else f'{settled:.1f} s'} | "
            f"{'yes' if one['identical'] else 'no'} |"
        )
    return "\n".join(lines) + "\n"
