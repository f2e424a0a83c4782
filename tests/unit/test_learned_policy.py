"""Learned criteria: features, networks and bandits at the edge, and their files."""

from __future__ import annotations

import math
import os
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests.policy_traces import made_up_traces
from tests.support import random_artifact

from collm.errors import ArtifactError, PromptError
from collm.model.policy_file import PolicyFile, read_policy, write_policy
from collm.policy.bandit import LinUcb
from collm.policy.features import feature_rows, features, names
from collm.policy.learned import LearnedPolicy, learned_criterion, split_knob
from collm.policy.observation import Coherence, Observation, Reading

CUTS = (5, 10, 15, 20)
WIDTH = len(names(CUTS))


def readings(count: int, token_id: int = 7, confidence: float = 0.8) -> tuple[Reading, ...]:
    return tuple(Reading(cut, token_id, confidence, 0.1, 0.7) for cut in CUTS[:count])


def network(seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(seed)
    sizes = (WIDTH, 32, 32, 2)
    return [
        (random.normal(0, 0.3, (n, k)).astype(np.float32), np.zeros(n, np.float32))
        for k, n in pairwise(sizes)
    ]


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    made = {}
    for i, (weight, bias) in enumerate(network(seed)):
        made |= {f"layers.{i}.weight": weight, f"layers.{i}.bias": bias}
    return made


def test_one_observation_has_the_features_of_its_row() -> None:
    traces = made_up_traces(4, 10, cuts=CUTS)
    random = np.random.default_rng(1)
    varied = replace(
        traces,
        tokens=random.integers(0, 2, traces.tokens.shape).astype(np.int32),
        coherence=random.uniform(0, 2, traces.coherence.shape).round().astype(np.float32),
    )
    for asked in range(1, 5):
        rows = feature_rows(
            varied.tokens, varied.confidences, varied.runner_up_confidences, varied.entropies,
            varied.coherence, asked,
        )  # fmt: skip
        assert rows.shape == (40, WIDTH)
        for row in range(40):
            one = features(varied.observation(row, asked), CUTS)
            assert one is not None
            np.testing.assert_allclose(rows[row], one, rtol=1e-6, atol=1e-6)


def test_features_of_extremes_are_finite() -> None:
    sure = Reading(5, 1, 1.0, 0.0, 0.0)
    lost = Reading(10, 2, 0.0, 0.0, math.nan)
    seen = Observation((sure, lost), Coherence(10**6, -1e9, -1e9, 0, 1, -1e9, 1, 10**6))
    made = features(seen, CUTS)
    assert made is not None and len(made) == WIDTH
    assert all(math.isfinite(value) and abs(value) < 10 for value in made)


def test_readings_of_no_exit_of_its_own_are_left_to_others() -> None:
    policy = LearnedPolicy(network(), CUTS, bias=50)
    assert policy.decide(Observation((Reading(0, 3, 0.9),))) is None
    assert policy.decide(Observation((Reading(7, 3, 0.9),))) is None


def test_network_decides_as_its_scores_and_the_bias_moves_it() -> None:
    traces = made_up_traces(4, 10, cuts=CUTS)
    policy = LearnedPolicy(network(), CUTS, name="learned:x")
    rows = feature_rows(
        traces.tokens, traces.confidences, traces.runner_up_confidences, traces.entropies,
        traces.coherence, 3,
    )  # fmt: skip
    scores = policy.scores(rows)
    taken = {}
    for bias in (-50.0, 0.0, 50.0):
        biased = LearnedPolicy(network(), CUTS, bias=bias)
        taken[bias] = [biased.decide(traces.observation(row, 3)) is not None for row in range(40)]
    assert taken[0.0] == (scores >= 0).tolist()
    assert not any(taken[-50.0]) and all(taken[50.0])
    decision = LearnedPolicy(network(), CUTS, name="learned:x", bias=50).decide(
        Observation(readings(2))
    )
    assert decision is not None and decision.by == "learned:x"
    assert decision.reading.cut == 10


@pytest.mark.timed
def test_deciding_takes_microseconds() -> None:
    seen = Observation(readings(4), Coherence(tokens=40))
    for policy in (LearnedPolicy(network(), CUTS), LinUcb(CUTS, WIDTH)):
        policy.decide(seen)
        best = math.inf
        for _ in range(20):
            started = time.perf_counter()
            for _ in range(20):
                policy.decide(seen)
            best = min(best, (time.perf_counter() - started) / 20)
        assert best < 250e-6, f"{type(policy).__name__}: {best * 1e6:.0f} µs"


def test_bandit_asks_until_it_knows_and_goes_on_learning_from_verdicts() -> None:
    bandit = LinUcb(CUTS, WIDTH, alpha=0.3, cost=0.1)
    good = Observation(readings(2, confidence=0.9))
    bad = Observation(readings(2, confidence=0.2))
    assert bandit.decide(good) is None and bandit.decide(bad) is None
    for _ in range(60):
        bandit.learn(good, 7)
        bandit.learn(bad, 8)
    decision = bandit.decide(good)
    assert decision is not None and decision.reading.cut == 10
    assert bandit.decide(bad) is None
    for _ in range(200):
        bandit.learn(good, 8)
    assert bandit.decide(good) is None, "it does not unlearn"


def test_sherman_morrison_keeps_the_ridge_solution() -> None:
    random = np.random.default_rng(3)
    bandit = LinUcb((5,), 6)
    x = random.normal(size=(50, 6))
    y = random.integers(0, 2, 50).astype(float)
    for row, reward in zip(x, y, strict=True):
        bandit.update(0, row, float(reward))
    expected = np.linalg.solve(x.T @ x + np.eye(6), x.T @ y)
    np.testing.assert_allclose(bandit.weights[0], expected, rtol=1e-8)
    assert bandit.score(0, x[0]) == pytest.approx(bandit.scores(x[:1].astype(np.float32), 0)[0],
                                                  abs=1e-5)  # fmt: skip


def test_a_saved_bandit_goes_on_where_it_was() -> None:
    first = LinUcb(CUTS, WIDTH, alpha=0.2, cost=0.2)
    seen = Observation(readings(3))
    for _ in range(5):
        first.learn(seen, 7)
    again = LinUcb.of_tensors(first.tensors(), CUTS, WIDTH)
    assert (again.alpha, again.cost, again.updates) == (0.2, 0.2, 15)
    for bandit in (first, again):
        bandit.learn(seen, 8)
    np.testing.assert_allclose(first.weights, again.weights, atol=1e-12)


def test_the_knob_is_read_from_the_spec() -> None:
    assert split_knob("a/b.safetensors") == ("a/b.safetensors", 0.0)
    assert split_knob("a,b.safetensors,bias=-1.5") == ("a,b.safetensors", -1.5)
    for wrong in ("x,bias=", "x,bias=much", "x,bias=nan", "x,bias=51"):
        with pytest.raises(PromptError, match="bias"):
            split_knob(wrong)


def test_a_policy_file_comes_back_and_decides(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "artifact")
    path = tmp_path / "policy.safetensors"
    bandit = LinUcb((1, 2), len(names((1, 2))))
    write_policy(path, _file(artifact.fingerprint, (1, 2), "linucb", bandit.tensors()))
    read = read_policy(path, artifact)
    assert read.about == {"rows": 3} and read.exits == (1, 2)
    made = learned_criterion(read.kind, read.exits, read.features, read.tensors, name="n", bias=9)
    decision = made.decide(Observation((Reading(1, 5, 0.5),)))
    assert decision is not None and decision.by == "n"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fingerprint": "0" * 64}, "another artifact"),
        ({"exits": (1, 3)}, "needs exit 3"),
        ({"kind": "oracle"}, "policy kind 'oracle'"),
        ({"exits": (2, 1)}, "no sound policy file"),
    ],
)
def test_policies_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    artifact = random_artifact(tmp_path / "artifact")
    path = tmp_path / "policy.safetensors"
    sound = _file(artifact.fingerprint, (1, 2), "network", {"x": np.zeros(2, np.float32)})
    write_policy(path, replace(sound, **changes))  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match=said) as caught:
        read_policy(path, artifact)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_policies_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    with pytest.raises(ArtifactError, match="No such file"):
        read_policy(path)
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    with (tmp_path / "large").open("wb") as large:
        large.truncate(2**27)
    for other in (tmp_path / "pipe", tmp_path, tmp_path / "large"):
        with pytest.raises(ArtifactError, match="expected a file of collm tune-policy, of at most"):
            read_policy(other)
    path.write_bytes(b"nonsense")
    with pytest.raises(ArtifactError, match="no sound policy file"):
        read_policy(path)
    save_file({"x": np.zeros(1, np.float32)}, path)
    with pytest.raises(ArtifactError, match="no policy"):
        read_policy(path)
    write_policy(path, _file("f", (1,), "network", {"x": np.array([math.nan], np.float32)}))
    with pytest.raises(ArtifactError, match="not finite"):
        read_policy(path)
    assert load_file(path)


def test_contents_that_do_not_fit_the_features_are_refused() -> None:
    made = tensors()
    assert learned_criterion("network", CUTS, names(CUTS), made)
    with pytest.raises(ValueError, match="other features"):
        learned_criterion("network", CUTS, names(CUTS)[1:], made)
    with pytest.raises(ValueError, match="inputs"):
        learned_criterion("network", (5, 10), names((5, 10)), made)
    del made["layers.2.weight"]
    with pytest.raises(ValueError, match="two outputs"):
        learned_criterion("network", CUTS, names(CUTS), made)
    with pytest.raises(ValueError, match="missing"):
        learned_criterion("linucb", CUTS, names(CUTS), made)


def _file(
    fingerprint: str, exits: tuple[int, ...], kind: str, arrays: dict[str, np.ndarray]
) -> PolicyFile:
    return PolicyFile(
        kind=kind,
        fingerprint=fingerprint,
        exits=exits,
        features=names(exits),
        tensors=arrays,
        about={"rows": 3},
    )
