"""`collm bench tiers`: what is made of the answers, and what is refused before anything runs."""

from __future__ import annotations

import pytest

from collm.bench.tiers import TierAnswer, answers_json, tier_rows
from collm.bench.tiers_world import THREE, TWO
from collm.cli.bench_tiers import parse_links
from collm.errors import UsageError


def answer(arrangement: str, turn: int, wall: float, cpu: float, **sources: int) -> TierAnswer:
    return TierAnswer(
        mode="threshold",
        arrangement=arrangement,
        prompt=0,
        round=turn,
        sources={name.replace("_", "@"): count for name, count in sources.items()},
        wall_seconds=wall,
        first_token_seconds=wall / 10,
        device_bytes_up=900,
        device_bytes_down=100,
        cloud_bytes_up=400,
        cloud_bytes_down=100,
        cloud_positions=20,
        cloud_cpu_seconds=cpu,
        server_cpu_seconds=0.5,
        is_the_models=turn == 0,
    )


def test_shares_and_ratios_are_those_of_pairs() -> None:
    answers = [
        answer(TWO, 0, 2.0, 1.0, exit_5=4, cloud=6),
        answer(TWO, 1, 4.0, 2.0, exit_5=4, cloud=6),
        answer(THREE, 0, 1.0, 0.25, cloud=2, server_15=4, exit_5=4),
        answer(THREE, 1, 2.0, 0.5, cloud=1, server_15=5, exit_5=4),
    ]
    two, three = tier_rows(answers_json(answers), tokens=10)
    assert list(three.shares.items()) == [("exit@5", 0.4), ("server@15", 0.45), ("cloud", 0.15)]
    assert (two.wall_ratio, three.wall_ratio, three.cloud_cpu_ratio) == (1.0, 0.5, 0.25)
    assert (three.token_seconds, three.device_bytes, three.cloud_bytes) == (0.15, 100.0, 50.0)
    assert (three.identical, three.answers) == (1, 2)


def test_links_are_two_and_named() -> None:
    near, far = parse_links("server-cloud=wan,device-server=rtt:4ms@100mbit")
    assert (near.round_trip_seconds, far.name) == (pytest.approx(0.004), "wan")
    for text in ("wan", "device-server=wan", "a=wan,b=wan", "device-server=wan,server-cloud=far"):
        with pytest.raises(UsageError):
            parse_links(text)
