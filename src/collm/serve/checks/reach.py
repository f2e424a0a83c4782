"""The way to another machine: name, TCP, TLS, and whose clock is wrong."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from collm.errors import one_line
from collm.limits import Limits
from collm.link.credentials import ClientSecurity
from collm.serve.checks.finding import Finding, Findings, fault, ok, warning

_SOON_DAYS = 14
_LISTEN_SECONDS = 0.5
_SKEW_SECONDS = 60.0
_MOST_SKEW_SECONDS = 300.0
_EXPIRED, _NOT_YET, _NO_HOST, _NO_IP = 10, 9, 62, 64
_UNKNOWN = (2, 18, 19, 20, 21)
"""OpenSSL's numbers (X509_V_ERR_…) of what is wrong with a certificate."""


@dataclass
class Reached:
    """How far one came; each step is tried only after the one before."""

    tcp: bool = False
    tls: bool = False


def check_way(host: str, port: int, limits: Limits, reached: Reached, check: str) -> Findings:
    """Name and TCP."""
    bare = host.strip("[]")
    try:
        found = socket.getaddrinfo(bare, port, type=socket.SOCK_STREAM)
    except OSError as error:
        yield fault(
            check, f"{bare}: no such name ({error.strerror})", "look at the name, or at DNS here"
        )
        return
    started = time.perf_counter()
    try:
        socket.create_connection((bare, port), limits.connect_seconds).close()
    except OSError as error:
        said = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        address = str(found[0][4][0])
        told = f" ({address})" if address != bare else ""
        yield fault(
            check,
            f"{host}:{port}{told}: {one_line(said)}",
            "is it started, on that port, and does a firewall let it through?",
        )
        return
    reached.tcp = True
    yield ok(check, f"{host}:{port} answers in {1000 * (time.perf_counter() - started):.1f} ms")


def check_tls(
    host: str,
    port: int,
    security: ClientSecurity,
    limits: Limits,
    reached: Reached,
    *,
    protocols: Sequence[str] = ("h2",),
    check: str = "TLS",
) -> Findings:
    """The certificate as this machine sees it: chain, name, time."""
    bare = host.strip("[]")
    if security.ca is None:
        if _speaks_tls(bare, port, limits):
            yield fault(
                check,
                f"{host}:{port} speaks TLS",
                "give --ca FILE, the authority that signed its certificate",
            )
            return
        reached.tls = True
        return
    try:
        context = ssl.create_default_context(cafile=security.ca)
        if security.certificate is not None:
            # A password would be asked for at the terminal, of nobody.
            context.load_cert_chain(security.certificate, security.key, password=lambda: "")
    except (OSError, ValueError) as error:
        yield fault(check, f"{security.ca}: {one_line(error)}", "give PEM files that are readable")
        return
    context.set_alpn_protocols(list(protocols))
    try:
        with (
            socket.create_connection((bare, port), limits.connect_seconds) as raw,
            context.wrap_socket(raw, server_hostname=bare) as connection,
        ):
            certificate = connection.getpeercert() or {}
            is_open = _stays_open(connection, protocols)
    except ssl.SSLCertVerificationError as error:
        yield _judged(error, host, security.ca, _seen(bare, port, limits), check)
        return
    except ssl.SSLError as error:
        said = one_line(error.reason or error)
        if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"):
            yield fault(
                check,
                f"{host}:{port} speaks no TLS",
                "start it with --tls-cert and --tls-key, or leave --ca out",
            )
        elif "CERTIFICATE" in said or "UNKNOWN_CA" in said:
            yield _wants_certificate(check, host, port, security)
        else:
            yield fault(check, f"{host}:{port}: {said}", "look at its log")
        return
    except OSError as error:
        yield fault(check, f"{host}:{port}: {one_line(error)}", "does it speak TLS? see its log")
        return
    if not is_open:
        yield _wants_certificate(check, host, port, security)
        return
    reached.tls = True
    ends = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    days = (ends - time.time()) / 86_400
    told = f"the certificate is {bare}'s, good for {days:.0f} more days"
    if days < _SOON_DAYS:
        yield warning(check, told, "put a new one in its files; a running cloud reads it again")
    else:
        yield ok(check, told)


