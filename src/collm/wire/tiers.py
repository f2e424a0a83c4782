"""Who runs the model above a device, told in the answer to a heartbeat: the nearest first.

Every server tells of itself, and passes on what the one above it told. Behind one that is away
nothing is known: those are not ok either.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias, cast

from collm.errors import ProtocolError
from collm.limits import Limits
from collm.wire import checks
from collm.wire import session_pb2 as pb

Role: TypeAlias = Literal["edge server", "cloud"]
_ROLES: Final = frozenset({"edge server", "cloud"})


@dataclass(frozen=True, kw_only=True)
class Tier:
    """A server that runs layers [first, last) of the model, as the one below it saw it last."""

    role: Role = "cloud"
    address: str = ""
    """As the one below it dials it; empty: whoever tells this."""
    first: int = 0
    last: int = 0
    """0: it does not say."""
    ok: bool = True
    round_trip: float | None = None
    """Seconds from the one below it."""
    sessions: int | None = None
    """That it holds."""
    error: str = ""


def met(told: tuple[Tier, ...], address: str, round_trip: float) -> tuple[Tier, ...]:
    """What a server told, as whoever dialled it at `address` passes it on."""
    head, *above = told
    return replace(head, address=address, ok=True, round_trip=round_trip, error=""), *above


def unreached(tiers: tuple[Tier, ...], error: str) -> tuple[Tier, ...]:
    """The same while the first of them cannot be reached."""
    unknown = [replace(one, ok=False, round_trip=None, sessions=None) for one in tiers]
    why = f"not known while the {tiers[0].role} below it is away"
    head, above = unknown[0], unknown[1:]
    return replace(head, error=error), *(replace(one, error=why) for one in above)


def away(tiers: tuple[Tier, ...]) -> Tier | None:
    """The nearest that cannot be reached; None: all can."""
    return next((one for one in tiers if not one.ok), None)


def fitted(tiers: tuple[Tier, ...], limits: Limits) -> tuple[Tier, ...]:
    """Those that fit an answer, their texts cut to what the other side takes."""
    most = limits.max_tier_text_bytes
    return tuple(
        replace(one, address=_fit(one.address, most), error=_fit(one.error, most))
        for one in tiers[: limits.max_tiers]
    )


def tier_fields(tier: Tier) -> pb.Tier:
    """For the frame."""
    return pb.Tier(**vars(tier))


def tiers_of(body: pb.Pong, limits: Limits) -> tuple[Tier, ...]:
    """Those of an answer. Raises ProtocolError."""
    checks.counted("tiers", len(body.tiers), limits.max_tiers)
    tiers = tuple(_tier(one, limits) for one in body.tiers)
    below = True
    for one in tiers:
        if one.ok and not below:
            raise ProtocolError("a tier that is well above one that is away")
        below = one.ok
    return tiers


def _tier(body: pb.Tier, limits: Limits) -> Tier:
    most = limits.max_tier_text_bytes
    last = checks.bounded("last layer", body.last, limits.max_layers)
    timed, counted = body.HasField("round_trip"), body.HasField("sessions")
    return Tier(
        role=cast("Role", checks.one_of("tier", body.role, _ROLES)),
        address=checks.text("address", body.address, limits, most),
        first=checks.bounded("first layer", body.first, last),
        last=last,
        ok=body.ok,
        round_trip=checks.seconds("round trip", body.round_trip) if timed else None,
        sessions=body.sessions if counted else None,
        error=checks.text("error", body.error, limits, most),
    )


def _fit(text: str, most: int) -> str:
    """One printable line of at most so many bytes."""
    line = "".join(one if one.isprintable() else "?" for one in " ".join(text.split()))
    return line.encode()[:most].decode(errors="ignore")
