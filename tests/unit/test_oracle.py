"""An oracle's drafts over the in-memory link: the text stays, the rounds follow its rate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support import random_artifact

from collm.bench.quality import Bench, Prompt, header_of
from collm.bench.quality_answers import Answered, AnswerFile
from collm.bench.quality_settings import BASELINE, Setting, parse_setting, with_baseline
from collm.config import Generation, Sampling
from collm.errors import PromptError
from collm.limits import Limits
from collm.link.memory import MemoryCloud
from collm.model.artifact import Artifact
from collm.runtime.stage import Stage, StageSession
from collm.session.client import CloudClient
from collm.session.cloud import CloudService
from collm.session.edge import Edge
from collm.session.oracle import Oracle

LIMITS = Limits(connect_seconds=3.0, verdict_seconds=5.0, linger_seconds=0.2, kv_step=16)
PROMPT = [5, 17, 42, 99, 7, 250, 31]
MADE = Generation(max_tokens=40, ignore_eos=True)
ROUND = MADE.draft + 1
"""Tokens of a round whose draft is all right."""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return random_artifact(tmp_path_factory.mktemp("oracle") / "artifact", cuts=(1, 2, 3))


@pytest.fixture(scope="module")
def cloud(artifact: Artifact) -> Iterator[MemoryCloud]:
    with MemoryCloud(CloudService(Stage(artifact, range(4), limits=LIMITS), LIMITS), LIMITS) as c:
        yield c


def edge_of(
    artifact: Artifact, cloud: MemoryCloud, exits: tuple[int, ...] | None, placement: int = 2
) -> Edge:
    return Edge(
        artifact, mode="verified", placement=placement, exits=exits, connect=cloud.connect,
        limits=LIMITS,
    )  # fmt: skip


@pytest.fixture(scope="module")
def own(artifact: Artifact) -> list[int]:
    """The full model's answer, made without any cloud."""
    whole = Edge(artifact, mode="verified", placement=4, limits=LIMITS)
    return whole.answer(PROMPT, MADE).finish().token_ids


def test_words_are_right_at_the_rate_and_stay_as_they_are() -> None:
    recorded = tuple(i % 300 for i in range(2000))
    oracle = Oracle(recorded, 0.7, seed=4)

    def words(oracle: Oracle) -> list[int | None]:
        return [oracle.word(i, vocabulary=300, never=(0, 2)) for i in range(2000)]

    said = words(oracle)
    wrong = [(w, r) for w, r in zip(said, recorded, strict=True) if w != r]
    assert 530 < len(wrong) < 670  # 600 expected, 3.4 standard deviations; the seed is fixed
    assert all(w is not None and 0 < w < 300 and w != 2 for w, _ in wrong)
    assert said == words(Oracle(recorded, 0.7, seed=4)) != words(replace(oracle, seed=5))
    other = Oracle(recorded[::-1], 0.7, seed=4)  # another answer is spoiled at other places
    hits = [word == right for word, right in zip(words(other), recorded[::-1], strict=True)]
    assert hits != [word == right for word, right in zip(said, recorded, strict=True)]
    assert oracle.word(2000, vocabulary=300, never=()) is None
    assert words(replace(oracle, rate=1.0)) == list(recorded)
    spoiled = words(replace(oracle, rate=0.0))
    assert all(w != r for w, r in zip(spoiled, recorded, strict=True))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.3, seed=11)])
@pytest.mark.parametrize(
    ("placement", "exits"), [(2, None), (3, (1, 2)), (2, ()), (0, ())],
    ids=["exits", "exits above the cut", "no exits", "ids only"],
)  # fmt: skip
def test_the_text_is_the_full_models_whatever_the_oracle_says(
    artifact: Artifact,
    cloud: MemoryCloud,
    placement: int,
    exits: tuple[int, ...] | None,
    sampling: Sampling,
) -> None:
    made = replace(MADE, sampling=sampling)
    whole = Edge(artifact, mode="verified", placement=4, limits=LIMITS)
    own = whole.answer(PROMPT, made).finish().token_ids
    edge = edge_of(artifact, cloud, exits, placement)
    for rate in (0.0, 0.5, 1.0):
        account = edge.answer(PROMPT, made, Oracle(tuple(own), rate)).finish()
        assert account.token_ids == own, rate
        if rate == 0.0:
            assert account.rounds == 40 and account.sources == {"cloud": 40}
        if rate == 1.0:
            assert account.rounds == math.ceil(40 / ROUND)
            assert account.sources == {"oracle": 40 - account.rounds, "cloud": account.rounds}
        if rate == 0.5:
            assert math.ceil(40 / ROUND) < account.rounds < 40
        assert {t.by for t in account.tokens if t.source == "oracle"} <= {"oracle"}


