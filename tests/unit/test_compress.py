"""`collm compress` and `collm bench compress`: paths chosen, tuned, put in, scored and compared."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.corpora import random_corpus
from tests.exit_files import exit_file
from tests.support import random_artifact, token_ids, tree
from typer.testing import CliRunner

from collm.cli.main import app, main
from collm.errors import UsageError
from collm.model.artifact import Artifact
from collm.model.drafts import DraftPlan, add_draft, best_draft, draft_memory
from collm.model.exit_copy import copy_exit
from collm.model.exits import ExitFile, add_exit
from collm.runtime.draft_stage import DraftStage
from collm.tune.choosing import Wanted, choose, examples_to_choose_by
from collm.tune.corpus import read_corpus
from collm.tune.draft_scores import memory_bytes, model_choices, score_draft
from collm.tune.variants_report import BEGIN, END, answer, lines, markdown, read_raw, update_page

CUTS = (1, 2, 3)
SMALL = ["--tune-tokens", "600", "--rows", "60", "--look", "30", "--threads", "1"]


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    made = random_artifact(tmp_path / "artifact", cuts=CUTS, weights="int4")
    path = tmp_path / "exit.safetensors"
    exit_file(path, made.architecture, 3, "layer", feed=(0, 2), packed=True, shortlist=288)
    add_exit(made.folder, path)
    return Artifact(made.folder)


@pytest.fixture
def untrained(tmp_path: Path) -> Artifact:
    """With an exit at 3 of 4 layers that is to be trained, and can become very good."""
    return random_artifact(tmp_path / "untrained", cuts=CUTS, weights="int4")


@pytest.fixture
def corpus(artifact: Artifact, tmp_path: Path) -> Path:
    return random_corpus(tmp_path / "corpus.jsonl", artifact)


def told(what: str, done: int, total: int) -> None:
    assert 0 <= done <= total


def run(*arguments: object) -> Any:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


# ---------------------------------------------------------------- choosing


@pytest.fixture
def chosen(artifact: Artifact, corpus: Path, tmp_path: Path) -> Any:
    examples = examples_to_choose_by(read_corpus(corpus), 60)
    assert not any(example.held_out for example in examples)

    def made(**wanted: Any) -> DraftPlan:
        how = Wanted(**{"name": "small", "cut": 3, **wanted})
        return choose(artifact, how, examples, tmp_path, threads=1, told=told)

    return made


def test_layers_and_channels_are_chosen(chosen: Any) -> None:
    assert chosen().layers == (0, 1, 2) and not chosen().channels
    assert chosen(layers=(0, 2)).layers == (0, 2)
    assert len(chosen(drop=2).layers) == 1
    thin = chosen(drop=1, ffn=0.67)
    assert thin.channels.keys() == set(thin.layers)
    assert all(len(kept) == 64 and kept[0] % 32 == 0 for kept in thin.channels.values())
    loose = chosen(ffn=0.34, loose=True).channels[1]
    assert len(loose) == 32 and loose.max() - loose.min() > 31


def test_what_fits_into_memory_is_chosen(chosen: Any, artifact: Artifact) -> None:
    sizes = {}
    for count in (1, 2, 3):
        plan = chosen(drop=3 - count, name=f"keep{count}")
        exit_path = copy_exit(artifact, 3, artifact.folder.parent / "copy")
        manifest = add_draft(artifact.folder, plan, exit_path)
        entry = manifest.draft_named(plan.name)
        assert entry is not None
        sizes[count] = draft_memory(manifest, entry, 1024)
    between = (sizes[2] + sizes[3]) // 2
    assert len(chosen(memory_bytes=between).layers) <= 2
    assert len(chosen(memory_bytes=2 * sizes[3]).layers) <= 3
    with pytest.raises(UsageError, match="too few for one layer"):
        chosen(memory_bytes=1000)


def test_the_best_draft_that_fits(artifact: Artifact, tmp_path: Path) -> None:
    file = copy_exit(artifact, 3, tmp_path / "copy")
    for layers, share in (((0, 1, 2), 0.5), ((0, 1), 0.4), ((0,), 0.45)):
        plan = DraftPlan(name=f"keep{len(layers)}", cut=3, layers=layers)
        add_draft(artifact.folder, plan, file, about=json.dumps({"held_out_agreement": share}))
    manifest = Artifact(artifact.folder).manifest
    sizes = {e.name: draft_memory(manifest, e, 64) for e in manifest.drafts}
    assert sizes["keep1"] < sizes["keep2"] < sizes["keep3"]
    for budget, name in ((sizes["keep3"], "keep3"), (sizes["keep2"], "keep1")):
        best = best_draft(manifest, budget, 64)
        assert best is not None and best.name == name
    assert best_draft(manifest, sizes["keep1"] - 1, 64) is None


# ---------------------------------------------------------------- collm compress


def test_compress_without_tuning_needs_no_torch_and_no_text(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    record = json.loads(
        run("compress", artifact.folder, "--name", "tiny", "--upto", 3, "--drop", 1,
            "--ffn", "0.67", "--tune-tokens", 0, "--rows", 30, "--look", 30, "--threads", 1,
            "--json", "--work", tmp_path / "work")
    )  # fmt: skip
    made = Artifact(artifact.folder)
    (entry,) = made.manifest.drafts
    assert record["layers"] == list(entry.layers) and len(entry.layers) == 2
    assert record["channels"] == [64, 64] == list(entry.channels)
    assert record["tuned"] is False and record["agreement"] == record["agreement_untuned"]
    assert made.fingerprint == artifact.fingerprint


def test_a_tuned_exit_is_better_and_is_what_was_trained(
    untrained: Artifact, corpus: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    options = ["compress", untrained.folder, "--name", "tiny", "--upto", 3, "--layers", "0,1,2",
               "--ffn", "0.67", "--data", corpus, "--work", tmp_path / "work",
               "--learning-rate", "0.003", *SMALL]  # fmt: skip
    record = json.loads(run(*options, "--json"))
    assert record["tuned"] and record["agreement"] > record["agreement_untuned"]
    # What the runtime computes is what training measured, on the same held-out rows.
    made = Artifact(untrained.folder)
    held_out = read_corpus(corpus).held_out
    stage = DraftStage(made, "tiny")
    choices = model_choices(made, held_out, threads=1, told=told)
    deployed = score_draft(stage, held_out, choices).agreement
    (trained,) = (tmp_path / "work" / "drafts").glob("tiny-*/exit/exit-03.safetensors")
    said = json.loads(ExitFile(trained).metadata["training"])
    assert said["held_out_agreement"] == pytest.approx(deployed, abs=0.1)
    assert said["layers"] == [0, 1, 2]
    text = run(*options)  # again, from what is kept
    assert "3 of 3 layers, int4 weights" in text and "before tuning" in text
    info = run("info", untrained.folder)
    assert "tiny" in info and "Draft paths" in info


def test_an_exit_that_came_out_worse_is_not_used(
    untrained: Artifact, corpus: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    folder, how = untrained.folder, ["--upto", 3, "--data", corpus, "--work", tmp_path / "work"]
    good = ["compress", folder, "--name", "a", *how, "--learning-rate", "0.003", *SMALL]
    tuned = json.loads(run(*good, "--json"))
    assert tuned["tuned"]
    (trained,) = (tmp_path / "work" / "drafts").glob("a-*/exit/exit-03.safetensors")
    add_exit(folder, trained)  # where the next one begins, and is spoilt
    bad = ["compress", folder, "--name", "b", *how, "--learning-rate", "0.9", *SMALL]
    spoilt = json.loads(run(*bad, "--json"))
    assert spoilt["tuned"] is False
    assert spoilt["agreement"] == spoilt["agreement_untuned"] == tuned["agreement"]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["collm", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        error = capsys.readouterr().err
        assert ended.value.code == 2 and error.count("\n") == 1, error
        return error

    return run


def test_bad_input_is_refused_in_one_line(
    artifact: Artifact, corpus: Path, tmp_path: Path, refused: Any
) -> None:
    before = tree(artifact.folder)

    def said(*options: object) -> str:
        return str(refused("compress", artifact.folder, "--name", "x", "--upto", "3", *options))

    assert "has cuts at 1, 2, 3" in said("--upto", "4")
    assert "one of --layers, --drop and --memory" in said("--layers", "0", "--drop", "1")
    assert "expected ascending layers from 0 to 2" in said("--layers", "2,9")
    assert "expected layer numbers" in said("--layers", "a")
    assert "--drop 3: expected 0 to 2 of 3" in said("--drop", "3")
    assert "--ffn 1.5" in said("--ffn", "1.5")
    assert "expected a size" in said("--memory", "much")
    assert "expected one of fp32" in said("--weights", "int3")
    assert "--learning-rate" in said("--learning-rate", "7")
    assert "expected what collm analyze" in said("--analysis", tmp_path / "none")
    assert "expected a file made by collm synthesize" in said("--data", tmp_path / "none")
    assert "draft name" in said("--name", "../x")
    assert "no such file" in refused("bench", "compress", artifact.folder, "--page", "/no/page.md")
    assert "expected some of int8, stored" in refused(
        "bench", "compress", artifact.folder, "--cuts", "3", "--variants", "int9"
    )
    assert "--cuts 4" in refused("bench", "compress", artifact.folder, "--cuts", "4")
    assert "expected raw figures" in refused(
        "bench", "compress", artifact.folder, "--raw", tmp_path / "none"
    )
    assert tree(artifact.folder) == before


def test_an_exit_is_tuned_on_the_states_that_it_will_read(
    artifact: Artifact, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    from collm.tune.backbone import load_backbone
    from collm.tune.draft_backbone import draft_backbone

    ids = token_ids(5, 40)
    channels = {2: np.delete(np.arange(96), np.arange(0, 64, 2))}
    plan = DraftPlan(name="thin", cut=3, layers=(0, 2), channels=channels, weights="fp32")
    add_draft(artifact.folder, plan, None)
    session = DraftStage(Artifact(artifact.folder), "thin").open()
    session.append_ids(ids)
    full = load_backbone(artifact)
    model = draft_backbone(full, artifact, plan)
    first, second, last = model.path_states(torch.tensor([ids]), (1, 2, 3))
    assert last[0].numpy() == pytest.approx(session.hidden_at(3, 0), rel=1e-3, abs=1e-4)
    assert torch.equal(first, second)  # layer 1 is not there
    assert torch.equal(first, full.states(torch.tensor([ids]), (1,))[0])
    assert model.fingerprint != full.fingerprint


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text"])
def test_tuned_exits_of_other_families_come_out_as_they_went_in(
    tmp_path: Path, family: str
) -> None:
    pytest.importorskip("torch")
    layers = {"head_dim": 32, "layer_types": ["full_attention"] * 4}
    artifact = random_artifact(
        tmp_path / "a", cuts=CUTS, weights="int4", model_type=family, **layers
    )
    corpus = random_corpus(tmp_path / "corpus.jsonl", artifact)
    how = ["--data", corpus, "--tokens", 1000, "--shortlist", 288, "--threads", 1]
    run("tune", artifact.folder, "--exits", 2, *how, "--work", tmp_path / "work", "--json")
    given = load_file(tmp_path / "work" / "exits" / "exit-02.safetensors")
    got = load_file(copy_exit(Artifact(artifact.folder), 2, tmp_path / "copy"))
    assert got.keys() == given.keys()
    assert all((got[name] == given[name]).all() for name in given)


def test_a_path_can_be_taken_out(artifact: Artifact, refused: Any) -> None:
    before = tree(artifact.folder)
    file = copy_exit(artifact, 3, artifact.folder.parent / "copy")
    add_draft(artifact.folder, DraftPlan(name="one", cut=3, layers=(0,)), file)
    assert "no draft path" in run("compress", artifact.folder, "--name", "one", "--remove")
    assert tree(artifact.folder) == before
    assert "has none" in refused("compress", artifact.folder, "--name", "one", "--remove")


# ---------------------------------------------------------------- collm bench compress


@pytest.fixture
def quick_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process for each path: what those measure has a test of its own."""
    monkeypatch.setattr("collm.tune.variants.memory_bytes", lambda artifact, name: len(name))


