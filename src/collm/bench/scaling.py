"""What a cloud's work costs against context length, open sessions, and layers left to it.

Measured from outside, on a real cloud process: a *step* is one exact step of one session (the
layers from its cut on for one position, norm, head, verdict) in seconds that the cloud reports; a
*round trip* is what its client waits for, from sending the position to holding the verdict. Steps
are asked for one at a time. Positions are those of ordinary text, over and over.

Not covered: sessions that ask at the same time (`collm bench capacity`), drafts of several
tokens, a network between, GPUs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from collm.bench.capacity import Cloud
from collm.bench.quality import Progress
from collm.bench.stats import Summary, summary
from collm.config import Sampling
from collm.errors import UsageError
from collm.limits import DEFAULT_LIMITS, Limits
from collm.model.artifact import Artifact
from collm.runtime.stage import Stage
from collm.session.client import CloudClient

F32 = npt.NDArray[np.float32]
FORMAT, VERSION = "collm-scaling", 1
_GREEDY = Sampling()
_WARM_UP_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class ScalingOptions:
    """What is measured."""

    contexts: tuple[int, ...]
    """Positions that a session holds."""
    sessions: tuple[int, ...]
    """Sessions that are open."""
    positions: int
    """Those of each session where something else is varied."""
    placement: int
    """Layers on the edge of a split session; beside it one that leaves all to the cloud."""
    steps: int
    """Timed for every figure."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One point: what the cloud held, and what a step took. Times in seconds."""

    first_layer: int
    """Where the cloud begins."""
    layers: int
    """Layers that it runs."""
    positions: int
    """That each session held when the timed steps began."""
    sessions: int
    step: Summary
    round_trip: Summary
    session_bytes: int
    """Caches and pending rows of one session (`StageSession.bytes`)."""
    process_bytes: int
    """Resident memory of the cloud process, weights and all."""


@dataclass(frozen=True, kw_only=True)
class ScalingReport:
    """All points."""

    options: ScalingOptions
    layers: int
    context: tuple[Row, ...]
    sessions: tuple[Row, ...]
    depth: tuple[Row, ...]
    idle_bytes: int
    """Resident memory of a cloud process that nobody has asked anything."""

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}


OpenCloud = Callable[[], AbstractContextManager[Cloud]]


def run_scaling(
    artifact: Artifact,
    ids: Sequence[int],
    open_cloud: OpenCloud,
    options: ScalingOptions,
    progress: Progress = lambda what, done, total: None,
    limits: Limits = DEFAULT_LIMITS,
) -> ScalingReport:
    """Measure everything; each sweep has a fresh cloud, so that memory is its own.

    ids: a text, repeated as needed. Raises UsageError for positions beyond the model's context.
    """
    arch = artifact.architecture
    most, room = max((*options.contexts, options.positions)), arch.context_length - options.steps
    room -= _WARM_UP_STEPS + 1
    if most > room:
        raise UsageError(
            f"{most} positions: with the steps that are timed, the model's context of "
            f"{arch.context_length} leaves room for {room}; give less"
        )
    cuts = (0, *(cut for cut in artifact.manifest.cuts if 0 < cut < arch.layers))
    sweeps: list[tuple[str, list[tuple[int, int, int]]]] = []  # first layer, positions, sessions
    for cut in dict.fromkeys((0, options.placement)):
        sweeps.append(("context", [(cut, n, 1) for n in sorted(options.contexts)]))
        sweeps.append(("sessions", [(cut, options.positions, n) for n in sorted(options.sessions)]))
    sweeps += [("depth", [(cut, options.positions, 1)]) for cut in cuts]
    total = sum(len(points) for _, points in sweeps)
    progress("running the text at the edge", 0, total)
    texts = _Texts(artifact, ids, most + options.steps + _WARM_UP_STEPS + 1, limits)
    rows: dict[str, list[Row]] = {"context": [], "sessions": [], "depth": []}
    done, idle = 0, 0
    for what, points in sweeps:
        with open_cloud() as cloud:
            idle = idle or _resident(cloud)
            for row in _sweep(texts, cloud, points, options, limits):
                rows[what].append(row)
                done += 1
                progress(f"{what}, from layer {row.first_layer}", done, total)
    return ScalingReport(
        options=options,
        layers=arch.layers,
        context=tuple(rows["context"]),
        sessions=tuple(rows["sessions"]),
        depth=tuple(sorted(rows["depth"], key=lambda row: row.layers)),
        idle_bytes=idle,
    )