def test_drafts_run_to_their_full_length_whatever_the_criterion(
    artifact: Artifact, cloud: MemoryCloud, own: list[int]
) -> None:
    shy = replace(MADE, criterion="confidence:0.99 & margin:0.9", draft=16)
    account = edge_of(artifact, cloud, None).answer(PROMPT, shy, Oracle(tuple(own), 1.0)).finish()
    assert account.rounds == math.ceil(40 / 17)
    assert account.drafted == 16 + 16 + 5  # the last token of an answer is the cloud's


def test_beyond_the_recording_the_cloud_is_asked_for_every_token(
    artifact: Artifact, cloud: MemoryCloud, own: list[int]
) -> None:
    edge = edge_of(artifact, cloud, None)
    account = edge.answer(PROMPT, MADE, Oracle(tuple(own[:ROUND]), 1.0)).finish()
    assert account.token_ids == own
    assert account.rounds == 1 + 40 - ROUND
    assert account.drafted == ROUND - 1


def test_a_recording_that_ends_with_the_answer_ends_the_answer(
    artifact: Artifact, cloud: MemoryCloud, own: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the stop token of this answer's own, which the recording leaves out."""
    edge = edge_of(artifact, cloud, None)
    stop = own[12]
    recorded = own[: own.index(stop)]
    monkeypatch.setattr(edge.tokenizer, "eos_ids", frozenset({stop}))
    polite = replace(MADE, ignore_eos=False)
    for rate in (0.0, 0.5, 1.0):
        account = edge.answer(PROMPT, polite, Oracle(tuple(recorded), rate)).finish()
        assert (account.token_ids, account.finish_reason) == (recorded, "stop")


@pytest.mark.parametrize(
    ("exits", "asked"), [(None, 2), ((1,), 1), ((), None)], ids=["all", "shallow", "none"]
)
def test_the_deepest_exit_is_run_for_every_word_and_no_other(
    artifact: Artifact,
    cloud: MemoryCloud,
    own: list[int],
    monkeypatch: pytest.MonkeyPatch,
    exits: tuple[int, ...] | None,
    asked: int | None,
) -> None:
    run, plain = [], StageSession.exit_at

    def counted(session: StageSession, cut: int) -> object:
        run.append(cut)
        return plain(session, cut)

    monkeypatch.setattr(StageSession, "exit_at", counted)
    edge = edge_of(artifact, cloud, exits)
    account = edge.answer(PROMPT, MADE, Oracle(tuple(own), 0.5)).finish()
    assert run == [asked] * (account.drafted if asked else 0)


def test_rows_travel_while_the_next_word_is_made(
    artifact: Artifact, cloud: MemoryCloud, own: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the exit at the cut in use each row goes up as it is there; else a draft's together."""
    sent: list[int] = []
    plain = CloudClient.append

    def counted(client: CloudClient, ids: list[int], rows: object, **more: bool) -> None:
        sent.append(len(ids))
        plain(client, ids, rows, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(CloudClient, "append", counted)
    made = replace(MADE, max_tokens=ROUND)
    edge_of(artifact, cloud, None).answer(PROMPT, made, Oracle(tuple(own), 1.0)).finish()
    assert sent == [len(PROMPT)] + [1] * (ROUND - 1)
    for exits in ((1,), ()):
        sent.clear()
        edge_of(artifact, cloud, exits).answer(PROMPT, made, Oracle(tuple(own), 1.0)).finish()
        assert sent == [len(PROMPT), ROUND - 1]


def test_oracles_that_cannot_be(artifact: Artifact, cloud: MemoryCloud) -> None:
    for rate in (-0.1, 1.5, math.nan):
        with pytest.raises(PromptError, match="expected 0 to 1"):
            Oracle((1,), rate)
    edge = edge_of(artifact, cloud, None)
    with pytest.raises(PromptError, match="outside 0 to 299"):
        edge.answer(PROMPT, MADE, Oracle((300,), 1.0))
    with pytest.raises(PromptError, match="leave lookup out"):
        edge.answer(PROMPT, replace(MADE, lookup=True), Oracle((1,), 1.0))
    for mode, placement in (("cloud", 0), ("threshold", 2), ("standalone", 2), ("verified", 4)):
        other = Edge(artifact, mode=mode, placement=placement, connect=cloud.connect)
        with pytest.raises(PromptError, match="expected mode verified with some of the layers"):
            other.answer(PROMPT, replace(MADE, mode=mode), Oracle((1,), 1.0))


# -------------------------------------------------------------------------------- settings

PLAIN = Setting(mode="verified", placement=2)


def test_both_are_read_and_written_in_the_same_words() -> None:
    foretold = parse_setting("verified drafter=oracle:0.90 draft=4", PLAIN)
    assert foretold == replace(PLAIN, drafter="oracle:0.9", draft=4)
    assert foretold.label == "verified draft=4 drafter=oracle:0.9"
    assert foretold.oracle([3, 4]) == Oracle((3, 4), 0.9)
    assert PLAIN.oracle([3, 4]) is None
    split = parse_setting("verified exits=none", PLAIN)
    assert split == replace(PLAIN, exits=()) and split.label == "verified exits=none"
    assert len({PLAIN.key, foretold.key, split.key}) == 3


def test_answers_kept_before_there_were_drafters_are_found() -> None:
    assert PLAIN.key == (
        '{"criterion": "", "deadline": 0.0, "draft": 8, "exits": null, "first_cut": null, '
        '"gap": 1.5, "lookup": false, "mode": "verified", "name": "", "passes": 6, '
        '"placement": 2, "rank": 3, "repetition": 0.5, "segment": 6, "wire": "f32"}'
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("verified drafter=oracle:1.1", "oracle:RATE with a rate from 0 to 1"),
        ("verified drafter=oracle", "oracle:RATE with a rate from 0 to 1"),
        ("verified drafter=oracle:nan", "oracle:RATE with a rate from 0 to 1"),
        ("verified drafter=parrot:0.9", "oracle:RATE with a rate from 0 to 1"),
        ("threshold drafter=oracle:0.9", "drafter=oracle:0.9 goes with mode verified"),
        ("standalone exits=none", "exits=none goes with mode verified, not standalone"),
        ("verified drafter=oracle:0.9 lookup=yes", "leave lookup out"),
        ("verified exits=", "or none"),
    ],
)
def test_settings_that_cannot_be(text: str, expected: str) -> None:
    with pytest.raises(PromptError) as caught:
        parse_setting(text, PLAIN)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("already", [False, True], ids=["at once", "added later"])
def test_the_bench_gives_the_oracle_the_baselines_answer(
    artifact: Artifact, cloud: MemoryCloud, tmp_path: Path, already: bool
) -> None:
    prompts = [Prompt(ids=tuple(PROMPT[: 4 + i]), domain="a", reference=None) for i in range(3)]
    texts = ("exits=none", "drafter=oracle:1", "drafter=oracle:0", "exits=none drafter=oracle:1")
    settings = with_baseline([parse_setting(f"verified {text}", PLAIN) for text in texts])
    header = header_of(
        artifact, Path(__file__), max_tokens=20, prompt_tokens=64, cloud="spawn", threads=1
    )
    kept = AnswerFile(tmp_path, header)
    if already:
        Bench(artifact, [BASELINE], cloud.connect, max_tokens=20).run(prompts, kept)
        kept = AnswerFile(tmp_path, header)
    made = Bench(artifact, settings, cloud.connect, max_tokens=20).run(prompts, kept)
    for prompt in prompts:
        found: dict[str, Answered] = {a.setting: a for a in made if a.prompt == prompt.digest}
        base, split, right, wrong, free = (found[s.key] for s in settings)
        for one in (split, right, wrong, free):
            assert (one.token_ids, one.text) == (base.token_ids, base.text)
        words = base.tokens + (base.finish_reason == "stop")  # the stop token is asked for too
        assert split.rounds == wrong.rounds == words
        assert right.rounds == free.rounds == math.ceil(words / ROUND)
