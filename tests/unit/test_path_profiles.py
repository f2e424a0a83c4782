"""Draft paths measured and recorded with real parts, and run as they were predicted."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from tests.exit_files import exit_file
from tests.support import random_artifact, token_ids
from tests.unit.plan_world import said, world

from collm.bench.plan_bench import sweep
from collm.bench.plan_worker import candidate_of
from collm.cli.main import main
from collm.config import Generation
from collm.errors import ArtifactError, UsageError
from collm.limits import Limits
from collm.link.memory import connect_memory
from collm.model.artifact import Artifact
from collm.model.drafts import DraftPlan, add_draft, draft_files
from collm.policy.cost_model import Candidate, predict
from collm.policy.planner import Choice, Plan, Wish
from collm.policy.profile_json import device_from_json, device_to_json
from collm.runtime.acceptance import find_acceptance, read_acceptance, record_acceptance
from collm.runtime.draft_stage import DraftStage
from collm.runtime.profiling import measure_device
from collm.runtime.stage import Stage
from collm.session import planning
from collm.session.cloud import CloudService
from collm.session.edge import Edge


def artifact_with_path(folder: Path, *, layers: tuple[int, ...] = (0,)) -> Artifact:
    """A random model with exits at 1 and 2, and a path of an adapter of two layers."""
    made = random_artifact(folder)
    add_path(made, layers)
    return Artifact(folder)


def add_path(artifact: Artifact, layers: tuple[int, ...], name: str = "small") -> None:
    file = artifact.folder.with_suffix(".safetensors")
    exit_file(file, artifact.architecture, 2, "layer", layers=2, shortlist=64)
    add_draft(artifact.folder, DraftPlan(name=name, cut=2, layers=layers), file)


def only(artifact: Artifact, keep: tuple[str, ...]) -> Artifact:
    """As a device has it that fetched just these weights."""
    for name in artifact.manifest.files:
        if name.endswith(".onnx") and name not in keep:
            (artifact.folder / name).unlink(missing_ok=True)
    return Artifact(artifact.folder)


def test_paths_are_measured_and_a_profile_without_them_is_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    artifact = artifact_with_path(tmp_path / "a")
    found = planning.device_profile(artifact, budget=0.05, folder=folder)
    size, entry = found.paths["small"], artifact.manifest.drafts[0]
    for costs in found.costs:
        cost = costs.paths["small"]
        assert list(cost.rows.seconds) == sorted(cost.rows.seconds)
        assert cost.rows.at(1) > 0 and cost.head > 0
    assert size.bytes >= artifact.manifest.files[entry.data].bytes
    assert (size.kv_bytes, size.head) == (3 * 256, entry.head)  # a layer, and two of the adapter
    assert found.notes == ()
    assert device_from_json(device_to_json(found)) == found
    # As software from before would have left it under the same name.
    (kept,) = folder.iterdir()
    costs = tuple(replace(one, paths={}) for one in found.costs)
    kept.write_text(device_to_json(replace(found, paths={}, costs=costs)))
    assert planning.known_profile(artifact, folder) is None
    assert planning.device_profile(artifact, budget=0.05, folder=folder).paths.keys() == {"small"}
    add_path(artifact, (0, 1), "other")
    changed = planning.device_profile(Artifact(artifact.folder), budget=0.05, folder=folder)
    assert changed.paths.keys() == {"small", "other"}


def test_a_device_that_has_a_path_and_nothing_else_is_measured(tmp_path: Path) -> None:
    artifact = artifact_with_path(tmp_path / "a")
    bare = only(artifact, draft_files(artifact.manifest, "small"))
    found = planning.device_profile(bare, budget=0.05, threads=[1], folder=tmp_path / "cache")
    cost = found.costs[0].paths["small"].rows
    two_of_three = pytest.approx(cost.at(2) * 2 / 3)
    assert found.costs[0].blocks[2].at(2) == two_of_three  # layers
    assert "blocks/002-004.onnx is not here: taken from the others" in found.notes
    assert found.step_seconds > 0
    with pytest.raises(ArtifactError, match="missing"):
        measure_device(only(bare, ()), budget=0.05)


def test_what_a_path_says_is_recorded_as_it_says_it_in_a_session(tmp_path: Path) -> None:
    artifact = artifact_with_path(tmp_path / "a")
    prompts = [token_ids(3, 10), token_ids(4, 7)]
    made = planning.acceptance(artifact, prompts, tokens=8, folder=tmp_path)
    found = find_acceptance(Artifact(artifact.folder), tmp_path / "none")
    assert found is not None
    says = found.paths["small"]
    assert (says.confidences == made.paths["small"].confidences).all()
    assert (found.first(3).paths["small"].right[:3] == says.right[:3]).all()
    whole, path = Stage(artifact, range(4)), DraftStage(artifact, "small")
    for prompt, start, end in zip(prompts, found.starts[:-1], found.starts[1:], strict=True):
        full, drafting = whole.open(), path.open()
        full.append_ids(prompt)
        drafting.append_ids(prompt)
        for row in range(start, end):
            token = int(full.logits(full.position - 1)[-1].argmax())
            result = drafting.exit_at(path.cut)
            assert (result.token_id == token) == says.right[row]
            assert result.confidence == pytest.approx(says.confidences[row], abs=1e-4)
            full.append_ids([token])
            drafting.append_ids([token])


def test_a_path_that_comes_later_leaves_the_record_of_the_exits(tmp_path: Path) -> None:
    artifact, prompts = random_artifact(tmp_path / "a"), [token_ids(1, 9)]
    made = planning.acceptance(artifact, prompts, tokens=8, folder=tmp_path)
    assert made.paths == {}
    add_path(artifact, (0,))
    both = planning.acceptance(Artifact(artifact.folder), prompts, tokens=8, folder=tmp_path)
    assert both.paths.keys() == {"small"} and (both.right == made.right).all()
    add_path(artifact, (1,))  # another of the same name
    changed = Artifact(artifact.folder)
    found = find_acceptance(changed, tmp_path / "none")
    assert found is not None and found.paths == {} and (found.right == made.right).all()
    # Where the whole model is not, plans go on without the path.
    (changed.folder / changed.manifest.blocks[2].graph).unlink()
    assert planning.acceptance(changed, prompts, folder=tmp_path).paths == {}


def test_a_record_whose_paths_do_not_fit_is_refused(tmp_path: Path) -> None:
    artifact = artifact_with_path(tmp_path / "a")
    planning.acceptance(artifact, [token_ids(1, 9)], tokens=8, folder=tmp_path)
    whole = (artifact.folder / "acceptance.safetensors").read_bytes()
    path = tmp_path / "damaged.safetensors"
    not_there = (b"path.small.right", b"path.other.right")
    no_names = (b'\\"paths\\": {', b'\\"paths\\": 7')
    for old, new in (not_there, no_names):
        assert old in whole
        path.write_bytes(whole.replace(old, new, 1))
        with pytest.raises(UsageError, match="no sound record of exits"):
            read_acceptance(path)


@pytest.mark.parametrize("ahead", [None, 0.0])
def test_the_real_loop_drafts_with_a_path_as_predicted(tmp_path: Path, ahead: float | None) -> None:
    artifact = artifact_with_path(tmp_path / "a")
    prompt, limits = token_ids(4, 12), Limits(linger_seconds=0.1)
    found = record_acceptance(artifact, [prompt], tokens=24)
    profile = measure_device(artifact, budget=0.05, threads=[1])
    made = world(
        found,
        device=profile,
        cloud=planning.cloud_like(profile, artifact),
        frames=planning.frame_bytes(artifact.architecture.hidden_size),
    )
    threshold = float(sorted(found.paths["small"].confidences)[found.tokens // 2])
    how = Candidate(mode="verified", draft_path="small", threshold=threshold, draft=3, ahead=ahead)
    predicted = predict(how, made)
    service = CloudService(Stage(artifact, range(artifact.architecture.layers)), limits)
    edge = Edge(
        artifact,
        mode=how.mode,
        placement=how.placement,
        wire=how.wire,
        draft=how.draft_path,
        connect=lambda: connect_memory(service, limits),
        limits=limits,
    )
    generation = Generation(
        threshold=threshold, draft=3, ahead=ahead, max_tokens=found.tokens, ignore_eos=True
    )
    account = edge.answer(prompt, generation).finish()
    service.close()
    if ahead is None:  # ahead of a verdict, how often is the clock's
        assert account.rounds == round(predicted.rounds * found.tokens)
        assert account.bytes_up == pytest.approx(predicted.bytes_up * found.tokens, rel=0.25)
    assert account.drafted > 0 and len(account.token_ids) == found.tokens


def test_where_memory_is_short_the_smallest_chain_of_layers_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = random_artifact(tmp_path / "a")
    add_draft(artifact.folder, DraftPlan(name="thin", cut=1, layers=(0,), weights="int8"), None)
    artifact = Artifact(artifact.folder)
    entry = artifact.manifest.drafts[0]
    monkeypatch.setattr("collm.runtime.profiling.usable_memory", lambda: 0)
    found = measure_device(artifact, budget=0.05, threads=[1])
    why = " does not fit here: taken from the others"
    not_timed = {note.removesuffix(why) for note in found.notes}
    assert {one.graph for one in artifact.manifest.blocks} < not_timed
    assert entry.graph not in not_timed
    cost = found.costs[0]
    assert cost.blocks[2].at(2) == pytest.approx(2 * cost.paths["thin"].rows.at(2))
    assert found.paths["thin"].bytes >= artifact.manifest.files[entry.data].bytes


def test_the_bench_measures_every_path(tmp_path: Path) -> None:
    artifact = artifact_with_path(tmp_path / "a")
    ways = [one for one in sweep(artifact, 1) if one.draft_path]
    assert {one.draft_path for one in ways} == {"small"}
    assert all(candidate_of(json.loads(json.dumps(asdict(one)))) == one for one in ways)


def test_run_with_placement_auto_drafts_with_the_path_of_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact, limits = artifact_with_path(tmp_path / "a"), Limits(linger_seconds=0.1)
    profile = measure_device(artifact, budget=0.05, threads=[1])
    made = world(said([(0.5, True)]), device=profile)
    way = Candidate(mode="verified", draft_path="small", threshold=0.0, draft=4)
    found = Plan(
        wish=Wish(), chosen=Choice(candidate=way, predicted=None), others=(), frontier=(),
        considered=1, refused=0,
    )  # fmt: skip
    monkeypatch.setattr("collm.cli.auto.plan_world", lambda *_, **__: made)
    monkeypatch.setattr("collm.cli.auto.plan", lambda *_: found)
    service = CloudService(Stage(artifact, range(artifact.architecture.layers)), limits)
    monkeypatch.setattr(
        "collm.cli.run.cloud_link",
        lambda *_: nullcontext(lambda: connect_memory(service, limits)),
    )
    asked = ["run", str(artifact.folder), "a b c", "--raw", "--ignore-eos", "--json"]
    asked += ["--max-tokens", "12", "--cloud", "h:1"]
    told = []
    for placement in ("auto", "4"):
        monkeypatch.setattr("sys.argv", ["collm", *asked, "--placement", placement])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        told.append(json.loads(capsys.readouterr().out))
    service.close()
    drafting, whole = told
    assert (drafting["mode"], drafting["placement"], drafting["exits"]) == ("verified", 0, [2])
    assert drafting["drafted"] > 0
    assert drafting["token_ids"] == whole["token_ids"] and len(whole["token_ids"]) == 12
