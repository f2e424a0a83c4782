"""What a link does to bytes: how long a trip takes, how much it varies, how fast bits leave.

Written as a name of `NAMED_LINKS`, or `rtt:50ms`, with a rate after an @: `rtt:50ms@100mbit`.

Not covered: losses (over TCP they are seen as jitter and as a lower rate).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from collm.errors import UsageError

PAPER_BITS_PER_SECOND = 30e6
"""What CE-CoLLM's published bytes and times work out at, with 3 ms there and back."""


@dataclass(frozen=True, kw_only=True)
class LinkShape:
    """Both ways are shaped alike, each for itself."""

    name: str
    delay_seconds: float
    """Of a trip one way."""
    jitter_seconds: float = 0.0
    """A trip takes up to so much less or more, evenly distributed; order is kept."""
    bits_per_second: float = 0.0
    """0: unlimited."""

    def __post_init__(self) -> None:
        for what, value, most in (
            ("delay", self.delay_seconds, 60.0),
            ("jitter", self.jitter_seconds, 60.0),
            ("rate", self.bits_per_second, 1e12),
        ):
            if not 0 <= value <= most:  # false for NaN too
                raise UsageError(f"link {self.name}: {what} {value:g}; expected 0 to {most:g}")
        if self.jitter_seconds > self.delay_seconds:
            raise UsageError(
                f"link {self.name}: jitter {self.jitter_seconds:g} s; expected at most the delay, "
                f"{self.delay_seconds:g} s"
            )
        if 0 < self.bits_per_second < 1000:
            raise UsageError(
                f"link {self.name}: rate {self.bits_per_second:g} bit/s; expected 0 (unlimited) "
                "or at least 1kbit"
            )

    @property
    def words(self) -> str:
        """As `parse_link` reads it; without the jitter."""
        rate = f"{self.bits_per_second / 1e3:.3f}kbit" if self.bits_per_second else "0"
        return f"rtt:{2e6 * self.delay_seconds:.0f}us@{rate}"

    @property
    def round_trip_seconds(self) -> float:
        """There and back, without the time that bits take to leave."""
        return 2 * self.delay_seconds


NAMED_LINKS = {
    shape.name: shape
    for shape in (
        LinkShape(name="loopback", delay_seconds=0),
        LinkShape(name="paper", delay_seconds=0.0015, bits_per_second=PAPER_BITS_PER_SECOND),
        LinkShape(name="wifi", delay_seconds=0.002, jitter_seconds=0.0005, bits_per_second=100e6),
        LinkShape(name="lte", delay_seconds=0.025, jitter_seconds=0.005, bits_per_second=20e6),
        LinkShape(name="wan", delay_seconds=0.040, jitter_seconds=0.001, bits_per_second=100e6),
    )
}


def parse_link(text: str) -> LinkShape:
    """A link by its name, or by its round trip and rate. Raises UsageError, one line."""
    if text in NAMED_LINKS:
        return NAMED_LINKS[text]
    if not text.startswith("rtt:"):
        raise UsageError(
            f"link {text!r}: expected one of {', '.join(NAMED_LINKS)}, or rtt:50ms, or "
            "rtt:50ms@100mbit"
        )
    trip, _, rate = text.removeprefix("rtt:").partition("@")
    return LinkShape(
        name=text,
        delay_seconds=parse_seconds(trip) / 2,
        bits_per_second=parse_rate(rate) if rate else PAPER_BITS_PER_SECOND,
    )


def parse_seconds(text: str) -> float:
    """Seconds of `20ms`, `0.02s` or `150us`. Raises UsageError."""
    return _number(text, {"us": 1e-6, "ms": 1e-3, "s": 1.0}, "a time such as 20ms")


def parse_rate(text: str) -> float:
    """Bits a second of `500kbit`, `30mbit` or `1gbit`; 0 is unlimited. Raises UsageError."""
    if text == "0":
        return 0.0
    return _number(text, {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}, "a rate such as 30mbit, or 0")


def _number(text: str, units: dict[str, float], wanted: str) -> float:
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)([a-z]+)", text[:40])
    value = float(match[1]) * units.get(match[2], math.nan) if match else math.nan
    if not math.isfinite(value):
        raise UsageError(f"{text[:40]!r}: expected {wanted}")
    return value
