"""The report of `collm bench table`: figures by hand, break-even, and what people read."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from collm.bench.table_figures import break_even, rows
from collm.bench.table_report import markdown


def answer(link: str, contender: str, prompt: str, wall: float, cpu: float) -> dict[str, Any]:
    """Five tokens; the first after a fifth of the time."""
    return {
        "link": link, "contender": contender, "prompt": prompt, "domain": "chat", "round": 0,
        "prompt_tokens": 7, "wall_seconds": wall, "first_token_seconds": wall / 5,
        "gap_seconds": [wall / 5] * 4, "edge_seconds": wall / 4, "cloud_seconds": wall / 2,
        "edge_cpu_seconds": 0.1, "cloud_cpu_seconds": cpu, "cloud_flops": 10 * cpu, "requests": 2,
        "bytes_up": 1000, "bytes_down": 10, "same_prefix": 5, "same_places": 5, "longest": 5,
        "agreed": 5, "logprob": -2.5, "rouge_full": None, "identical": True,
    }  # fmt: skip


def link(name: str, trip: float) -> dict[str, Any]:
    return {"name": name, "round_trip_seconds": trip, "jitter_seconds": 0.0,
            "bits_per_second": 3e7, "measured": None}  # fmt: skip


@pytest.fixture
def raw() -> dict[str, Any]:
    answers = []
    for prompt, factor in (("a", 1.0), ("b", 2.0)):  # b is slow for everyone
        for where, ours in (("near", 0.8), ("far", 1.2)):
            answers.append(answer(where, "plain cloud", prompt, 1.0 * factor, 1.0))
            answers.append(answer(where, "verified", prompt, ours * factor, 0.25))
    contenders = [
        {"name": name, "kind": kind, "note": "a note", "placement": 15, "cloud_first_layer": 15}
        for name, kind in (("plain cloud", "baseline"), ("verified", "ours"), ("absent", "ours"))
    ]
    return {
        "machine": {"cpu": "a CPU", "usable_cores": 2, "system": "Linux", "versions": {"x": "1"}},
        "commit": "abc", "date": "2026-11-24", "command": "collm bench table my-model",
        "artifact": {"model": "M", "weights": "int4", "layers": 30, "fingerprint": "f"},
        "options": {"prompts": 2, "rounds": 1, "tokens": 5, "naive_tokens": 3, "placement": 15,
                    "threads": 1, "cloud_load": 0, "edge_load": 0, "cores_shared": False},
        "noise": {"load_before": 0.1, "load_after": 0.2, "probe_variation": None},
        "links": [link("far", 0.05), link("near", 0.01)],
        "contenders": contenders, "answers": answers,
    }  # fmt: skip


def test_figures_are_those_worked_out_by_hand(raw: dict[str, Any]) -> None:
    plain, ours = rows(raw, "near")
    assert plain.against_plain is not None and plain.against_plain.value == 1
    assert ours.against_plain is not None
    assert ours.against_plain.value == pytest.approx(0.8)  # paired: b's slowness cancels
    assert (ours.against_plain.low, ours.against_plain.high) == pytest.approx((0.8, 0.8))
    assert ours.wall == pytest.approx((0.8 + 1.6) / 2 / 5)
    assert ours.communication == pytest.approx(ours.wall / 4)
    assert ours.cpu_saved == pytest.approx(0.75)
    assert (ours.requests, ours.logprob, ours.identical) == (0.4, -0.5, 1)


def test_break_even_lies_between_the_links_where_the_gain_ends(raw: dict[str, Any]) -> None:
    assert break_even(raw, "verified") == pytest.approx(0.03)
    assert break_even(raw, "absent") is None


def test_every_link_has_its_tables_and_nothing_is_left_open(raw: dict[str, Any]) -> None:
    text = markdown(raw)
    lines = text.splitlines()
    assert sum(line.startswith("| verified |") for line in lines) == 5  # two a link, break-even
    for line, after in pairwise(lines):
        if line.startswith("|") and after.startswith("|"):
            assert line.count("|") == after.count("|")
    assert "0.80 × [0.80, 0.80]" in text and "30.0 ms" in text
    assert "None" not in text and "nan" not in text
    assert markdown(raw) == text
