"""Who reaches what listens on an address, and that strangers have to be invited."""

from __future__ import annotations

import asyncio
import socket

import pytest

from collm.errors import UsageError
from collm.link.address import is_loopback
from collm.link.base import Service
from collm.link.grpc_server import OPEN, check_listen, serve


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "[::1]", "localhost"])
def test_only_this_machine(host: str) -> None:
    assert is_loopback(host)
    assert check_listen(f"{host}:0", OPEN, insecure=False) == host


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "10.0.0.1", "[fe80::1%eth0]", "no.invalid"])
def test_strangers_are_refused_unless_invited(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(UsageError, match="--insecure"):
        check_listen(f"{host}:0", OPEN, insecure=False)
    assert check_listen(f"{host}:0", OPEN, insecure=True) == host


def test_a_name_for_both_is_not_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    def both(*_: object) -> list[tuple[object, ...]]:
        return [(0, 0, 0, "", ("127.0.0.1", 0)), (0, 0, 0, "", ("10.0.0.1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    assert not is_loopback("both.example")


def test_the_server_itself_refuses() -> None:
    class Nobody(Service):
        pass

    with pytest.raises(UsageError, match="--insecure"):
        asyncio.run(serve(Nobody(), "0.0.0.0:0"))  # type: ignore[abstract]
