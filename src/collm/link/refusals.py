"""The refusals that links themselves give, worded once."""

from __future__ import annotations

from collm.errors import Refused
from collm.limits import Limits

SESSION_OVER = "the cloud ended the session"
CLOSED_HERE = "the link is closed"


def busy(limits: Limits) -> Refused:
    """All sessions are taken."""
    seconds = limits.retry_seconds
    return Refused(
        "busy",
        f"all {limits.max_sessions} sessions are taken; try again in {seconds:g} s",
        retry_seconds=seconds,
    )


def needed() -> Refused:
    """The client was silent while others waited; it may come back at once."""
    return Refused("busy", "this session was silent, and its place was needed; begin anew")


def idle(limits: Limits) -> Refused:
    """The client said nothing for too long."""
    return Refused("idle", f"no message for {limits.idle_seconds:g} s; the session is closed")


def stopping() -> Refused:
    """The cloud goes down."""
    return Refused("busy", "the cloud is shutting down; try again later", retry_seconds=0.5)
