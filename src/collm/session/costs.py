"""What asking the next exit, or the cloud, is going to take, from what it took so far."""

from __future__ import annotations

import math
from collections import deque

_RECENT = 8


class Estimate:
    """A smoothed duration and how far off it tends to be (Jacobson 1988; RFC 6298).

    Infinite before the first measurement.
    """

    def __init__(self) -> None:
        self.mean = math.inf
        self._deviation = 0.0

    @property
    def bound(self) -> float:
        """Seldom passed: mean and four mean deviations, as TCP waits before it sends again."""
        return self.mean + 4 * self._deviation

    @property
    def is_known(self) -> bool:
        """Whether anything has been measured."""
        return self.mean < math.inf

    def add(self, seconds: float) -> None:
        """One more measurement; gains 1/8 and 1/4, as RFC 6298 has them."""
        if not self.is_known:
            self.mean, self._deviation = seconds, seconds / 2
            return
        self._deviation += (abs(seconds - self.mean) - self._deviation) / 4
        self.mean += (seconds - self.mean) / 8


class CloudCost:
    """What a cloud that is not behind takes for one token.

    The least of the last few measurements, as BBR estimates a round trip (Cardwell et al. 2016):
    waiting for the cloud can be given up, so that being too hopeful costs little. What it had to
    catch up on is left out: it does that once.
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_RECENT)

    def took(self, seconds: float, cloud_seconds: float, rows: int) -> None:
        """A question took so long, of which the cloud computed so long on so many positions."""
        self._recent.append(seconds if rows == 1 else max(0.0, seconds - cloud_seconds))

    @property
    def seconds(self) -> float:
        """The estimate; 0 before anything has been measured: the first time has to be risked."""
        return min(self._recent, default=0.0)


class Costs:
    """Measured on this device, for this link, over all answers of one edge."""

    def __init__(self) -> None:
        self.cloud = CloudCost()
        self._exits: dict[int, tuple[Estimate, Estimate]] = {}

    def exit_took(self, cut: int, seconds: float, rows: int) -> None:
        """Asking the exit at `cut` took so long and caught up on so many positions."""
        lone, further = self._exits.setdefault(cut, (Estimate(), Estimate()))
        if rows == 1:
            lone.add(seconds)
        else:
            known = lone.mean if lone.is_known else 0.0
            further.add(max(0.0, seconds - known) / (rows - 1))

    def exit_seconds(self, cut: int, rows: int) -> float:
        """A bound for asking the exit at `cut` with so many positions pending.

        What is running cannot be given up, so that bounds count here. 0 before anything has been
        measured: the first time has to be risked.
        """
        if cut not in self._exits:
            return 0.0
        lone, further = self._exits[cut]
        base = lone.bound if lone.is_known else 0.0
        return base + (rows - 1) * (further.mean if further.is_known else base)