@pytest.mark.usefixtures("quick_memory")
def test_the_bench_compares_and_goes_on(artifact: Artifact, corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    before = tree(artifact.folder)
    out, page = tmp_path / "out.json", tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    options = ["bench", "compress", artifact.folder, "--cuts", "3", "--variants", "ffn50,drop2",
               "--data", corpus, "--rounds", "2", "--budget", "1", "--work", tmp_path / "work",
               "--out", out, *SMALL]  # fmt: skip
    text = run(*options, "--page", page)
    assert tree(artifact.folder) == before
    raw = read_raw(out)
    names = [v["name"] for v in raw["variants"]]
    assert names == ["c3-int8", "c3-ffn50", "c3-drop2"]
    by_name = {v["name"]: v for v in raw["variants"]}
    assert by_name["c3-ffn50"]["file_bytes"] < by_name["c3-int8"]["file_bytes"]
    assert by_name["c3-ffn50"]["channels"] == [64, 64, 64]  # half of three groups, rounded
    assert len(by_name["c3-drop2"]["layers"]) == 1
    for v in raw["variants"]:
        assert v["agreement"] is not None and len(v["seconds"]) == 2
        assert v["memory_bytes"] > 0
    assert "Draft paths up to layer 3" in text and "smaller and faster than int8" in text
    assert page.read_text().startswith(f"before\n{BEGIN}\n") and "old" not in page.read_text()
    assert markdown(raw) in page.read_text() and page.read_text().endswith(f"{END}\nafter\n")
    # The same command measures only the time again, and a table is made from figures alone.
    trained = sorted((tmp_path / "work" / "drafts").glob("*/checkpoint"))
    stamps = [path.stat().st_mtime_ns for path in trained]
    run(*options)
    assert [path.stat().st_mtime_ns for path in trained] == stamps
    assert "Draft paths up to layer 3" in run("bench", "compress", artifact.folder, "--raw", out)


@pytest.mark.usefixtures("quick_memory")
def test_no_budget_means_no_tuning(artifact: Artifact, corpus: Path, tmp_path: Path) -> None:
    record = json.loads(
        run("bench", "compress", artifact.folder, "--cuts", "3", "--variants", "stored", "--data",
            corpus, "--rounds", "1", "--budget", "0", "--work", tmp_path / "w", "--json", *SMALL)
    )  # fmt: skip
    assert all(v["agreement"] is None for v in record["variants"])
    assert len(lines(record)) == 2


def variant(label: str, **changes: Any) -> dict[str, Any]:
    made = {
        "cut": 15, "name": label, "label": label, "layers": list(range(15)),
        "channels": [1536] * 15, "weights": "int4", "file_bytes": 60, "agreement_untuned": 0.5,
        "accepted_untuned": 1.0, "agreement": None, "accepted": None, "tuning_seconds": 0.0,
        "memory_bytes": 100, "seconds": [0.004, 0.004, 0.004],
    }  # fmt: skip
    return {**made, **changes}


def test_what_counts_is_smaller_faster_and_as_good() -> None:
    small = {"file_bytes": 40, "memory_bytes": 70, "seconds": [0.003, 0.0031, 0.0029]}
    raw = {
        "model": "m",
        "threads": 1,
        "held_out_rows": 10,
        "settings": {"tune_tokens": 5, "machine": "this one"},
        "variants": [
            variant("int8"),
            variant("good", **small, agreement_untuned=0.47, agreement=0.481),
            variant("worse", **small, agreement_untuned=0.3, agreement=0.479),
            variant("large", **{**small, "memory_bytes": 100}),
            variant("slow", **{**small, "seconds": [0.003, 0.0041, 0.0042]}),
        ],
    }
    made = {line.label: line for line in lines(raw)}
    assert [name for name, line in made.items() if line.counts] == ["good"]
    assert made["good"].loss == pytest.approx(0.019)
    assert made["good"].cells[-2:] == ("-1.9", "yes")
    assert made["worse"].cells[-2:] == ("-2.1", "") and made["int8"].cells[-2:] == ("int8", "")
    assert made["good"].cells[6].startswith("1.33 (")
    assert answer(raw).endswith("good up to 15.")
    assert "No variant" in answer({**raw, "variants": raw["variants"][:1]})
    assert "| good | 15 × 1536 | 47.0 | 48.1 | 1.00 |" in markdown(raw)


@pytest.mark.parametrize("content", ["", "[]", '{"format": "collm-compress"}', "[" * 9999])
def test_damaged_figures_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "raw.json"
    path.write_text(content)
    with pytest.raises(UsageError, match="no figures of collm bench compress"):
        read_raw(path)


def test_a_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    with pytest.raises(UsageError, match="lacks the lines"):
        update_page(page, {"variants": [], "settings": {}})
    assert page.read_text() == "nothing\n"


def test_memory_is_measured_in_a_process_of_its_own(artifact: Artifact, tmp_path: Path) -> None:
    file = copy_exit(artifact, 3, tmp_path / "copy")
    add_draft(artifact.folder, DraftPlan(name="one", cut=3, layers=(0,)), file)
    made = Artifact(artifact.folder)
    assert 10**5 < memory_bytes(made, "one") < 10**9
    from collm.errors import CollmError

    with pytest.raises(CollmError, match="ended with"):
        memory_bytes(made, "none")


def test_channels_of_a_plan_decide_its_digest(artifact: Artifact) -> None:
    plans = [
        DraftPlan(name="a", cut=3, layers=(0, 1), channels=channels)
        for channels in ({}, {0: np.arange(32)}, {0: np.arange(32, 64)}, {1: np.arange(32)})
    ]
    assert len({plan.digest(artifact) for plan in plans}) == 4


def test_the_table_in_the_docs_is_made_from_the_raw_figures() -> None:
    docs = Path(__file__).parents[2] / "docs"
    raw = read_raw(docs / "results/compress.json")
    assert f"{BEGIN}\n\n{markdown(raw)}\n\n{END}" in (docs / "compression.md").read_text()
