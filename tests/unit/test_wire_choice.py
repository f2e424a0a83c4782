"""Constraints and alternatives on the wire: bounded before memory is taken for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.unit.test_wire_messages import BOUND, LIMITS, PLACES, VERDICT, WARM, decode

from collm.errors import ProtocolError
from collm.wire import session_pb2 as pb
from collm.wire.encoding import decode_cloud, encode
from collm.wire.messages import Verify


def _raw_verify(**constraint: Any) -> bytes:
    made = encode(Verify(epoch=0, base=0, draft=(), sampling=BOUND))
    envelope = pb.Envelope.FromString(made)
    for name, value in constraint.items():
        setattr(envelope.verify.sampling.constraint, name, value)
    return envelope.SerializeToString()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "yaml"}, "constraint 'yaml': expected one of"),
        ({"kind": ""}, "expected one of"),
        ({"kind": "x" * 100_000}, "expected one of"),
        ({"text": "a" * (64 * 1024 + 1)}, "longer than 65536 bytes"),
        ({"text": "ö" * (33 * 1024)}, "longer than 65536 bytes"),
        ({"text": ""}, "expected text"),
        ({"start": 2**24 + 1}, "constraint start"),
    ],
)
def test_constraints_that_cannot_be_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ProtocolError, match=said) as caught:
        decode(_raw_verify(**given))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("ids", "logprobs", "said"),
    [
        ([1, 2], [-1.0], "2 alternatives with 1 log-probabilities"),
        ([], [-1.0], "0 alternatives with 1"),
        ([1, 2], [-1.0, -2.0], "for 3 tokens"),  # not as many for each place
        ([1] * 63, [-1.0] * 63, "63 alternatives; at most 60"),
        ([2**24 + 1, 1, 1], [-1.0] * 3, "alternative is"),
        ([1, 1, 1], [-1.0, 0.5, -1.0], "must not be above 0"),
        ([1, 1, 1], [-1.0, float("nan"), -1.0], "must be finite"),
        ([1, 1, 1], [-1.0, float("-inf"), -1.0], "must be finite"),
    ],
)
def test_alternatives_that_cannot_be_are_refused(
    ids: list[int], logprobs: list[float], said: str
) -> None:
    envelope = pb.Envelope.FromString(encode(VERDICT))
    envelope.verdict.alternative_ids.extend(ids)
    envelope.verdict.alternative_logprobs.extend(logprobs)
    with pytest.raises(ProtocolError, match=said):
        decode_cloud(envelope.SerializeToString(), LIMITS)


def test_places_with_unlike_numbers_of_alternatives_do_not_travel() -> None:
    with pytest.raises(ProtocolError, match="not as many alternatives each"):
        encode(replace(VERDICT, alternatives=(PLACES[0], PLACES[1][:1], PLACES[2])))


def test_alternatives_take_eight_bytes_each() -> None:
    more = len(encode(replace(VERDICT, alternatives=PLACES))) - len(encode(VERDICT))
    assert more <= 8 * 6 + 8
    plain = Verify(epoch=0, base=0, draft=(), sampling=WARM)
    assert len(encode(plain)) < 70  # and who asks for nothing pays nothing
