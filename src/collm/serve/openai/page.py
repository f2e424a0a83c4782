"""The chat page: files that ship with the package, read once and served from memory.

Only what is in the folder can be asked for. The page may load nothing from elsewhere, and no other
site may show it in a frame.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from collm.serve.openai.errors import ApiError

FOLDER = Path(__file__).parents[1] / "page"
_INDEX = "index.html"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "object-src 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asked for again each time, and not sent again: see the ETag
}


@dataclass(frozen=True)
class _File:
    content: bytes
    kind: str
    tag: str


class Page:
    """All files of a folder whose kinds a browser should get."""

    def __init__(self, folder: Path) -> None:
        self._files = {
            path.relative_to(folder).as_posix(): _read(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.suffix in _TYPES
        }

    def routes(self) -> list[Route]:
        """`/` and `/page/…`."""
        return [
            Route("/", self._index, methods=["GET"]),
            Route("/favicon.ico", self._icon, methods=["GET"]),
            Route("/page/{name:path}", self._file, methods=["GET"]),
        ]

    async def _index(self, request: Request) -> Response:
        return self._answer(request, _INDEX)

    async def _icon(self, request: Request) -> Response:
        named = ("favicon.ico", "favicon.svg", "icon.svg")
        found = next((name for name in named if name in self._files), named[0])
        return self._answer(request, found)

    async def _file(self, request: Request) -> Response:
        return self._answer(request, request.path_params["name"])

    def _answer(self, request: Request, name: str) -> Response:
        found = self._files.get(name)
        if found is None:
            raise ApiError(404, "there is no such file of the page", code="not_found")
        headers = {**_HEADERS, "ETag": found.tag}
        if request.headers.get("if-none-match") == found.tag:
            return Response(status_code=304, headers=headers)
        return Response(found.content, media_type=found.kind, headers=headers)


def _read(path: Path) -> _File:
    content = path.read_bytes()
    return _File(content, _TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')
