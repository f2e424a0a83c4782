"""`collm eval quality` as a user runs it: real model, real cloud process, gRPC between them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.e2e.conftest import collm

pytestmark = pytest.mark.e2e


def test_modes_are_compared_and_a_second_run_has_nothing_left_to_do(
    smollm2: Path, tmp_path: Path
) -> None:
    data = tmp_path / "prompts.jsonl"
    records = [
        {"prompt": "Name three colours.", "reference": "Red, green and blue."},
        {"prompt": "Write a loop in Python.", "domain": "code"},
    ]
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    arguments = (
        "eval", "quality", smollm2, "--data", data, "--tokens", "12", "--threads", "1",
        "--modes", "verified,threshold,standalone", "--criterion", "confidence:0.6",
        "--setting", "threshold criterion=margin:0.3 wire=f16 exits=5,15 placement=15 name=f16",
        "--setting", "refine segment=6 name=mended", "--out", tmp_path / "out",
    )  # fmt: skip
    ran = collm(*arguments, "--json", "--plot", tmp_path / "plots", timeout=110)
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert report["domains"] == ["chat", "code", "all"]
    found = {one["label"]: one["figures"] for one in report["settings"] if one["domain"] == "all"}
    assert list(found) == [
        "cloud", "verified", "threshold confidence:0.6", "standalone confidence:0.6", "f16",
        "mended",
    ]  # fmt: skip
    for label in ("cloud", "verified"):
        for figure in ("agreement", "identical_prefix", "same_places", "rouge_full"):
            assert found[label][figure]["value"] == 1.0, (label, figure)
    assert found["verified"]["logprob_gap"]["value"] == 0.0
    assert found["cloud"]["saved_flops"]["value"] == found["cloud"]["saved_time"]["value"] == 0.0
    alone = found["standalone confidence:0.6"]
    assert alone["agreement"]["value"] < 1 and alone["logprob_gap"]["value"] < 0
    assert alone["requests_per_token"]["value"] == alone["bytes_up"]["value"] == 0
    assert alone["saved_flops"]["value"] == 1
    shared = found["threshold confidence:0.6"]
    assert 0 < shared["requests_per_token"]["value"] <= 1
    assert 0 < shared["saved_flops"]["value"] < 1
    assert 0.4 < found["f16"]["bytes_up"]["value"] / shared["bytes_up"]["value"] < 0.6
    assert found["mended"]["requests_per_token"]["value"] > 0
    assert len(list((tmp_path / "plots").glob("*.png"))) == 6
    kept = (tmp_path / "out" / "answers.jsonl").read_bytes()
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report

    again = collm(*arguments, timeout=110)
    assert again.code == 0, again.err
    assert (tmp_path / "out" / "answers.jsonl").read_bytes() == kept
    assert "Quality: code, 1 prompts" in again.out and "f16" in again.out
    other = collm(*arguments, "--tokens", "13")
    assert other.code == 2 and "--tokens 12, this run has 13" in other.err
