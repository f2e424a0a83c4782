"""Is anybody there, and how long does a question take? Asked over a link of its own."""

from __future__ import annotations

import secrets
import time
from dataclasses import replace

from collm.errors import ProtocolError, Refused
from collm.limits import Limits
from collm.link.base import Link
from collm.wire.encoding import decode_cloud, encode
from collm.wire.messages import Heartbeat, Pong, Refusal


def heartbeat(link: Link, limits: Limits, timeout: float) -> float:
    """Seconds from a Heartbeat to its Pong: the way there and back, and the wait for a turn there.

    Before a session has begun, a server that cannot serve one says so. Raises Refused then,
    LinkTimeout after `timeout` seconds, LinkError and ProtocolError.
    """
    return ask(link, limits, timeout, Heartbeat(nonce=0))[0]


def ask(link: Link, limits: Limits, timeout: float, what: Heartbeat) -> tuple[float, Pong]:
    """The same of any Heartbeat, with a nonce of its own; and the answer."""
    nonce = secrets.randbits(63)
    started = time.perf_counter()
    link.send(encode(replace(what, nonce=nonce)))
    reply = decode_cloud(link.receive(timeout), limits, sealed=True)
    if isinstance(reply, Refusal):
        raise Refused(reply.code, f"the cloud refuses: {reply.reason}", reply.retry_seconds)
    if not isinstance(reply, Pong) or reply.nonce != nonce:
        raise ProtocolError(f"expected the Pong of a Heartbeat, got {type(reply).__name__}")
    return time.perf_counter() - started, reply
