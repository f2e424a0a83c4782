"""Channel options of both gRPC sides, and the name of the one call they make."""

from __future__ import annotations

from typing import Final

from collm.limits import Limits

SERVICE: Final = "collm.v1.Session"
METHOD: Final = "Open"
PATH: Final = f"/{SERVICE}/{METHOD}"

TAKEN: Final = ("collm-link", "1")
"""What a cloud sends in its first headers, when it takes a call."""

_Options = list[tuple[str, int]]


def client_options(limits: Limits) -> _Options:
    """Options of a client channel."""
    return [
        *_common(limits),
        # Each link has its own connection, or one link's large Append delays another's Verify.
        ("grpc.use_local_subchannel_pool", 1),
        # A session cannot be sent again by machinery that does not know its state.
        ("grpc.enable_retries", 0),
        # Where a link goes is the caller's word, not that of an environment variable.
        ("grpc.enable_http_proxy", 0),
        # While waiting for a cloud that is coming up, try again soon.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
    ]


def server_options(limits: Limits) -> _Options:
    """Options of a server."""
    return [
        *_common(limits),
        # Otherwise a second server on the same port starts, and gets half of the clients.
        ("grpc.so_reuseport", 0),
        # Our links have a connection each; a hundred thousand streams on one are an attack.
        ("grpc.max_concurrent_streams", 128),
        # Identity alone: what is not compressed does not inflate.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        # Clients probe while they wait for a long computation; that is no abuse.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 0),
    ]


def _common(limits: Limits) -> _Options:
    return [
        ("grpc.max_send_message_length", limits.max_message_bytes),
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.keepalive_time_ms", round(limits.keepalive_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", round(limits.keepalive_timeout_seconds * 1000)),
        # A peer that is stopped, while its kernel still acknowledges, is only noticed by this one.
        ("grpc.http2.ping_timeout_ms", round(limits.keepalive_timeout_seconds * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