def _stays_open(connection: ssl.SSLSocket, protocols: Sequence[str]) -> bool:
    """In TLS 1.3 what a server thinks of our certificate comes after the handshake. SSLError."""
    if "h2" not in protocols:
        return True  # it waits for us to speak
    connection.settimeout(_LISTEN_SECONDS)
    try:
        return bool(connection.recv(1))
    except TimeoutError:
        return True
    except ConnectionResetError:
        return False


def _wants_certificate(check: str, host: str, port: int, security: ClientSecurity) -> Finding:
    given = "does not take this one" if security.certificate else "none was given"
    return fault(
        check,
        f"{host}:{port} hangs up after the handshake: it asks edges for a certificate, and {given}",
        "give --cert and --key, signed by the authority in the cloud's --client-ca",
    )


def _judged(
    error: ssl.SSLCertVerificationError, host: str, ca: Path, seen: str, check: str
) -> Finding:
    now = datetime.now(UTC).isoformat(sep=" ", timespec="minutes")[:16]
    said = one_line(error.verify_message)
    match error.verify_code:
        case code if code == _EXPIRED:
            return fault(
                check,
                f"the certificate of {host} has expired{seen}; this machine's clock says {now} UTC",
                "put a new one in the cloud's files, or set the clock if it is wrong",
            )
        case code if code == _NOT_YET:
            return fault(
                check,
                f"the certificate of {host} is not valid yet{seen}; this machine's clock says "
                f"{now} UTC",
                "set this machine's clock (timedatectl set-ntp true)",
            )
        case code if code in (_NO_HOST, _NO_IP):
            return fault(
                check,
                f"the certificate is not for the name {host} ({said})",
                "call the cloud by a name that its certificate has, or make one with this name",
            )
        case code if code in _UNKNOWN:
            return fault(
                check,
                f"the certificate of {host} is not signed by the authority in {ca} ({said})",
                "give the --ca file of whoever made the certificate",
            )
    return fault(check, f"the certificate of {host}: {said}", "make a new one")


def _seen(host: str, port: int, limits: Limits) -> str:
    """From when to when the certificate holds, looked at without trusting it."""
    try:
        from cryptography import x509
    except ImportError:  # only in development: then without the dates
        return ""
    context = _blind()
    try:
        with (
            socket.create_connection((host, port), limits.connect_seconds) as raw,
            context.wrap_socket(raw, server_hostname=host) as connection,
        ):
            found = x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")
    except (OSError, ValueError):
        return ""
    first, last = found.not_valid_before_utc, found.not_valid_after_utc
    return f" (valid {first:%Y-%m-%d} to {last:%Y-%m-%d})"


def _speaks_tls(host: str, port: int, limits: Limits) -> bool:
    try:
        with (
            socket.create_connection((host, port), limits.connect_seconds) as raw,
            _blind().wrap_socket(raw, server_hostname=host),
        ):
            return True
    except ssl.SSLError as error:
        return "ALERT" in str(error.reason)  # it answered in TLS
    except OSError:
        return False


def _blind() -> ssl.SSLContext:
    """Sees any certificate, and sends nothing over it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


def check_clock(date: str, whose: str, seconds: float) -> Findings:
    """This clock against a Date header. seconds: that the answer took."""
    try:
        theirs = parsedate_to_datetime(date)
    except ValueError:
        return
    if theirs.tzinfo is None:
        theirs = theirs.replace(tzinfo=UTC)
    skew = (datetime.now(UTC) - theirs).total_seconds() - seconds / 2
    which = "ahead of" if skew > 0 else "behind"
    told = f"this clock is {abs(skew):,.0f} s {which} {whose}'s"
    todo = "set the clock of whichever is wrong (timedatectl set-ntp true)"
    if abs(skew) > _MOST_SKEW_SECONDS:
        yield fault("clock", f"{told}: certificates and tokens are judged by it", todo)
    elif abs(skew) > _SKEW_SECONDS:
        yield warning("clock", told, todo)
    else:
        yield ok("clock", f"as {whose}'s, within {max(1.0, abs(skew)):.0f} s")
