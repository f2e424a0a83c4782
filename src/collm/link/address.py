"""`HOST:PORT`, the only kind of address links take.

gRPC itself would accept much more (unix sockets, resolver schemes) and report a typing
mistake as a name that does not resolve.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Final
from urllib.parse import SplitResult, urlsplit

from collm.errors import UsageError, one_line

_ADDRESS: Final = re.compile(
    r"(?P<host>[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,253})|\[[0-9A-Fa-f:.]{2,45}(?:%[\w.-]+)?\])"
    r":(?P<port>[0-9]{1,5})",
    re.ASCII,
)


def parse_address(text: str, *, any_port: bool = False) -> tuple[str, int]:
    """Host (IPv6 in brackets) and port; port 0 only with `any_port`.

    Raises `ValueError` with a line that says what is wrong.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:80]!r} is not an address HOST:PORT such as 127.0.0.1:7070")
    port = int(match["port"])
    if not (0 if any_port else 1) <= port <= 65_535:
        raise ValueError(f"{text!r}: port {port} is not 1 to 65535")
    return match["host"], port


def split_url(text: str, expected: str = "a URL such as http://127.0.0.1:8000") -> SplitResult:
    """An http or https address in its parts, with a sound port if any. Raises UsageError."""
    try:
        parts = urlsplit(text)
        is_sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a bracket that is not closed, a port that is no number, …
        is_sound = None
    if not is_sound or not text.isprintable() or " " in text:
        raise UsageError(f"{one_line(text, 80)!r}: expected {expected}")
    return parts


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on `host`, as `parse_address` gives it.

    A name counts by what it stands for now; one that stands for nothing does not.
    """
    text = host.strip("[]").partition("%")[0]
    try:
        return ipaddress.ip_address(text).is_loopback
    except ValueError:
        pass
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(text, None)}
    except (OSError, UnicodeError):  # also what no name can be
        return False
    return bool(found) and all(ipaddress.ip_address(one).is_loopback for one in found)
