"""`http://HOST[:PORT][/PATH]`, where files are fetched from."""

from __future__ import annotations

from urllib.parse import SplitResult

from collm.errors import UsageError
from collm.link.address import is_loopback, split_url
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
    expected = "http://HOST:PORT or https://HOST/FOLDER"
    parts = split_url(url, expected)
    if parts.username or parts.query or parts.fragment:
        raise UsageError(f"{url[:80]!r}: expected {expected}")
    return parts
