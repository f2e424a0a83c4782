"""Artifacts over HTTP, by content: what `collm pull` fetches from.

::

    GET /artifacts                              what there is, as JSON
    GET /artifacts/FINGERPRINT/manifest.json
    GET /blobs/sha256/HEX                       with Range; HEAD too

Addresses are looked up in tables made from the manifests, so that nothing else on the disk can be
asked for. Blobs never change: they may be cached for ever. A file that is not here, as in a folder
that was pulled in part, or that has another size by now, is 404.

Not covered: hashing what is served (whoever fetches does), limits for each identity; very many idle
connections are for something in front.
"""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from collm import metrics
from collm.errors import LinkError, UsageError
from collm.limits import DEFAULT_LIMITS, Limits
from collm.link.address import parse_address
from collm.link.certificates import server_context
from collm.link.credentials import ServerSecurity, TokenFile
from collm.link.grpc_server import OPEN, check_listen
from collm.model.manifest import MANIFEST, FileEntry, Manifest
from collm.session.sources import LISTING, LISTING_VERSION

_FOR_EVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class _Blob:
    path: Path
    entry: FileEntry


class _Shelf:
    """What is served: manifests by fingerprint, blobs by hash. Raises ArtifactError, UsageError."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.listing: list[dict[str, str | int]] = []
        self._manifests: dict[str, bytes] = {}
        self._blobs: dict[str, list[_Blob]] = {}
        for folder in folders:
            Manifest.read(folder)  # or what is wrong with the folder
            # Read once: what is said of an artifact and its manifest stay of one piece.
            text = (folder / MANIFEST).read_bytes()
            manifest = Manifest.parse(text, folder)
            if manifest.fingerprint in self._manifests:
                raise UsageError(f"{folder}: its fingerprint is served already; serve one of them")
            self._manifests[manifest.fingerprint] = text
            self.listing.append(
                {
                    "name": manifest.name,
                    "fingerprint": manifest.fingerprint,
                    "manifest_sha256": hashlib.sha256(text).hexdigest(),
                    "bytes": sum(entry.bytes for entry in manifest.files.values()),
                }
            )
            for name, entry in manifest.files.items():
                self._blobs.setdefault(entry.sha256, []).append(_Blob(folder / name, entry))

    async def artifacts(self, _request: Request) -> Response:
        """GET /artifacts."""
        return JSONResponse(
            {"format": LISTING, "version": LISTING_VERSION, "artifacts": self.listing},
            headers={"Cache-Control": "no-cache"},
        )

    async def manifest(self, request: Request) -> Response:
        """GET /artifacts/FINGERPRINT/manifest.json."""
        text = self._manifests.get(request.path_params["fingerprint"])
        if text is None:
            return _not_here()
        return Response(text, media_type="application/json", headers={"Cache-Control": "no-cache"})

    async def blob(self, request: Request) -> Response:
        """GET and HEAD /blobs/sha256/HEX."""
        digest = request.path_params["digest"]
        tag = f'"{digest}"'
        for blob in self._blobs.get(digest, ()):
            try:
                found = blob.path.stat()
            except OSError:
                continue
            if found.st_size != blob.entry.bytes:
                continue
            headers = {"ETag": tag, "Cache-Control": _FOR_EVER}
            if request.headers.get("if-none-match") == tag:
                return Response(status_code=304, headers=headers)
            return FileResponse(
                blob.path,
                stat_result=found,
                headers=headers,
                media_type="application/octet-stream",
            )
        return _not_here()


class _Guard:
    """Nothing is answered to strangers."""

    def __init__(self, app: ASGIApp, tokens: TokenFile | None) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and self._tokens is not None:
            kind, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or self._tokens.identity(token.strip()) is None:
                metrics.REFUSALS.labels("credentials").inc()
                app = PlainTextResponse(
                    "no valid credentials\n", 401, headers={"WWW-Authenticate": "Bearer"}
                )
        await app(scope, receive, send)


def _not_here() -> Response:
    return PlainTextResponse("not here\n", 404)


@contextmanager
def artifact_server(
    folders: Sequence[Path],
    listen: str,
    *,
    security: ServerSecurity = OPEN,
    insecure: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> Iterator[str]:
    """Serve artifact folders on `listen` from a thread; the address, http:// or https://.

    security, insecure: as for links. Raises ArtifactError, UsageError for an address that other
    machines reach without encryption and authentication unless `insecure`, LinkError where it
    cannot be listened on.
    """
    host = check_listen(listen, security, insecure=insecure, option="--artifacts")
    shelf = _Shelf(folders)
    routes = [
        Route("/artifacts", shelf.artifacts),
        Route(f"/artifacts/{{fingerprint}}/{MANIFEST}", shelf.manifest),
        Route("/blobs/sha256/{digest}", shelf.blob),
    ]
    tokens = TokenFile(security.tokens) if security.tokens is not None else None
    config = uvicorn.Config(
        _Guard(Starlette(routes=routes), tokens),
        lifespan="off",
        log_config=None,
        log_level="critical",  # what strangers send is no news
        access_log=False,
        server_header=False,
        limit_concurrency=limits.max_http_clients,
        timeout_graceful_shutdown=1,
    )
    config.load()
    if security.is_encrypted:
        config.ssl = server_context(security)
    listening = _listening(listen, host)
    server = uvicorn.Server(config)
    thread = threading.Thread(
        target=server.run, args=([listening],), name="collm-artifacts", daemon=True
    )
    thread.start()
    try:
        deadline = time.monotonic() + limits.spawn_seconds
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                raise LinkError(f"cannot serve artifacts on {listen}")
            time.sleep(0.005)
        scheme = "https" if security.is_encrypted else "http"
        yield f"{scheme}://{host}:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(limits.shutdown_seconds)
        listening.close()


def _listening(listen: str, host: str) -> socket.socket:
    _, port = parse_address(listen, any_port=True)
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), port), family=family, backlog=128)
    except OSError as error:
        raise LinkError(f"cannot listen on {listen}: {error.strerror or error}") from None
