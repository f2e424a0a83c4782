"""What a plan is made from: a device, a link, a cloud, and how often exits are right.

Plain values. `profile_json` has how the first three travel as JSON; `Acceptance` is kept in a file
of its own (`collm.runtime.acceptance`). Who measures: `collm.runtime.profiling` the device,
`collm.session.probing` the link and the cloud.

Not covered: devices whose speed changes while they answer (a profile tells whether it was
throttled, and says nothing of what it will be in an hour).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class RowCost:
    """Seconds of one call with so many rows: measured at some numbers, linear between and beyond.

    Raises ValueError where the numbers are not ascending, or the seconds negative.
    """

    rows: tuple[int, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.rows or len(self.rows) != len(self.seconds):
            raise ValueError(f"{len(self.seconds)} times for {len(self.rows)} numbers of rows")
        if self.rows[0] < 1 or list(self.rows) != sorted(set(self.rows)):
            raise ValueError(f"numbers of rows {self.rows}: expected ascending ones from 1 on")
        if not all(0 <= one < 1e6 for one in self.seconds):  # false for NaN too
            raise ValueError("a time is not 0 to 1,000,000 seconds")

    def at(self, rows: int) -> float:
        """Seconds for so many rows; 0 for none."""
        if rows <= 0:
            return 0.0
        known, seconds = self.rows, self.seconds
        if rows <= known[0] or len(known) == 1:
            # Nothing is known below: a call costs what its smallest one does, at least.
            return seconds[0] * (max(1.0, rows / known[0]) if len(known) == 1 else 1.0)
        i = min(bisect_left(known, rows), len(known) - 1)
        slope = (seconds[i] - seconds[i - 1]) / (known[i] - known[i - 1])
        return max(0.0, seconds[i] + (rows - known[i]) * slope)

    def times(self, factor: float) -> RowCost:
        """The same, so many times as slow."""
        return RowCost(rows=self.rows, seconds=tuple(factor * one for one in self.seconds))


@dataclass(frozen=True, kw_only=True)
class PathCost:
    """What drafting with a draft path takes. Raises ValueError for a time that is none."""

    rows: RowCost
    """Of its layers and its exit's adapter; a lone row is an unpadded one."""
    head: float
    """Seconds of its norm, head and choice, for one row."""

    def __post_init__(self) -> None:
        if not 0 <= self.head < 1e6:  # false for NaN too
            raise ValueError("a head's time is not 0 to 1,000,000 seconds")


@dataclass(frozen=True, kw_only=True)
class PathSize:
    """What a draft path takes of memory. Bytes."""

    bytes: int
    """Of its layers and adapter."""
    prefill_bytes: int
    """Beside them, once it has run 128 rows in one call."""
    kv_bytes: int
    """Of one position's keys and values in all of its layers."""
    head: str
    """Name of the head that it ends in."""


@dataclass(frozen=True, kw_only=True)
class ThreadCosts:
    """What the device takes with so many threads."""

    threads: int
    blocks: tuple[RowCost, ...]
    """Of every block, in order; one row is an unpadded one."""
    exits: Mapping[int, RowCost]
    """Of asking the exit at a cut with so many positions pending, its layers left out."""
    head: RowCost
    """The model's own norm, head and choice."""
    paths: Mapping[str, PathCost] = field(default_factory=dict)
    """Of draft paths, by their names."""

    def decode_seconds(self, blocks: int) -> float:
        """One row, padded to two as exact mode does, through the first so many blocks."""
        return sum(cost.at(2) for cost in self.blocks[:blocks])


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """A device, measured with one artifact. Bytes, seconds."""

    artifact: str
    """Key of the artifact's blocks and exits."""
    hardware: str
    """Processor, cores and limits in words; profiles are cached by it."""
    software: str
    bounds: tuple[int, ...]
    """Layers where blocks begin, and where the last one ends."""
    costs: tuple[ThreadCosts, ...]
    """By numbers of threads, ascending."""
    step_seconds: float = 0.0
    """What every token costs beside layers and exits."""
    cores: int
    cpu_quota: float = 0.0
    """Cores' worth of time that a control group allows; 0: all."""
    quota_period: float = 0.1
    memory_bytes: int
    """What may be used, as far as the system and its control groups tell."""
    base_bytes: int
    """A process that has loaded nothing yet but talks to a cloud."""
    stage_bytes: int = 0
    """What loading the first block takes beside its weights."""
    block_bytes: tuple[int, ...]
    exit_bytes: Mapping[int, int]
    """Of an exit's adapter."""
    exit_heads: Mapping[int, str]
    """Name of the head that an exit uses."""
    head_bytes: Mapping[str, int]
    prefill_bytes: tuple[int, ...] = ()
    """Of each block, beside its own, once it has run 128 rows in one call."""
    kv_bytes: tuple[int, ...]
    """Of one position's keys and values in each block."""
    row_bytes: int
    """Of one position's hidden state in memory, float32."""
    paths: Mapping[str, PathSize] = field(default_factory=dict)
    """Draft paths, by their names."""
    watts: float = 0.0
    """Of a core at work; 0: not known."""
    battery: float | None = None
    """Charge, 0 to 1; None: no battery, or not known."""
    on_battery: bool = False
    celsius: float | None = None
    throttled: bool = False
    """Whether the system said that heat slowed it down."""
    notes: tuple[str, ...] = ()
    """What was not measured but taken from what was."""

    @property
    def best_threads(self) -> int:
        """The number of threads with the fastest token; fewer where more win less than 5 %."""
        best = self.costs[0]
        for more in self.costs[1:]:
            if more.decode_seconds(len(self.block_bytes)) < 0.95 * best.decode_seconds(
                len(self.block_bytes)
            ):
                best = more
        return best.threads

    def with_threads(self, threads: int) -> ThreadCosts:
        """The costs with so many threads. Raises KeyError where they were not measured."""
        for costs in self.costs:
            if costs.threads == threads:
                return costs
        raise KeyError(f"{threads} threads were not measured")