class _Texts:
    """A text as every cut has it, and what a session of the cloud holds for it."""

    def __init__(self, artifact: Artifact, ids: Sequence[int], count: int, limits: Limits) -> None:
        self.artifact = artifact
        self.ids = [ids[i % len(ids)] for i in range(count)]
        self.stage = Stage(artifact, range(artifact.architecture.layers), limits=limits)
        self._rows: dict[int, F32] = {}
        session = self.stage.open()
        session.append_ids(self.ids)
        for cut in self.stage.bounds[1:-1]:
            self._rows[cut] = session.hidden_at(cut, 0)
        session.close()

    def rows(self, cut: int, first: int, last: int) -> F32 | None:
        """What goes up for these positions, float32 [last - first, d]; None: ids do."""
        return self._rows[cut][first:last] if cut else None

    def session_bytes(self, cut: int, positions: int) -> int:
        """Of a session like the cloud's."""
        session = self.stage.open(cut)
        if cut:
            session.append_hidden(self._rows[cut][:positions])
        else:
            session.append_ids(self.ids[:positions])
        session.logits(positions - 1)
        held = session.bytes
        session.close()
        return held


class _Session:
    """One open session in the cloud, which reads the text."""

    def __init__(self, texts: _Texts, cloud: Cloud, cut: int, limits: Limits) -> None:
        self._texts = texts
        self._cut = cut
        artifact = texts.artifact
        self.client = CloudClient(
            cloud.connect(),
            fingerprint=artifact.fingerprint,
            cut=cut,
            vocabulary=artifact.architecture.vocab_size,
            limits=limits,
        )

    def read(self, positions: int) -> tuple[float, float]:
        """Go on to so many positions; returns seconds of the round trip and in the cloud."""
        client, first = self.client, self.client.sent
        rows = self._texts.rows(self._cut, first, positions)
        started = time.perf_counter()
        client.append(self._texts.ids[first:positions], rows)
        verdict = client.verify((), _GREEDY)
        return time.perf_counter() - started, verdict.cloud_seconds

    def step(self) -> tuple[float, float]:
        """One position more."""
        return self.read(self.client.sent + 1)


def _sweep(
    texts: _Texts,
    cloud: Cloud,
    points: Sequence[tuple[int, int, int]],
    options: ScalingOptions,
    limits: Limits,
) -> Iterator[Row]:
    """Sessions of one cut, of which there get more, or which get longer."""
    layers = texts.stage.layers.stop
    with ExitStack() as stack:
        open_now: list[_Session] = []
        for cut, positions, sessions in points:
            while len(open_now) < sessions:
                open_now.append(_Session(texts, cloud, cut, limits))
                stack.callback(open_now[-1].client.close)
            for session in open_now:
                _read_to(session, positions)
                for _ in range(_WARM_UP_STEPS if sessions == 1 else 0):
                    session.step()
            took = [
                open_now[turn % sessions].step() for turn in range(max(options.steps, sessions))
            ]
            yield Row(
                first_layer=cut,
                layers=layers - cut,
                positions=positions,
                sessions=sessions,
                step=summary([cloud_seconds for _, cloud_seconds in took]),
                round_trip=summary([waited for waited, _ in took]),
                session_bytes=texts.session_bytes(cut, positions),
                process_bytes=_resident(cloud),
            )


def _read_to(session: _Session, positions: int) -> None:
    """Hold so many positions: what was read beyond them is taken back."""
    if session.client.sent > positions:
        session.client.crop(positions)
    elif session.client.sent < positions:
        session.read(positions)


def _resident(cloud: Cloud) -> int:
    return int(psutil.Process(cloud.pid).memory_info().rss)
