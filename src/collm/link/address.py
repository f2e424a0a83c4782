"""`HOST:PORT`, the only kind of address links take.

gRPC itself would accept much more (unix sockets, resolver schemes) and report a typing
mistake as a name that does not resolve.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Final

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
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(one).is_loopback for one in found)
