"""Links to the cloud that a user named, or to one started for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from collm.cli.security import check_token_stays_secret
from collm.errors import UsageError
from collm.limits import DEFAULT_LIMITS
from collm.link.base import Link
from collm.link.credentials import ClientSecurity
from collm.link.dialer import Dialer
from collm.link.grpc_client import OPEN
from collm.link.route_prober import RouteProber
from collm.serve.spawn import spawned_cloud

_ROUTES = ("order", "measured")


@contextmanager
def cloud_link(
    artifact: Path,
    cloud: str | None,
    threads: int,
    security: ClientSecurity = OPEN,
    route: str = "order",
) -> Iterator[Callable[[], Link] | None]:
    """What makes a link to the cloud that the user named, or to one of several.

    `spawn` starts one. route: in the order given, or as measured. Raises UsageError.
    """
    if route not in _ROUTES:
        raise UsageError(f"--route {route!r}: expected one of {', '.join(_ROUTES)}")
    with ExitStack() as stack:
        if cloud is None:
            yield None
            return
        addresses = cloud.split(",")
        if cloud == "spawn":
            spawned = spawned_cloud(artifact, threads=threads, limits=DEFAULT_LIMITS)
            addresses = [stack.enter_context(spawned).address]
        check_token_stays_secret(addresses, security)
        is_measured = route == "measured" and len(addresses) > 1
        prober = RouteProber(addresses, DEFAULT_LIMITS, security) if is_measured else None
        yield Dialer(addresses, DEFAULT_LIMITS, security, route=prober)
