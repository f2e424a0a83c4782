"""What an edge learns on the way, for mode `auto`: prices, and who to believe.

Without a byte of its own: the link's round trip and rate and the cloud's time from every verdict,
the edge's time from every draft, how far each exit can be trusted from every token that the full
model has spoken on. `policy.forecast` makes prices of it, `policy.controller` the choice,
`session.auto` acts on it. All of it outlives an answer: the next one begins where this one ended.
A `Prober`, where there is one, also looks at the link while nothing travels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Final

from collm.config import Way
from collm.model.artifact import Artifact
from collm.policy.controller import Controller, Rules
from collm.policy.forecast import Forecaster
from collm.session.probing import Prober
from collm.wire.codec import LOSSLESS, row_bytes

_THRESHOLDS: Final = (0.4, 0.6, 0.8)
_DRAFTS: Final = (4, 8)
_AHEAD: Final = 0.3
_AGREEMENT: Final = 0.35
"""Of an exit that says nothing of itself."""


def ways_of(
    exits: Sequence[int], placements: Sequence[int], wires: Sequence[str] = LOSSLESS
) -> list[Way]:
    """The collaborative ways for these placements: each with its deepest exit alone."""
    made = []
    for placement in placements:
        cuts = [cut for cut in exits if cut <= placement][-1:]
        if not cuts:
            continue
        for wire in wires:
            made += [
                Way(
                    placement=placement,
                    exits=tuple(cuts),
                    wire=wire,
                    threshold=threshold,
                    draft=draft,
                    ahead=ahead,
                )
                for threshold in _THRESHOLDS
                for draft in _DRAFTS
                for ahead in (None, _AHEAD)
            ]
    return made


class Steering:
    """One edge's, for all its answers.

    ways: the ones to choose from beside the plain cloud. pressure: says, now and then, how many
    layers fit. with_cloud: the plain cloud may be chosen too.
    """

    def __init__(
        self,
        artifact: Artifact,
        ways: Sequence[Way],
        *,
        rules: Rules | None = None,
        with_cloud: bool = True,
        pressure: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        hidden = artifact.architecture.hidden_size
        agreements = {e.cut: e.agreement for e in artifact.manifest.exits}
        self.forecaster = Forecaster(
            layers=artifact.architecture.layers,
            row_bytes=lambda wire: row_bytes(wire, hidden),
            agreement=lambda cut: agreements.get(cut) or _AGREEMENT,
        )
        self.controller = Controller(ways, self.forecaster, rules, with_baseline=with_cloud)
        self.prober: Prober | None = None
        """Looks at the link while answers do not, where the edge has one."""
        self.clock = clock
        self._fingerprint = artifact.fingerprint
        self._pressure = pressure
        self._probed_at = 0.0

    def look(self) -> None:
        """At the memory, and at what has been probed since."""
        if self._pressure is not None:
            self.controller.allowed = self._pressure()
        link, prober = self.forecaster.link, self.prober
        if prober is None:
            return
        prober.felt_bits = link.bits_per_second if link.bits_per_second < math.inf else 0.0
        found = prober.latest
        if found is None or found.at == self._probed_at:
            return
        self._probed_at = found.at
        link.probed(self.clock(), found.link.round_trip, found.link.up_bits if found.is_new else 0)
        cloud, layers = found.cloud, self.forecaster.layers
        is_ours = (cloud.fingerprint, cloud.layers) == (self._fingerprint, layers)
        if self.forecaster.cloud_token.is_known or not is_ours or layers not in cloud.costs:
            return  # nothing is said that is not known better, or it is another model's
        for cut, cost in cloud.costs.items():
            for rows, seconds in zip(cost.rows, cost.seconds, strict=True):
                if cut < layers:
                    share = (layers - cut) / layers
                    self.forecaster.cloud.add(rows, share, seconds + cloud.costs[layers].at(rows))

    def without(self, way: Way) -> None:
        """It cannot be gone: its blocks are not to be had, or the cloud does not begin there."""
        controller = self.controller
        if way.mode == "cloud":
            controller.with_baseline = False
            return
        where = (way.placement, way.wire)
        controller.ways = [o for o in controller.ways if (o.placement, o.wire) != where]


def describe(way: Way) -> str:
    """In a few words."""
    if way.mode == "cloud":
        return "the cloud alone"
    ahead = ", ahead" if way.ahead is not None else ""
    exits = ", ".join(map(str, way.exits or ()))
    return (
        f"{way.placement} layers here, exit {exits or 'none'} from {way.threshold:g}, drafts of "
        f"{way.draft}{ahead}, {way.wire} up"
    )
