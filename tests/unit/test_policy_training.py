"""The environment over traces, training, and what `collm eval policy` says of the result."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.exit_files import exit_file
from tests.policy_traces import made_up_traces
from tests.support import random_artifact

from collm.cli.main import main
from collm.errors import UsageError
from collm.model.artifact import Artifact
from collm.model.exits import add_exit
from collm.model.policy_file import read_policy
from collm.policy.criteria import Confidence
from collm.tune.policy_curves import (
    agreement_at,
    compare_with_criterion,
    curve,
    difference,
    point_of,
    requests_at,
    sweep,
)
from collm.tune.policy_families import (
    confidence,
    entropy,
    exit_sets,
    fixed_families,
    hybrid,
    learned,
    margin,
    patience,
)
from collm.tune.trace_file import Traces, exits_digest, write_traces

gymnasium = pytest.importorskip("gymnasium")
torch = pytest.importorskip("torch")
pytest.importorskip("stable_baselines3")

from collm.tune.policy_env import PolicyEnv, Weights, play, rewards  # noqa: E402
from collm.tune.policy_report import make_policy_report  # noqa: E402
from collm.tune.policy_training import train_policy  # noqa: E402
from collm.tune.policy_warm import WarmSettings, advantages  # noqa: E402

QUICK = WarmSettings(rounds=1, epochs=12)


# ------------------------------------------------------------------------- environment


def test_gymnasium_finds_nothing_wrong_with_the_environment() -> None:
    from gymnasium.utils.env_checker import check_env

    env = PolicyEnv(made_up_traces(4, 6), Weights())
    check_env(env, skip_render_check=True)


def test_an_episode_is_a_text_and_earns_what_its_actions_cost() -> None:
    traces, weights = made_up_traces(3, 5), Weights(cloud=2, latency=0.5, wrong=3, consequence=10)
    env = PolicyEnv(traces, weights)
    env.reset(seed=0, options={"text": 1})
    step = 0.5 * (0.002 + 0.001 - 0.001) / (0.01 + 0.03)  # the second layer and exit, of a request
    total, actions = 0.0, []
    for row in range(5, 10):
        if row == 5:  # the cloud, past both exits
            actions += [0, 0]
            total -= step + 2 + 0.5
        else:  # the second exit's word
            actions += [0, 1]
            total -= step + (0 if traces.right[row, 1] else 3 + 10 * 0.2)
    earned = 0.0
    for i, action in enumerate(actions):
        _, reward, ended, cut, info = env.step(np.int64(action))
        earned += reward
        assert ended == (i == len(actions) - 1) and not cut
    assert earned == pytest.approx(total, abs=1e-5)
    wrong = int((~traces.right[6:10, 1]).sum())
    assert info == {"rows": 5, "requests": 1, "wrong": wrong}


def test_playing_whole_traces_is_the_same_as_stepping() -> None:
    traces, weights = made_up_traces(2, 8), Weights()
    takes = np.random.default_rng(0).random(traces.tokens.shape) < 0.4
    env, earned = PolicyEnv(traces, weights), 0.0
    for text in range(2):
        env.reset(options={"text": text})
        row, exit_index, ended = text * 8, 0, False
        while not ended:
            take = bool(takes[row, exit_index])
            _, reward, ended, _, _ = env.step(np.int64(take))
            earned += reward
            done = take or exit_index == 1
            row, exit_index = (row + 1, 0) if done else (row, exit_index + 1)
    assert earned / 16 == pytest.approx(play(traces, weights, takes), abs=1e-5)


def test_advantages_are_what_taking_earns_over_going_on() -> None:
    traces = made_up_traces(1, 6)
    earned = rewards(traces, Weights())
    never = np.zeros(traces.tokens.shape, np.bool_)
    found = advantages(earned, never)
    np.testing.assert_allclose(found[:, 1], earned.take[:, 1] - earned.go_on[1], rtol=1e-6)
    np.testing.assert_allclose(found[:, 0], earned.take[:, 0] - earned.go_on.sum(), rtol=1e-6)
    always = advantages(earned, ~never)
    np.testing.assert_allclose(
        always[:, 0], earned.take[:, 0] - earned.go_on[0] - earned.take[:, 1], atol=1e-5
    )


@pytest.mark.parametrize("value", [-1.0, float("nan"), 1e9])
def test_weights_out_of_range_are_refused(value: float) -> None:
    with pytest.raises(UsageError, match="wrong weight"):
        Weights(wrong=value)
    with pytest.raises(UsageError, match="free"):
        Weights(cloud=0, latency=0)


# ------------------------------------------------------------------------------ curves


def every_family(traces: Traces) -> list[object]:
    cuts = traces.cuts
    made = [*fixed_families(traces), margin(traces, cuts), entropy(traces, cuts)]
    return [*made, patience(traces, cuts, 2), hybrid(traces, cuts)]


def test_sweeps_decide_as_the_criteria_do() -> None:
    traces = made_up_traces(6, 20, cuts=(1, 2, 3))
    random = np.random.default_rng(2)
    uneven = replace(
        traces, coherence=random.uniform(0, 1, traces.coherence.shape).astype(np.float32)
    )
    for family in every_family(uneven):
        assert compare_with_criterion(uneven, family) > 0  # type: ignore[arg-type]


def test_a_curve_passes_through_the_points_of_its_criterion() -> None:
    traces = made_up_traces(8, 30)
    counts = sweep(traces, confidence(traces, traces.cuts))
    made = curve(counts)
    assert made.requests[0] == 1 and made.agreement[0] == 1
    index = 90
    point = point_of(traces, Confidence(float(counts.knobs[index])))
    assert point.requests == pytest.approx(made.requests[index])
    assert point.agreement == pytest.approx(made.agreement[index])
    assert point.drop == pytest.approx(made.drop[index])
    assert point.edge_seconds == pytest.approx(made.edge_seconds[index])


def test_levels_are_read_between_the_points() -> None:
    traces = made_up_traces(8, 30)
    made = curve(sweep(traces, confidence(traces, (2,))))
    assert requests_at(made, 1.0) == pytest.approx(1, abs=0.01)
    for at in (0.7, 0.8, 0.9):
        assert agreement_at(made, requests_at(made, at)) == pytest.approx(at, abs=1e-6)
    agreeing = curve(sweep(traces, patience(traces, (1, 2), 2)))
    assert agreement_at(agreeing, 0.01) == -np.inf, "it cannot ask so seldom"


def test_a_family_does_not_beat_itself_and_better_ones_do() -> None:
    traces = made_up_traces(30, 40)
    base = sweep(traces, confidence(traces, (2,)))
    same = difference(base, base, "requests", 0.9, draws=50)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    agreeing = sweep(traces, patience(traces, (1, 2), 2))
    off = difference(agreeing, base, "requests", 0.95, draws=200)
    assert off.low <= off.value <= off.high < -0.1


def test_every_set_of_exits_is_a_baseline() -> None:
    assert exit_sets((1, 2, 3)) == [(1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3)]


# ---------------------------------------------------------------------------- training


@pytest.mark.parametrize("kind", ["ppo", "dqn", "linucb"])
def test_training_finds_what_the_exits_say_together(kind: str) -> None:
    """Confidence tells nothing here, agreement of the exits does."""
    train, fresh = made_up_traces(40, 50), made_up_traces(30, 40, seed=9)
    told: list[tuple[int, int]] = []
    made = train_policy(
        train, kind, Weights(wrong=6, consequence=0), steps=2_000, warm=QUICK,
        progress=lambda what, done, total: told.append((done, total)),
    )  # fmt: skip
    assert made.reward > made.always_cloud + 0.2
    assert told and all(done <= total for done, total in told)
    family = learned(fresh, made.policy, "learned it")
    assert compare_with_criterion(fresh, family) > 0
    ours, base = sweep(fresh, family), sweep(fresh, confidence(fresh, (2,)))
    assert difference(ours, base, "requests", 0.95, draws=200).high < -0.1


def test_the_same_seed_gives_the_same_policy() -> None:
    traces = made_up_traces(10, 20)
    first, again = (
        train_policy(traces, "ppo", Weights(), steps=0, warm=QUICK, seed=3).policy.tensors
        for _ in range(2)
    )
    assert all((first[name] == again[name]).all() for name in first)


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(UsageError, match="--kind magic: expected ppo, dqn, linucb"):
        train_policy(made_up_traces(2, 4), "magic", Weights())


def test_the_report_says_plainly_who_beats_what() -> None:
    traces = made_up_traces(30, 40)
    policy = train_policy(traces, "linucb", Weights(wrong=6, consequence=0)).policy
    report = make_policy_report(traces, "x", {"learned it": policy}, [Confidence(0.9)])
    at_95 = {c.kind: c for c in report.comparisons if (c.what, c.at) == ("requests", 0.95)}
    assert at_95["learned it @1+2"].verdict == "beats"
    assert at_95["entropy"].verdict != "beats"
    assert json.dumps(report.to_json(), allow_nan=False)
    assert report.points[0].name == "confidence:0.9" and report.compared_rows > 0


# ------------------------------------------------------------------------ command line


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("policy")
    artifact = random_artifact(root / "artifact")
    for cut in (1, 2):
        path = exit_file(root / f"{cut}.safetensors", artifact.architecture, cut, "linear")
        add_exit(root / "artifact", path)
    opened = Artifact(root / "artifact")
    for name, seed in (("train", 0), ("fresh", 1)):
        made = replace(
            made_up_traces(12, 20, seed=seed),
            fingerprint=opened.fingerprint,
            exits_digest=exits_digest(opened, (1, 2)),
        )
        write_traces(root / f"{name}.safetensors", made)
    other = replace(made_up_traces(3, 4), fingerprint="0" * 64)
    write_traces(root / "other.safetensors", other)
    return root


def collm(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["collm", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_from_traces_to_a_verdict(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact, out = folder / "artifact", folder / "policy.safetensors"
    train = ("--traces", folder / "train.safetensors", "--kind", "linucb", "--out", out)
    assert collm(monkeypatch, "tune-policy", artifact, *train) == 0
    assert f"learned:{out}" in capsys.readouterr().out
    assert read_policy(out, Artifact(artifact)).about["trained_by"] == "linucb"
    fresh = ("--traces", folder / "fresh.safetensors", "--policy", out)
    more = ("--criterion", f"learned:{out},bias=0.1", "--plot", folder / "plots")
    assert collm(monkeypatch, "eval", "policy", artifact, *fresh, *more) == 0
    said = capsys.readouterr().out
    assert "best fixed" in said and "beat" in said and f"learned:{out},bias=0.1" in said
    assert len(list((folder / "plots").glob("*.png"))) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tune-policy", "--traces", "other", "--out", "x"), "traces of another artifact"),
        (("tune-policy", "--traces", "none", "--out", "x"), "No such file"),
        (("tune-policy", "--traces", "train", "--out", "x", "--kind", "magic"), "--kind magic"),
        (("tune-policy", "--traces", "train", "--out", "x", "--exits", "3"), "exit 3"),
        (("tune-policy", "--traces", "train", "--out", "x", "--quality-weight", "-1"), "weight"),
        (("tune-policy", "--traces", "train", "--out", "no/x"), "cannot be written"),
        (("eval", "policy", "--traces", "fresh", "--policy", "train"), "no policy"),
        (("eval", "policy", "--traces", "other"), "traces of another artifact"),
        (("eval", "policy", "--traces", "fresh", "--criterion", "magic:1"), "magic"),
    ],
)
def test_bad_input_is_one_clear_line(
    folder: Path, arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    verbs = 2 if arguments[0] == "eval" else 1
    files = {"other", "none", "train", "fresh"}
    given = [folder / f"{a}.safetensors" if a in files else a for a in arguments[verbs:]]
    given = [folder / a if a in ("x", "no/x") else a for a in given]
    assert collm(monkeypatch, *arguments[:verbs], folder / "artifact", *given) == 2
    err = capsys.readouterr().err
    assert said in err and err.startswith("error: ") and err.count("\n") == 1
