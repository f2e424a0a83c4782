"""`collm eval quality` on a tiny model over the in-memory link, beside figures counted by hand."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from tests.support import RandomCheckpoint, random_artifact, token_ids

from collm.bench.datasets import Item
from collm.bench.quality import Bench, Prompt, encode_item, header_of, read_prompts
from collm.bench.quality_answers import FILE, Answered, AnswerFile, Header
from collm.bench.quality_measure import (
    Judge,
    cloud_flops,
    needs_rouge,
    repeated_ngrams,
    rouge_l,
    same_places,
    same_prefix,
)
from collm.bench.quality_report import FIGURES, make_report, shown
from collm.bench.quality_settings import BASELINE, Setting, with_baseline
from collm.bench.stats import Interval
from collm.config import Generation
from collm.errors import PromptError, UsageError
from collm.limits import Limits
from collm.link.base import Link
from collm.link.memory import MemoryCloud
from collm.model.artifact import Artifact
from collm.policy.sampling import log_probability
from collm.runtime.stage import Stage
from collm.session.cloud import CloudService
from collm.session.edge import Edge

LIMITS = Limits(connect_seconds=3.0, verdict_seconds=5.0, linger_seconds=0.2, kv_step=16)
TOKENS = 10
DATA = Path(__file__)
"""Any file will do."""
VERIFIED = Setting(mode="verified", placement=2)
THRESHOLD = Setting(mode="threshold", placement=2, criterion="confidence:0.05", exits=(1, 2))
STANDALONE = Setting(mode="standalone", placement=2, exits=(2,))
REFINE = Setting(mode="refine", placement=2, segment=5, passes=2)
SETTINGS = with_baseline([VERIFIED, THRESHOLD, STANDALONE, REFINE])
PROMPTS = [
    Prompt(ids=tuple(token_ids(i, 8 + i)), domain="ab"[i % 2], reference="the edge" if i else None)
    for i in range(4)
]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return random_artifact(tmp_path_factory.mktemp("quality") / "artifact", cuts=(1, 2))


class CountedCloud:
    """A cloud in this process, and how often it was dialled."""

    def __init__(self, cloud: MemoryCloud) -> None:
        self._cloud = cloud
        self.dialled = 0

    def __call__(self) -> Link:
        self.dialled += 1
        return self._cloud.connect()


@pytest.fixture(scope="module")
def cloud(artifact: Artifact) -> Iterator[CountedCloud]:
    stage = Stage(artifact, range(4), limits=LIMITS)
    with MemoryCloud(CloudService(stage, LIMITS), LIMITS) as cloud:
        yield CountedCloud(cloud)


@pytest.fixture(scope="module")
def bench(artifact: Artifact, cloud: CountedCloud) -> Bench:
    return Bench(artifact, SETTINGS, cloud, max_tokens=TOKENS)


@pytest.fixture(scope="module")
def answers(artifact: Artifact, bench: Bench) -> list[Answered]:
    return bench.run(PROMPTS, AnswerFile(None, header(artifact)))


def header(artifact: Artifact, **changes: object) -> Header:
    made = header_of(artifact, DATA, max_tokens=TOKENS, prompt_tokens=64, cloud="spawn", threads=1)
    return replace(made, **changes)  # type: ignore[arg-type]


def of(answers: list[Answered], setting: Setting) -> list[Answered]:
    return [answer for answer in answers if answer.setting == setting.key]


# --------------------------------------------------------------------------------- answers


def test_every_setting_answers_every_prompt(answers: list[Answered]) -> None:
    assert [(a.prompt, a.setting) for a in answers] == [
        (prompt.digest, setting.key) for prompt in PROMPTS for setting in SETTINGS
    ]


def test_the_full_models_own_text_is_its_own_choice_throughout(answers: list[Answered]) -> None:
    for setting in (BASELINE, VERIFIED):
        for answer, own in zip(of(answers, setting), of(answers, BASELINE), strict=True):
            assert answer.token_ids == own.token_ids
            assert answer.agreed == answer.same_prefix == answer.same_places == answer.tokens
            assert answer.longest == own.tokens and answer.rouge_full in (None, 1.0)
            assert answer.logprob == own.logprob


def test_other_texts_are_judged_by_the_full_model_token_by_token(
    artifact: Artifact, answers: list[Answered]
) -> None:
    whole = Stage(artifact, range(4))
    differing = 0
    for setting in (THRESHOLD, STANDALONE, REFINE):
        for prompt, answer in zip(PROMPTS, of(answers, setting), strict=True):
            session = whole.open()
            session.append_ids(prompt.ids)
            agreed, logprob = 0, 0.0
            for token_id in answer.token_ids:
                logits = session.logits(session.position - 1)[-1]
                agreed += int(logits.argmax()) == token_id
                logprob += log_probability(logits, token_id)
                session.append_ids([token_id])
            assert (answer.agreed, answer.logprob) == (agreed, pytest.approx(logprob))
            differing += agreed < answer.tokens
    assert differing


def test_answers_are_those_of_the_edge(
    artifact: Artifact, cloud: CountedCloud, answers: list[Answered]
) -> None:
    edge = Edge(artifact, mode="threshold", placement=2, exits=(1, 2), connect=cloud)
    made = Generation(mode="threshold", max_tokens=TOKENS, criterion="confidence:0.05")
    for prompt, answer in zip(PROMPTS, of(answers, THRESHOLD), strict=True):
        account = edge.answer(prompt.ids, made).finish()
        assert answer.token_ids == account.token_ids and answer.text == account.text
        assert answer.rounds == account.rounds and answer.cloud_rows == account.cloud_rows
        assert sum(answer.criteria.values()) == sum(answer.sources.values()) == answer.tokens


def test_cloud_work_is_counted_from_where_the_cloud_begins(
    artifact: Artifact, answers: list[Answered]
) -> None:
    d, ffn, vocabulary = 64, 96, 300
    layer = d * (4 + 2 + 2 + 4) * 16 + 3 * d * ffn
    arch = artifact.architecture
    assert cloud_flops(arch, 0, 1, 0) == 2 * 4 * layer
    assert cloud_flops(arch, 3, 5, 2) == 2 * layer * 5 + 2 * d * vocabulary * 2
    weights = RandomCheckpoint()
    names = [f"self_attn.{x}_proj" for x in "qkvo"] + [
        f"mlp.{x}_proj" for x in ("gate", "up", "down")
    ]
    assert layer == sum(weights.floats(f"model.layers.0.{n}.weight").size for n in names)
    for setting, start in ((BASELINE, 0), (VERIFIED, 2), (THRESHOLD, 1), (REFINE, 2)):
        for answer in of(answers, setting):
            expected = cloud_flops(arch, start, answer.cloud_rows, answer.cloud_heads)
            assert answer.cloud_flops == expected
    for prompt, answer in zip(PROMPTS, of(answers, BASELINE), strict=True):
        if answer.finish_reason == "length":
            assert answer.cloud_rows == len(prompt.ids) + answer.tokens - 1
            assert answer.cloud_heads == answer.tokens
    assert all(a.cloud_flops == a.rounds == a.bytes_up == 0 for a in of(answers, STANDALONE))


def test_a_judge_reads_many_answers_to_one_prompt_exactly(artifact: Artifact) -> None:
    whole, prompt = Stage(artifact, range(4)), token_ids(1, 20)
    judge = Judge(whole, prompt)
    texts = [token_ids(i, n) for i, n in ((2, 7), (3, 1), (4, 150), (2, 7), (5, 2))]
    found = [judge.read(text) for text in texts]
    assert found == [Judge(whole, prompt).read(text) for text in texts]
    assert judge.read([]).agreed == 0


# -------------------------------------------------------------------------- small figures


def test_texts_are_compared_by_prefix_and_by_place() -> None:
    assert same_prefix([1, 2, 3, 9], [1, 2, 4, 9]) == 2
    assert same_places([1, 2, 3, 9], [1, 2, 4, 9, 5]) == 3
    assert same_prefix([], [1]) == same_places([], [1]) == 0


def test_repeated_ngrams() -> None:
    assert repeated_ngrams([1, 2, 3, 4, 5, 6]) == (0, 3)
    assert repeated_ngrams([1, 2, 3, 4] * 3) == (5, 9)
    assert repeated_ngrams([1, 2]) == (0, 0)


def test_rouge_l_counts_words() -> None:
    assert rouge_l("the cat sat", "The dog sat!") == pytest.approx(2 / 3)
    assert rouge_l("", "words") == 0.0
    assert rouge_l("a", "…") is None
    assert rouge_l("…", "…") == 1.0


def test_without_the_package_rouge_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'collm\[quality\]'"):
        needs_rouge()


# --------------------------------------------------------------------------------- prompts


def test_long_articles_are_cut_and_the_rest_of_the_prompt_is_kept(artifact: Artifact) -> None:
    tokenizer = artifact.tokenizer()
    item = Item(prompt="Summarize.", article="the easy tokens " * 60)
    whole = encode_item(tokenizer, item, 10_000)
    cut = encode_item(tokenizer, item, 64)
    assert not whole.was_cut and cut.was_cut
    assert 50 < len(cut.ids) <= 64 < len(whole.ids)
    text = tokenizer.decode(cut.ids)
    assert "Summarize.\n\nthe easy tokens" in text and text.endswith("assistant\n")
    start = encode_item(tokenizer, Item(prompt="the hard ones " * 60, is_chat=False), 20)
    assert len(start.ids) == 20 and start.was_cut


def test_doubles_and_giants_are_left_out(artifact: Artifact) -> None:
    items = [Item(prompt=text) for text in ("Hi", "Hi", "no " * 600, "Yo")]
    found = read_prompts(artifact, items, prompt_tokens=64, max_tokens=TOKENS)
    assert (len(found.chosen), found.doubles, found.too_long, found.cut) == (2, 1, 1, 0)
    with pytest.raises(PromptError, match="none of 1 prompts leaves room"):
        read_prompts(artifact, items[2:3], prompt_tokens=64, max_tokens=TOKENS)


# --------------------------------------------------------------------------------- resuming


def test_an_interrupted_run_goes_on_where_it_was(
    artifact: Artifact, bench: Bench, cloud: CountedCloud, answers: list[Answered], tmp_path: Path
) -> None:
    def stops(what: str, done: int, total: int) -> None:
        if done == 2 * len(SETTINGS) + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.run(PROMPTS, AnswerFile(tmp_path / "out", header(artifact)), stops)
    path = tmp_path / "out" / FILE
    with path.open("a") as file:
        file.write('{"setting": "cut sh')
    kept = AnswerFile(tmp_path / "out", header(artifact))
    assert len(kept.answers) == 2 * len(SETTINGS)
    before = cloud.dialled
    made = bench.run(PROMPTS, kept)
    assert cloud.dialled - before == 2 * sum(s.mode != "standalone" for s in SETTINGS)
    assert [a.token_ids for a in made] == [a.token_ids for a in answers]
    again = bench.run(PROMPTS, AnswerFile(tmp_path / "out", header(artifact)))
    assert again == made and cloud.dialled - before == 2 * 4


def test_settings_can_be_added_and_others_are_left_alone(
    artifact: Artifact, cloud: CountedCloud, answers: list[Answered], tmp_path: Path
) -> None:
    kept = AnswerFile(tmp_path, header(artifact))
    kept.add(of(answers, BASELINE) + of(answers, VERIFIED))
    kept = AnswerFile(tmp_path, header(artifact))
    some = [BASELINE, STANDALONE]
    assert kept.others({s.key for s in some}).startswith("4 answers of 1 settings")
    made = Bench(artifact, some, cloud, max_tokens=TOKENS).run(PROMPTS, kept)
    assert of(made, BASELINE) == of(answers, BASELINE)
    timeless = {"edge_seconds": 0, "wall_seconds": 0, "first_token_seconds": 0}
    for one, other in zip(of(made, STANDALONE), of(answers, STANDALONE), strict=True):
        assert asdict(one) | timeless == asdict(other) | timeless


def test_folders_of_other_runs_are_refused_in_a_line(artifact: Artifact, tmp_path: Path) -> None:
    def refusal(ours: Header, folder: Path = tmp_path) -> str:
        with pytest.raises(UsageError) as caught:
            AnswerFile(folder, ours)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    AnswerFile(tmp_path, header(artifact))
    assert "--tokens 10, this run has 11" in refusal(header(artifact, max_tokens=11))
    assert "--data" in refusal(header(artifact, data="0" * 64))
    assert "fingerprint" in refusal(header(artifact, fingerprint="f" * 64))
    path = tmp_path / FILE
    path.write_text(path.read_text() + '{"setting": "x"}\n')
    assert f"{path}, line 2: no sound prompt" in refusal(header(artifact))
    path.write_text("notes\n")
    assert "not a file of collm eval quality" in refusal(header(artifact))
    assert "expected a folder" in refusal(header(artifact), path)


# ---------------------------------------------------------------------------------- report


def test_the_report_counts_what_the_answers_say(
    artifact: Artifact, answers: list[Answered]
) -> None:
    prompts = read_prompts(artifact, [Item(prompt="Hi")], prompt_tokens=64, max_tokens=TOKENS)
    report = make_report(
        artifact,
        SETTINGS,
        answers,
        prompts,
        header(artifact),
        data="d",
        compared=VERIFIED,
    )
    assert report.domains == ("a", "b", "all")
    base, alone = of(answers, BASELINE), of(answers, STANDALONE)
    found = {one.label: one for one in report.of("all")}
    assert [one.prompts for one in report.of("a")] == [2] * len(SETTINGS)
    figures = found["standalone exits=2"].figures

    def value(name: str) -> float:
        interval = figures[name]
        assert interval is not None
        assert interval.low is not None and interval.high is not None
        assert interval.low - 1e-12 <= interval.value <= interval.high + 1e-12
        return interval.value

    tokens = sum(a.tokens for a in alone)
    assert value("agreement") == pytest.approx(sum(a.agreed for a in alone) / tokens)
    assert value("mean_logprob") == pytest.approx(sum(a.logprob for a in alone) / tokens)
    own = sum(a.logprob for a in base) / sum(a.tokens for a in base)
    assert value("logprob_gap") == pytest.approx(value("mean_logprob") - own)
    assert value("saved_time") == value("saved_flops") == 1.0
    assert value("rouge_reference") == pytest.approx(
        np.mean([a.rouge_reference for a in alone if a.rouge_reference is not None])
    )
    of_verified = found["verified"].figures["saved_flops"]
    assert of_verified is not None
    ours = sum(a.cloud_flops for a in of(answers, VERIFIED))
    assert of_verified.value == pytest.approx(1 - ours / sum(a.cloud_flops for a in base))
    assert found["verified"].differences == {}
    less = found["standalone exits=2"].differences["agreement"]
    assert less is not None and less.value == pytest.approx(value("agreement") - 1)
    assert found["cloud"].differences["agreement"] is not None
    json.dumps(report.to_json())


def test_figures_are_shown_with_half_their_interval() -> None:
    agreement = next(f for f in FIGURES if f.name == "agreement")
    assert shown(agreement, Interval(value=0.5, low=0.4, high=0.62)) == "50.0 ± 11.0 %"
    assert shown(agreement, Interval(value=1.0, low=None, high=None)) == "100.0 %"
    assert shown(agreement, Interval(value=0.1, low=0.1, high=0.1), signed=True) == "+10.0 %"
    assert shown(agreement, None) == ""
