"""Modes, criteria and wire formats through the command line, over gRPC, on the real model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import collm
from tests.e2e.test_bad_input import check

from collm.config import Generation
from collm.limits import DEFAULT_LIMITS
from collm.link.grpc_client import connect
from collm.model.artifact import Artifact
from collm.session.edge import Edge

pytestmark = pytest.mark.e2e

PROMPT = "List five things to pack for a day at the beach."
CRITERIA = (
    "confidence:0.4",
    "margin:0.3",
    "entropy:2",
    "patience:2",
    "window:0.4",
    "confidence:0.3 & coherence",
    "hybrid:0.3",
    "patience:3 | confidence:0.7",
    "risk",
)


def run(smollm2: Path, *options: str, tokens: int = 24) -> dict[str, Any]:
    ran = collm(
        "run", smollm2, PROMPT, "--placement", "15", "--max-tokens", str(tokens), "--threads", "1",
        "--ignore-eos", "--json", *options,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    (line,) = ran.lines()
    return line


@pytest.fixture(scope="module")
def whole(smollm2: Path) -> list[int]:
    ran = collm(
        "run", smollm2, PROMPT, "--placement", "30", "--max-tokens", "24", "--ignore-eos", "--json"
    )
    return list(ran.lines()[0]["token_ids"])


@pytest.fixture(scope="module")
def calibrated(smollm2: Path) -> Path:
    """Thresholds as `collm calibrate` leaves them (that verb has tests of its own)."""
    path = smollm2 / "manifest.json"
    manifest = json.loads(path.read_text())
    for entry in manifest["exits"]:
        entry["threshold"], entry["calibration"] = 0.7, '{"agreement": 0.9}'
    path.write_text(json.dumps(manifest))
    return smollm2


@pytest.mark.parametrize("criterion", CRITERIA)
def test_criteria_decide_what_the_edge_says(calibrated: Path, cloud: str, criterion: str) -> None:
    threshold = run(calibrated, "--mode", "threshold", "--cloud", cloud, "--criterion", criterion)
    made = {token["by"] for token in threshold["tokens"] if token["source"].startswith("exit@")}
    names = {name.strip().split(":")[0] for name in criterion.replace("|", "&").split("&")}
    assert {name.strip().split(":")[0] for by in made for name in by.split("&")} <= names
    asked = sum(token["source"] == "cloud" for token in threshold["tokens"])
    assert threshold["rounds"] == asked
    assert asked < 24 or criterion == "risk"
    assert threshold["coherence"]["tokens"] == 24


@pytest.mark.parametrize("mode", ["verified", "threshold", "refine", "standalone"])
def test_every_mode_takes_every_criterion_through_python(
    calibrated: Path, cloud: str, mode: str, whole: list[int]
) -> None:
    link = None if mode == "standalone" else lambda: connect(cloud, DEFAULT_LIMITS)
    edge = Edge(Artifact(calibrated), mode=mode, placement=15, connect=link)
    prompt = edge.tokenizer.encode_chat([{"role": "user", "content": PROMPT}])
    for criterion in CRITERIA:
        made = Generation(mode=mode, max_tokens=24, criterion=criterion, ignore_eos=True)
        account = edge.answer(prompt, made).finish()
        assert len(account.tokens) == 24
        assert account.coherence is not None and account.coherence.tokens == 24
        if mode == "verified":
            assert account.token_ids == whole


@pytest.mark.parametrize("wire", ["f16", "int8"])
def test_narrow_rows_through_the_command_line(smollm2: Path, cloud: str, wire: str) -> None:
    wide = run(smollm2, "--mode", "threshold", "--cloud", cloud)
    narrow = run(smollm2, "--mode", "threshold", "--cloud", cloud, "--wire", wire)
    assert narrow["bytes_up"] < 0.6 * wide["bytes_up"]
    assert len(narrow["token_ids"]) == 24


def test_refine_raises_the_log_probability(smollm2: Path, cloud: str) -> None:
    made = run(smollm2, "--mode", "refine", "--cloud", cloud, tokens=48)
    assert made["logprob_after"] > made["logprob_before"]
    assert {token["source"] for token in made["tokens"]} > {"cloud"}
    assert made["rounds"] == len(made["passes"]) < 48
    mended = [one for one in made["passes"] if one["rejected"] is not None]
    assert len(mended) == sum(token["source"] == "cloud" for token in made["tokens"])


def test_refine_down_to_the_full_models_choice_is_lossless(
    smollm2: Path, cloud: str, whole: list[int]
) -> None:
    strict = ("--rank", "1", "--passes", "100", "--segment", "8")
    assert run(smollm2, "--mode", "refine", "--cloud", cloud, *strict)["token_ids"] == whole


def test_lookup_in_verified_mode(smollm2: Path, cloud: str, whole: list[int]) -> None:
    assert run(smollm2, "--cloud", cloud, "--lookup")["token_ids"] == whole


def test_the_text_view_says_what_was_mended(smollm2: Path, cloud: str) -> None:
    ran = collm("run", smollm2, PROMPT, "--mode", "refine", "--cloud", cloud, "--max-tokens", "16")
    assert ran.code == 0
    assert "mean log-probability" in " ".join(ran.out.split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--criterion", "sureness:1"], ["sureness", "confidence"]),
        (["--criterion", "confidence:1.5"], ["confidence", "1.5"]),
        (["--criterion", "learned:none.safetensors"], ["none.safetensors"]),
        (["--wire", "f8"], ["f8", "f16"]),
        (["--deadline", "50"], ["deadline", "threshold"]),
        (["--mode", "standalone", "--lookup"], ["lookup", "verified"]),
        (["--mode", "threshold", "--placement", "30"], ["nothing to the cloud"]),
        (["--mode", "threshold", "--first-cut", "20"], ["first cut 20", "5, 10, 15"]),
        (["--mode", "refine", "--gap", "-1"], ["refine gap"]),
    ],
)
def test_bad_settings_are_one_line(
    smollm2: Path, cloud: str, options: list[str], words: list[str]
) -> None:
    placed = [] if "--placement" in options else ["--placement", "15"]
    check(collm("run", smollm2, PROMPT, "--cloud", cloud, *placed, *options), *words)
