"""`collm bench tiers`: an edge server between device and cloud, against the same way without one.

::

    for each round:
        for each prompt:
            for each mode and arrangement, in turning order:
                answer        # timed; nothing else runs

Both arrangements have the same links: two tiers have both in series, three have one on each side of
the edge server. What is verified is compared with the whole model's text.

Not covered: several devices at once; what the near link's other traffic would do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import median
from typing import Any

from collm.bench.stats import rotated
from collm.bench.tiers_world import THREE, TWO, TiersWorld
from collm.config import Generation
from collm.link.base import Link
from collm.link.dialer import Dialer
from collm.link.grpc_client import connect
from collm.model.artifact import Artifact
from collm.session.edge import Edge
from collm.session.events import Account

Progress = Callable[[str, int, int], None]
ARRANGEMENTS = (TWO, THREE)


@dataclass(frozen=True, kw_only=True)
class TiersOptions:
    """What is run."""

    placement: int
    """Layers on the device."""
    server: range
    """Layers of the edge server."""
    modes: tuple[str, ...]
    tokens: int
    rounds: int
    criterion: str
    """Of the device's exits."""
    wire: str
    threads: int

    def generation(self, mode: str) -> Generation:
        """One answer's settings."""
        return Generation(
            mode=mode, max_tokens=self.tokens, criterion=self.criterion, ignore_eos=True
        )


@dataclass(frozen=True, kw_only=True)
class TierAnswer:
    """One answer. Seconds, bytes, positions."""

    mode: str
    arrangement: str
    prompt: int
    round: int
    sources: dict[str, int]
    """Tokens by who chose them."""
    wall_seconds: float
    first_token_seconds: float
    device_bytes_up: int
    device_bytes_down: int
    cloud_bytes_up: float
    """What the cloud received: over the far link alone, where there is a server."""
    cloud_bytes_down: float
    cloud_positions: float
    """That the cloud was sent."""
    cloud_cpu_seconds: float
    server_cpu_seconds: float
    is_the_models: bool
    """Whether the text is the whole model's."""


@dataclass(frozen=True, kw_only=True)
class Kill:
    """An edge server that was killed in the midst of an answer."""

    mode: str
    after: int
    """Tokens that were there."""
    is_undisturbed: bool
    """Whether the text is that of an answer without a kill."""
    longest_gap_seconds: float
    reconnects: int


class Devices:
    """An edge for each mode, whose links lead where the answer of the moment wants them."""

    def __init__(self, artifact: Artifact, options: TiersOptions) -> None:
        self._options = options
        self._dial: Callable[[], Link] = _nowhere
        self._edges = {
            mode: Edge(
                artifact,
                mode=mode,
                placement=options.placement,
                threads=options.threads,
                connect=lambda: self._dial(),
                wire=options.wire,
                first_cut=options.server.start if mode == "threshold" else None,
            )
            for mode in options.modes
        }
        whole = artifact.architecture.layers
        self._whole = Edge(artifact, mode="verified", placement=whole, threads=options.threads)

    def answer(self, mode: str, ids: Sequence[int], address: str) -> Account:
        """The connection stands before the clock starts, the session does not."""
        ready = [connect(address)]
        self._dial = lambda: ready.pop() if ready else connect(address)
        answer = self._edges[mode].answer(ids, self._options.generation(mode))
        return answer.finish()

    def disturbed(
        self,
        mode: str,
        ids: Sequence[int],
        addresses: Sequence[str],
        after: int,
        do: Callable[[], None],
    ) -> tuple[Account, list[float]]:
        """An answer with several clouds to go to, and something done after so many tokens.

        Also when each token was there.
        """
        self._dial = Dialer(addresses).line()
        answer = self._edges[mode].answer(ids, self._options.generation(mode))
        times = [time.perf_counter()]
        for _ in answer:
            times.append(time.perf_counter())
            if len(times) == after + 1:
                do()
        return answer.account, times

    def whole(self, ids: Sequence[int]) -> list[int]:
        """What the whole model says."""
        made = self._options.generation("verified")
        return self._whole.answer(ids, made).finish().token_ids


def _nowhere() -> Link:
    raise AssertionError("aimed before anybody answers")


def run_tiers(
    artifact: Artifact,
    prompts: Sequence[Sequence[int]],
    world: TiersWorld,
    options: TiersOptions,
    progress: Progress,
) -> list[TierAnswer]:
    """Every answer of every mode and arrangement; the first round's are repeated as a warm-up."""
    devices = Devices(artifact, options)
    wanted = [devices.whole(ids) for ids in prompts]
    pairs = [(mode, arrangement) for mode in options.modes for arrangement in ARRANGEMENTS]
    for mode, arrangement in pairs:
        devices.answer(mode, prompts[0], world.addresses[arrangement])
    answers: list[TierAnswer] = []
    total = options.rounds * len(prompts) * len(pairs)
    for turn in range(options.rounds):
        for number, ids in enumerate(prompts):
            for mode, arrangement in rotated(pairs, turn + number):
                progress(f"{mode}, {arrangement}", len(answers), total)
                before = world.cloud.used(), world.server.used()
                account = devices.answer(mode, ids, world.addresses[arrangement])
                cloud = world.cloud.used().since(before[0])
                server = world.server.used().since(before[1])
                answers.append(
                    TierAnswer(
                        mode=mode,
                        arrangement=arrangement,
                        prompt=number,
                        round=turn,
                        sources=account.sources,
                        wall_seconds=account.wall_seconds,
                        first_token_seconds=account.first_token_seconds,
                        device_bytes_up=account.bytes_up,
                        device_bytes_down=account.bytes_down,
                        cloud_bytes_up=cloud.bytes_up,
                        cloud_bytes_down=cloud.bytes_down,
                        cloud_positions=cloud.positions,
                        cloud_cpu_seconds=cloud.cpu_seconds,
                        server_cpu_seconds=server.cpu_seconds if arrangement == THREE else 0.0,
                        is_the_models=account.token_ids == wanted[number],
                    )
                )
    return answers


