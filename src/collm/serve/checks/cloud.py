"""Is the cloud there, does it take us, and does it have the same model?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from collm.errors import CollmError, LinkError, Refused
from collm.limits import DEFAULT_LIMITS, Limits
from collm.link.address import is_loopback, parse_address
from collm.link.base import Link
from collm.link.credentials import ClientSecurity
from collm.link.grpc_client import connect
from collm.model.artifact import Artifact
from collm.serve.checks.finding import Finding, Findings, fault, ok, warning
from collm.serve.checks.reach import Reached, check_tls, check_way
from collm.session.client import CloudClient
from collm.session.placed import default_placement
from collm.session.probing import Probed, look, probe
from collm.wire.tiers import Tier, away

_SLOW_SECONDS = 0.1


def check_cloud(
    address: str,
    security: ClientSecurity,
    artifact: Artifact | None,
    *,
    placement: int | None,
    limits: Limits = DEFAULT_LIMITS,
) -> Findings:
    """From the name to the first word of a session. artifact: which it should have."""
    try:
        host, port = parse_address(address)
    except ValueError as error:
        yield fault("cloud", str(error), "expected HOST:PORT such as 10.0.0.5:50051")
        return
    reached = Reached()
    yield from check_way(host, port, limits, reached, "cloud")
    if not reached.tcp:
        return
    yield from check_tls(host, port, security, limits, reached)
    if not reached.tls:
        return
    if security.ca is None and not is_loopback(host):
        yield warning("TLS", "what goes there can be read on the way", "give the cloud --tls-cert")
    dial = partial(connect, address, limits, security)
    try:
        tiers = look(dial, limits)
        yield from _above(address, tiers)
        if away(tiers) is not None:
            return  # it takes no session, nor any other heartbeat
        found = probe(dial, count=5, budget=0.3, limits=limits)
    except CollmError as error:
        yield _told(error, security)
        return
    yield from _met(address, found)
    if artifact is not None:
        yield from _session(dial, artifact, placement, found, limits)


def _above(address: str, tiers: tuple[Tier, ...]) -> Findings:
    """Whether each server reaches the one above it, as far as it is known."""
    here = f"the {tiers[0].role} {address}"
    for one in tiers[1:]:
        there = f"{one.role} {one.address}"
        if not one.ok:
            yield fault(
                "tiers",
                f"{here} does not reach its {there}: {one.error}",
                "start that one, or look at the way between them and at the lower one's log",
            )
            return
        trip = "" if one.round_trip is None else f" in {1000 * one.round_trip:.1f} ms"
        yield ok("tiers", f"{here} reaches its {there}{trip}")
        here = f"the {there}"


def _met(address: str, found: Probed) -> Findings:
    trip = found.link.round_trip
    told = f"{address} speaks CoLLM's protocol; {1000 * trip:.1f} ms there and back"
    if found.cloud.sessions is not None:
        told += f", {found.cloud.sessions} sessions"
    if trip > _SLOW_SECONDS:
        yield warning(
            "link", told, "collm run --mode auto leaves more to the cloud; see collm plan"
        )
    else:
        yield ok("link", told)


def _session(
    dial: Callable[[], Link],
    artifact: Artifact,
    placement: int | None,
    found: Probed,
    limits: Limits,
) -> Findings:
    """Say Hello as an edge with this artifact does."""
    theirs = found.cloud.fingerprint
    placed = default_placement(artifact.manifest) if placement is None else placement
    cut = 0 if placed == artifact.architecture.layers else placed
    try:
        CloudClient(
            dial(),
            fingerprint=artifact.fingerprint,
            cut=cut,
            vocabulary=artifact.architecture.vocab_size,
            limits=limits,
        ).close()
    except Refused as error:
        yield _refused(error, artifact, theirs)
    except CollmError as error:
        yield fault("session", str(error), "look at the cloud's log")
    else:
        yield ok(
            "session",
            f"the cloud has the same model ({artifact.fingerprint[:12]}) and goes on from layer "
            f"{cut}",
        )


def _refused(error: Refused, artifact: Artifact, theirs: str) -> Finding:
    ours = artifact.fingerprint[:12]
    match error.code:
        case "version":
            return fault("version", error.reason, "pip install --upgrade collm, on the older side")
        case "fingerprint":
            other = f"{theirs[:12]}…" if theirs else "another"
            return fault(
                "fingerprint",
                f"this artifact is {ours}…, the cloud's is {other}: not the same model",
                "collm pull the cloud's artifact, or start the cloud with this one",
            )
        case "placement":
            return fault("cut", error.reason, "name another --placement, or cut the artifact alike")
        case "busy" | "limits":
            return warning(
                "session", f"it has no room: {error.reason}", "try later; --max-sessions"
            )
    return _told(error, ClientSecurity())


def _told(error: CollmError, security: ClientSecurity) -> Finding:
    if isinstance(error, Refused):
        if error.code == "identity":
            given = "the token was not taken" if security.token else "no token was given"
            return fault(
                "credentials",
                f"{given}: {error.reason}",
                "give --token-file with a token of the cloud's --tokens file (it may have expired)",
            )
        if error.code == "version":
            return fault("version", error.reason, "pip install --upgrade collm, on the older side")
        return fault("session", f"refused ({error.code}): {error.reason}", "look at its log")
    if isinstance(error, LinkError):
        return fault("cloud", str(error), "is it a collm cloud, and not another program?")
    return fault(
        "version",
        f"what it says is not understood ({error})",
        "pip install --upgrade collm, on the older side",
    )
