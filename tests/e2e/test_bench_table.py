"""`collm bench table` and `collm link`: real processes, a shaped link, the embedded model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.e2e.conftest import collm

pytestmark = pytest.mark.e2e

EXACT = ["plain cloud", "cloud, self-speculation", "fair split", "verified", "verified, oracle 0.9"]
SLUGS = "plain-cloud,cloud-self-speculation,fair-split,verified,verified-oracle-0.9,standalone"


@pytest.mark.timeout(180)
def test_a_table_over_a_shaped_link(smollm2: Path, tmp_path: Path) -> None:
    words = ["bench", "table", smollm2, "--links", "rtt:20ms", "--contenders", SLUGS]
    words += ["--limit", "1", "--tokens", "12", "--rounds", "1", "--out", tmp_path]
    ran = collm(*words)
    assert ran.code == 0, ran.err
    raw = json.loads((tmp_path / "table.json").read_text())
    measured = raw["links"][0]["measured"]
    assert 0.02 <= measured["round_trip_median"] < 0.06
    answers = {one["contender"]: one for one in raw["answers"]}
    assert all(answers[name]["identical"] for name in EXACT)
    fair, cloud = answers["fair split"], answers["plain cloud"]
    assert fair["wall_seconds"] > 12 * 0.02  # a trip a token
    assert answers["verified, oracle 0.9"]["requests"] < fair["requests"]
    assert answers["standalone"]["bytes_up"] == 0 < cloud["cloud_cpu_seconds"]
    report = (tmp_path / "report.md").read_text()
    assert "| verified, oracle 0.9 |" in report and "rtt:20ms" in report

    again = collm(*words)  # everything is there: nothing is answered again
    assert again.code == 0, again.err
    assert json.loads((tmp_path / "table.json").read_text())["answers"] == raw["answers"]


@pytest.mark.timeout(180)
def test_peers_answer_over_the_same_link(smollm2: Path, tmp_path: Path) -> None:
    out = tmp_path / "peers.json"
    words = ["bench", "peers", smollm2, "--limit", "1", "--tokens", "4", "--rounds", "1"]
    ran = collm(*words, "--contenders", "fair-split", "--link", "loopback", "--out", out)
    assert ran.code == 0, ran.err
    assert "llama.cpp's RPC split was left out" in ran.err
    raw = json.loads(out.read_text())
    names = ["plain cloud", "fair split", "Transformers", "Transformers, early exit"]
    assert [peer["name"] for peer in raw["peers"]] == names
    prefixes = {one["peer"]: one["same_prefix"] for one in raw["answers"]}
    assert prefixes["fair split"] == 4
    assert prefixes["Transformers"] == prefixes["Transformers, early exit"]  # drafts change no text