def run_kills(
    artifact: Artifact,
    prompts: Sequence[Sequence[int]],
    world: TiersWorld,
    options: TiersOptions,
    progress: Progress,
) -> list[Kill]:
    """For each mode, kill the edge server in the midst of an answer, with a sibling beside it."""
    devices = Devices(artifact, options)
    kills: list[Kill] = []
    for number, mode in enumerate(options.modes):
        ids, after = prompts[number % len(prompts)], options.tokens // 2
        progress(f"{mode}, a killed server", number, len(options.modes))
        doomed, at = world.serve()
        undisturbed = devices.answer(mode, ids, world.addresses[THREE])
        account, times = devices.disturbed(
            mode, ids, [at, world.addresses[THREE]], after, doomed.kill
        )
        kills.append(
            Kill(
                mode=mode,
                after=after,
                is_undisturbed=account.token_ids == undisturbed.token_ids,
                longest_gap_seconds=max(b - a for a, b in pairwise(times[1:])),
                reconnects=account.reconnects,
            )
        )
    return kills


@dataclass(frozen=True, kw_only=True)
class TierRow:
    """Medians over the answers of one mode and arrangement, a token where it says so."""

    mode: str
    arrangement: str
    shares: dict[str, float]
    """Of the tokens, by who chose them."""
    token_seconds: float
    first_token_seconds: float
    device_bytes: float
    """Both ways, a token."""
    cloud_bytes: float
    cloud_positions: float
    """A token."""
    cloud_cpu_seconds: float
    server_cpu_seconds: float
    wall_ratio: float
    """Of three tiers against two, median of the pairs; 1 for two."""
    cloud_cpu_ratio: float
    identical: int
    answers: int


def tier_rows(answers: Sequence[Mapping[str, Any]], tokens: int) -> list[TierRow]:
    """The table, from answers as they are stored."""
    rows = []
    paired = {_key(one): one for one in answers}
    for mode in dict.fromkeys(one["mode"] for one in answers):
        for arrangement in ARRANGEMENTS:
            mine = [
                one for one in answers if (one["mode"], one["arrangement"]) == (mode, arrangement)
            ]
            counts: dict[str, int] = {}
            for one in mine:
                for source, count in one["sources"].items():
                    counts[source] = counts.get(source, 0) + count
            against = [(one, paired[_key(one, TWO)]) for one in mine]

            def middle(of: Callable[[Mapping[str, Any]], float], mine: Any = mine) -> float:
                return median(of(one) for one in mine) / tokens

            rows.append(
                TierRow(
                    mode=mode,
                    arrangement=arrangement,
                    shares={
                        source: count / sum(counts.values())
                        for source, count in sorted(counts.items(), key=_depth)
                    },
                    token_seconds=middle(lambda one: one["wall_seconds"]),
                    first_token_seconds=median(one["first_token_seconds"] for one in mine),
                    device_bytes=middle(
                        lambda one: one["device_bytes_up"] + one["device_bytes_down"]
                    ),
                    cloud_bytes=middle(lambda one: one["cloud_bytes_up"] + one["cloud_bytes_down"]),
                    cloud_positions=middle(lambda one: one["cloud_positions"]),
                    cloud_cpu_seconds=middle(lambda one: one["cloud_cpu_seconds"]),
                    server_cpu_seconds=middle(lambda one: one["server_cpu_seconds"]),
                    wall_ratio=median(a["wall_seconds"] / b["wall_seconds"] for a, b in against),
                    cloud_cpu_ratio=median(
                        a["cloud_cpu_seconds"] / max(b["cloud_cpu_seconds"], 1e-9)
                        for a, b in against
                    ),
                    identical=sum(one["is_the_models"] for one in mine),
                    answers=len(mine),
                )
            )
    return rows


def answers_json(answers: Sequence[TierAnswer | Kill]) -> list[dict[str, Any]]:
    """As they are stored."""
    return [asdict(one) for one in answers]


def _key(one: Mapping[str, Any], arrangement: str | None = None) -> tuple[object, ...]:
    return one["mode"], arrangement or one["arrangement"], one["prompt"], one["round"]


def _depth(item: tuple[str, int]) -> tuple[int, str]:
    """Device, server, cloud; shallow exits first."""
    tier = {"exit": 0, "server": 1}.get(item[0].split("@")[0], 2)
    return tier, item[0].rjust(20)
