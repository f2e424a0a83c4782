"""Who is let in, and what the others are told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from collm.errors import ContextFull, LinkError, ProtocolError, Refused
from collm.limits import Limits
from collm.wire.encoding import decode_cloud, encode
from collm.wire.handshake import check_hello, hello_of, refusal_for
from collm.wire.messages import PROTOCOL_MAJOR, PROTOCOL_MINOR, REFUSAL_CODES, Hello

GOOD = Hello(
    protocol_major=PROTOCOL_MAJOR,
    protocol_minor=PROTOCOL_MINOR,
    fingerprint="aaaa",
    cut=15,
    wire_format="f32",
    software="test",
)


def check(hello: Hello) -> None:
    check_hello(hello, fingerprint="aaaa", cuts=(15, 0, 10), wire_formats=("ids", "f32"))


def test_fitting_clients_are_accepted() -> None:
    check(GOOD)
    check(replace(GOOD, cut=10))
    check(replace(GOOD, cut=0, wire_format="ids"))


def test_an_older_minor_version_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collm.wire.handshake.PROTOCOL_MINOR", 3)
    check(replace(GOOD, protocol_minor=2))


@pytest.mark.parametrize(
    ("change", "code", "given", "served"),
    [
        ({"protocol_major": 9}, "version", f"9.{PROTOCOL_MINOR}", f"1.{PROTOCOL_MINOR}"),
        ({"protocol_minor": 7}, "version", "1.7", f"1.{PROTOCOL_MINOR}"),
        ({"fingerprint": "bbbb"}, "fingerprint", "bbbb", "aaaa"),
        ({"cut": 12}, "placement", "12", "0, 10, 15"),
        ({"wire_format": "int4"}, "wire_format", "int4", "f32, ids"),
        ({"cut": 0}, "placement", "cut 0", "f32"),
        ({"wire_format": "ids"}, "placement", "cut 15", "ids"),
    ],
)
def test_refusals_name_what_was_given_and_what_is_served(
    change: dict[str, Any], code: str, given: str, served: str
) -> None:
    with pytest.raises(Refused) as caught:
        check(replace(GOOD, **change))
    assert caught.value.code == code
    assert given in caught.value.reason
    assert served in caught.value.reason


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Refused("busy", "later"), "busy"),
        (Refused("made up", "x"), "internal"),
        (ProtocolError("x"), "protocol"),
        (ContextFull("x"), "limits"),
        (LinkError("two\nlines \x1b[31m \ud800" + "é" * 5000), "internal"),
    ],
)
def test_every_error_becomes_a_refusal_that_arrives(error: Any, code: str) -> None:
    refusal = refusal_for(error)
    assert refusal.code == code
    assert refusal.code in REFUSAL_CODES
    assert decode_cloud(encode(refusal), Limits()) == refusal


def test_a_cloud_of_1_5_takes_a_client_of_today(monkeypatch: pytest.MonkeyPatch) -> None:
    """What 1.6 brought is in no session."""
    monkeypatch.setattr("collm.wire.handshake.PROTOCOL_MINOR", 5)
    check(hello_of("collm", GOOD.fingerprint, GOOD.cut, GOOD.wire_format))