@dataclass(frozen=True, kw_only=True)
class LinkProfile:
    """A link to a cloud as an edge sees it. Seconds; bits a second, 0 for no limit."""

    round_trip: float
    """Median of a small frame's way there and back, with what both ends take for it."""
    jitter: float = 0.0
    """Mean deviation of round trips from their median."""
    up_bits: float = 0.0
    down_bits: float = 0.0
    connect: float = 0.0
    """Until a session may begin: the connection and its handshakes, a Hello not yet counted."""
    round_seconds: float = 0.0
    """What a question takes beside its trip and the cloud's computing."""
    trip_cpu: float = 0.0
    """CPU time of the edge for one frame there and one back."""


@dataclass(frozen=True, kw_only=True)
class CloudProfile:
    """A cloud as it describes itself, or as it was measured. Seconds."""

    fingerprint: str = ""
    """Of the artifact it serves; empty: it did not say."""
    layers: int = 0
    costs: Mapping[int, RowCost] = field(default_factory=dict)
    """Running so many rows from a cut through the last layer; under `layers` what the head takes.
    Empty: it did not say."""
    token_seconds: float = 0.0
    """From token to token where it answers alone, measured over the link; 0: not known."""
    sessions: int = 0
    """Held at the moment."""
    at_work: int = 0
    """Of them, those that spoke in the last seconds."""

    def seconds(self, cut: int, rows: int, heads: int) -> float:
        """Rows from `cut` on, and the head for the last `heads` of them."""
        return self.costs[cut].at(rows) + self.costs[self.layers].at(heads)


@dataclass(frozen=True, kw_only=True)
class PathSays:
    """What a draft path's exit said at the rows R of an `Acceptance`."""

    digest: str
    """Of all that decides what it says."""
    confidences: F32
    """Calibrated, [R]."""
    right: Bools
    """Whether its word is the full model's, [R]."""


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """What every exit said where the full model spoke, along texts that the full model wrote.

    Rows R of texts T, exits E from shallow to deep. A row is the position of an answer's token.
    """

    fingerprint: str
    exits_key: str
    """Digest of the exits that spoke."""
    cuts: tuple[int, ...]
    starts: I64
    """Row where each text begins, and the number of rows: [T + 1]."""
    prompts: I64
    """Positions before each text, [T]."""
    confidences: F32
    """Calibrated, [R, E]."""
    right: Bools
    """Whether the exit's word is the full model's, [R, E]."""
    wires: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    """Share of rows where the full model says the same when states travel in a format at a cut."""
    paths: Mapping[str, PathSays] = field(default_factory=dict)
    """Of draft paths, by their names; those that were not recorded are missing."""

    def __post_init__(self) -> None:
        rows = len(self.confidences)
        fits = self.starts.ndim == 1 and len(self.starts) >= 2 and self.starts[0] == 0
        if not fits or self.starts[-1] != rows or (np.diff(self.starts) < 1).any():
            raise ValueError("its texts do not fit its rows")
        if self.prompts.shape != (len(self.starts) - 1,) or (self.prompts < 1).any():
            raise ValueError("its prompts do not fit its texts")
        shape = (rows, len(self.cuts))
        if self.confidences.shape != shape or self.right.shape != shape:
            raise ValueError("its exits do not fit its rows")
        if list(self.cuts) != sorted(set(self.cuts)):
            raise ValueError(f"exits {list(self.cuts)}")
        for one in self.paths.values():
            if not one.confidences.shape == one.right.shape == (rows,):
                raise ValueError("a draft path does not fit its rows")
        for sure in (self.confidences, *(one.confidences for one in self.paths.values())):
            if not ((sure >= 0) & (sure <= 1.001)).all():
                raise ValueError("a confidence is not 0 to 1")

    @property
    def tokens(self) -> int:
        """Rows of all texts."""
        return len(self.confidences)

    def first(self, tokens: int) -> Acceptance:
        """The same texts, each with at most so many tokens."""
        spans = [
            range(int(a), min(int(b), int(a) + tokens))
            for a, b in zip(self.starts[:-1], self.starts[1:], strict=True)
        ]
        rows = np.concatenate([np.arange(span.start, span.stop) for span in spans])
        return Acceptance(
            fingerprint=self.fingerprint,
            exits_key=self.exits_key,
            cuts=self.cuts,
            starts=np.cumsum([0, *map(len, spans)]).astype(np.int64),
            prompts=self.prompts,
            confidences=self.confidences[rows],
            right=self.right[rows],
            wires=self.wires,
            paths={
                name: PathSays(
                    digest=one.digest, confidences=one.confidences[rows], right=one.right[rows]
                )
                for name, one in self.paths.items()
            },
        )
