"""An edge's time, as the cost model plays it: computing, waiting, and a quota of CPU time.

A control group with a quota lets a process compute for `quota · period` of every period and then
stops it until the next one (Turner et al., "CPU bandwidth control for CFS", 2010). So a quarter of
a core is not a core that is four times as slow: an edge that waits for a cloud saves its quota up
for what comes then, within one period.
"""

from __future__ import annotations

from collections.abc import Sequence

from collm.policy.profiles import DeviceProfile, RowCost

_TILE = 16
"""As in `runtime.stage`: exact mode pads a row left over after whole tiles."""
_PREFILL_ROWS = 128


class EdgeClock:
    """Now, in seconds since the answer began."""

    def __init__(self, quota: float = 0.0, period: float = 0.1, threads: int = 1) -> None:
        self.now = 0.0
        self.busy = 0.0
        """CPU time spent."""
        self._threads = threads
        self._period = period
        self._allowed = quota * period if 0 < quota < threads else 0.0
        """CPU time of a period; 0: as much as there is."""
        self._number = 0
        self._used = 0.0

    @classmethod
    def of(cls, device: DeviceProfile, threads: int) -> EdgeClock:
        """A device's, with nothing used up."""
        return cls(device.cpu_quota, device.quota_period, threads)

    def compute(self, seconds: float) -> None:
        """All threads work for so long; stopped for a while where the quota is used up."""
        self.busy += seconds * self._threads
        if not self._allowed:
            self.now += seconds
            return
        while seconds > 1e-12:
            end = self._begin()
            left = (self._allowed - self._used) / self._threads
            if left <= 1e-12:
                self.now = end
                continue
            step = min(seconds, left, end - self.now)
            self.now += step
            self._used += step * self._threads
            seconds -= step

    def spend(self, cpu: float) -> None:
        """CPU time that others of the process take meanwhile: it counts, and nobody waits."""
        self.busy += cpu
        if self._allowed:
            self._begin()
            self._used += cpu

    def wait_for(self, moment: float) -> None:
        """Do nothing until then."""
        self.now = max(self.now, moment)

    def _begin(self) -> float:
        """Take up the period that it is now; when it ends."""
        number = int(self.now / self._period + 1e-9)
        if number != self._number:
            self._number, self._used = number, 0.0
        return (number + 1) * self._period


class Layers:
    """How far the edge's layers and exits have run, and what it costs to run them further.

    blocks: of every block, seconds by rows; exits: of every exit, seconds by positions pending.
    """

    def __init__(
        self,
        bounds: Sequence[int],
        blocks: Sequence[list[float]],
        exits: dict[int, list[float]],
        clock: EdgeClock,
    ) -> None:
        self.clock = clock
        self._upto = {bound: i for i, bound in enumerate(bounds)}
        self._blocks = blocks
        self._exits = exits
        self._done = [0] * len(blocks)
        self._asked = dict.fromkeys(exits, 0)

    def run(self, layer: int, end: int) -> None:
        """Positions before `end` through the layers before `layer`."""
        seconds, done = 0.0, self._done
        for i in range(self._upto[layer]):
            if done[i] < end:
                seconds += self._blocks[i][end - done[i]]
                done[i] = end
        if seconds:
            self.clock.compute(seconds)

    def ask(self, cut: int, end: int) -> None:
        """What does the exit say after position `end` - 1?"""
        self.run(cut, end)
        self.clock.compute(self._exits[cut][max(1, end - self._asked[cut])])
        self._asked[cut] = end

    def crop(self, position: int) -> None:
        """Forget positions from `position` on."""
        self._done = [min(done, position) for done in self._done]
        for cut, asked in self._asked.items():
            self._asked[cut] = min(asked, position)


def plain_rows(cost: RowCost, most: int) -> list[float]:
    """Seconds for 0, 1, … `most` rows, at most 128 of them in a call."""
    return _table([cost.at(rows) for rows in range(_PREFILL_ROWS + 1)], most, _PREFILL_ROWS)


def padded_rows(cost: RowCost, most: int, turn: int = _PREFILL_ROWS) -> list[float]:
    """The same in exact mode, where a lone row is two. turn: most rows of a call."""
    single = [cost.at(rows + 1 if rows % _TILE == 1 else rows) for rows in range(turn + 1)]
    return _table(single, most, turn)


def _table(single: list[float], most: int, turn: int) -> list[float]:
    return [rows // turn * single[turn] + single[rows % turn] for rows in range(most + 1)]
