"""Who is let in: known hosts, no foreign pages, keys.

A page of another site can make a browser send requests here. It cannot read the answers (no CORS
unless asked for), a request that does something needs JSON, which a foreign page may not send
unasked, and one whose Origin is another site's is refused. A name that someone points at 127.0.0.1
(DNS rebinding) would make a foreign page "our own": on loopback only known names are served.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from collm import metrics
from collm.link.address import is_loopback
from collm.link.credentials import TokenFile
from collm.serve.openai.errors import ApiError

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_OPEN = ("/", "/healthz", "/readyz", "/openapi.json", "/favicon.ico")
"""What needs no key: nothing of a model's or a user's is there."""
_OWNER = "collm.owner"
_HARMLESS = ("GET", "HEAD", "OPTIONS")


def allowed_hosts(host: str, more: Iterable[str]) -> frozenset[str] | None:
    """Names under which a server on `host` may be spoken to; None: any.

    Other machines know a server that they reach by names that it does not: it is asked to check
    them only where `more` tells some.
    """
    named = frozenset(_bare(one) for one in more)
    if is_loopback(host):
        return named | LOCAL_NAMES | {_bare(host)}
    return named | LOCAL_NAMES | {_bare(host)} if named else None


class Guard:
    """In front of all routes."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: frozenset[str] | None,
        origins: Iterable[str],
        keys: TokenFile | None,
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._origins = frozenset(origins)
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers, path = Headers(scope=scope), str(scope["path"])
        host = headers.get("host", "")
        if self._hosts is not None and not self._is_known(host):
            raise ApiError(
                403,
                f"the name {_bare(host)!r} is none of this server's; start it with --allow-host "
                "to be reached by it",
                code="forbidden_host",
            )
        origin = headers.get("origin")
        is_foreign = origin is not None and not self._is_own(origin, host)
        if is_foreign and scope["method"] not in _HARMLESS:
            raise ApiError(
                403,
                f"pages of {origin} may not use this server; start it with --cors to let them",
                code="forbidden_origin",
            )
        needs_key = self._keys is not None and path not in _OPEN and not path.startswith("/page/")
        key = _key(headers)
        if needs_key and (key is None or not self._is_valid(key)):
            metrics.REFUSALS.labels("credentials").inc()
            raise ApiError(
                401,
                "no valid API key; expected the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if needs_key and key is not None:
            scope.setdefault("state", {})[_OWNER] = hashlib.sha256(key.encode()).hexdigest()

    def _is_known(self, host: str) -> bool:
        assert self._hosts is not None
        name = _bare(host)
        if name in self._hosts:
            return True
        try:  # an address cannot be pointed elsewhere
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False

    def _is_own(self, origin: str, host: str) -> bool:
        if "*" in self._origins or origin in self._origins:
            return True
        try:
            theirs = urlsplit(origin).netloc
        except ValueError:  # what is no address is nobody's
            return False
        return bool(host) and theirs.lower() == host.lower()

    def _is_valid(self, key: str) -> bool:
        assert self._keys is not None
        return self._keys.identity(key) is not None


def owner_of(scope: Scope) -> str:
    """Who asks, as far as keys tell; empty where everybody may."""
    return str(scope.get("state", {}).get(_OWNER, ""))


def _key(headers: Headers) -> str | None:
    kind, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if kind.lower() == "bearer" else None


def _bare(host: str) -> str:
    """A Host header without its port, an IPv6 address without its brackets."""
    host = host.strip().lower().rstrip(".")
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name, colon, port = host.rpartition(":")
    return name.rstrip(".") if colon and port.isdecimal() and ":" not in name else host
