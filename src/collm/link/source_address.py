"""`http://HOST[:PORT][/PATH]`, where files are fetched from."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

from collm.errors import UsageError
from collm.link.address import is_loopback
from collm.link.credentials import ClientSecurity


def is_source(text: str) -> bool:
    """Whether `text` is meant as an address, and not as a folder."""
    return text.lower().startswith(("http://", "https://"))


def check_source(url: str, security: ClientSecurity) -> None:
    """Raise UsageError unless `url` can be asked, without giving a token away on the way."""
    parts = _split(url)
    if security.token and parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise UsageError(
            f"{url}: the token would travel unencrypted; expected https:// (see --ca), or no token"
        )


def origin(url: str) -> str:
    """Scheme, host and port."""
    parts = _split(url)
    return f"{parts.scheme}://{parts.netloc}"


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        is_sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_sound = None
    if not is_sound or parts.username or parts.query or parts.fragment or not url.isprintable():
        raise UsageError(f"{url[:80]!r}: expected http://HOST:PORT or https://HOST/FOLDER")
    return parts
