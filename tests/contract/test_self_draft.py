"""A cloud that drafts with its own exits streams what a plain one does, bit for bit."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import pytest
from tests.exit_files import exit_file
from tests.support import F32, RandomCheckpoint

from collm.cli.main import main
from collm.config import Generation, Sampling
from collm.errors import PlacementError, PromptError
from collm.limits import Limits
from collm.link.background import BackgroundServer
from collm.link.base import Link, Peer
from collm.link.grpc_client import connect
from collm.link.memory import MemoryCloud
from collm.model.artifact import Artifact
from collm.model.build import build
from collm.model.exits import add_exit
from collm.runtime.stage import Stage
from collm.session.client import CloudClient
from collm.session.cloud import CloudService
from collm.session.edge import Edge
from collm.session.self_draft import SelfDraft, self_draft
from collm.wire.encoding import decode_cloud, encode
from collm.wire.messages import Append, Crop, Finished, Generate, Hello, Token

LIMITS = Limits(connect_seconds=3.0, verdict_seconds=5.0, linger_seconds=0.2, kv_step=16)
PROMPT = [5, 17, 42, 99, 7, 250, 31]
CONTEXT = 96
GREEDY = Sampling()
SAMPLINGS = {
    "greedy": GREEDY,
    "sampled": Sampling(temperature=0.8, top_p=0.95, top_k=40, seed=11),
    "repetition penalty": Sampling(repetition_penalty=1.3),
    "all of it": Sampling(temperature=1.1, seed=4, repetition_penalty=1.2),
}


class Quiet(RandomCheckpoint):
    """Layers that say little: exits are often right, and often wrong."""

    def floats(self, name: str) -> F32:
        made = super().floats(name)
        return made if "embed" in name or "norm" in name else made * 0.7


@dataclass(frozen=True)
class World:
    """Clouds of one artifact, all over the same kind of link."""

    artifact: Artifact
    stage: Stage
    kind: str
    stack: ExitStack

    def dial(self, how: SelfDraft | None) -> Callable[[], Link]:
        service = CloudService(self.stage, LIMITS, how)
        if self.kind == "memory":
            return self.stack.enter_context(MemoryCloud(service, LIMITS)).connect
        server = self.stack.enter_context(BackgroundServer(service, "127.0.0.1:0", LIMITS))
        return lambda: connect(server.address, LIMITS)

    def drafts(
        self, cuts: Sequence[int] = (1, 2), criterion: str = "confidence:0.1", draft: int = 5
    ) -> SelfDraft:
        return self_draft(self.artifact, cuts, criterion=criterion, draft=draft)

    @contextmanager
    def client(self, dial: Callable[[], Link]) -> Iterator[CloudClient]:
        fingerprint, vocabulary = self.artifact.fingerprint, self.artifact.architecture.vocab_size
        with CloudClient(
            dial(), fingerprint=fingerprint, cut=0, vocabulary=vocabulary, limits=LIMITS
        ) as client:
            client.append(PROMPT, None)
            yield client

    def text(
        self,
        dial: Callable[[], Link],
        sampling: Sampling = GREEDY,
        max_tokens: int = 40,
        stop: Sequence[int] = (),
    ) -> list[Token]:
        with self.client(dial) as client:
            return list(client.generate(max_tokens, stop, sampling))


def said(tokens: Sequence[Token]) -> list[tuple[int, int, float]]:
    """What must be the same: where, what, and how likely."""
    return [(token.position, token.token_id, token.logprob) for token in tokens]


@pytest.fixture(scope="module", params=["int4", "fp32"])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Exits with and without a cache of their own, one with a shortlist, one that is fed."""
    folder: Path = tmp_path_factory.mktemp("quiet") / "artifact"
    checkpoint = Quiet(max_position_embeddings=CONTEXT)
    build(checkpoint, folder, cuts=(1, 2, 3), weights=request.param)
    arch = checkpoint.architecture
    add_exit(folder, exit_file(folder.parent / "x2", arch, 2, "layer", shortlist=200, window=16))
    add_exit(folder, exit_file(folder.parent / "x3", arch, 3, "linear", feed=(1,), mapped=True))
    return Artifact(folder)


@pytest.fixture(params=["memory", "grpc"])
def world(request: pytest.FixtureRequest, artifact: Artifact) -> Iterator[World]:
    with ExitStack() as stack:
        stage = Stage(artifact, range(4), exits=(1, 2, 3), limits=LIMITS)
        yield World(artifact, stage, request.param, stack)


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS.keys())
def test_the_text_and_its_logprobs_are_the_plain_clouds(world: World, sampling: Sampling) -> None:
    expected = said(world.text(world.dial(None), sampling))
    assert len(expected) == 40
    for how in (
        world.drafts((1,), "confidence:0", draft=1),
        world.drafts((1,), "confidence:0.3", draft=8),
        world.drafts((2,), "confidence:0", draft=3),
        world.drafts((1, 2, 3), "margin:0.02 & coherence:logprob=-9", draft=6),
        world.drafts((1, 3), "patience:2", draft=128),
        world.drafts((1,), "confidence:1", draft=4),
    ):
        assert said(world.text(world.dial(how), sampling)) == expected, how.criterion.name


def test_drafts_are_made_and_both_stand_and_fall(world: World) -> None:
    tokens = world.text(world.dial(world.drafts((1,), "confidence:0", draft=4)))
    opening = [token for token in tokens if token.cloud_seconds]
    assert len(opening) < 40  # rounds; every token after a round's first comes without time
    assert opening[0] == tokens[0] and tokens[1].cloud_seconds > 0  # nothing drafted for the first
    assert sum(token.rejected for token in tokens) > 0
    assert all(not token.rejected for token in tokens if not token.cloud_seconds)
    assert all(token.rejected <= 4 for token in tokens)


@pytest.mark.parametrize("max_tokens", [1, 2, 7])
def test_no_token_more_than_wanted(world: World, max_tokens: int) -> None:
    plain, drafting = world.dial(None), world.dial(world.drafts((1,), "confidence:0", draft=9))
    expected = said(world.text(plain, max_tokens=max_tokens))
    assert len(expected) == max_tokens
    assert said(world.text(drafting, max_tokens=max_tokens)) == expected


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS.keys())
def test_stop_ids_end_the_text_where_the_plain_cloud_ends_it(
    world: World, sampling: Sampling
) -> None:
    plain, drafting = world.dial(None), world.dial(world.drafts((1,), "confidence:0", draft=9))
    text = [token.token_id for token in world.text(plain, sampling)]
    for stop in (text[1], text[9], text[20]):
        expected = said(world.text(plain, sampling, stop=[stop]))
        assert len(expected) == text.index(stop) + 1
        assert said(world.text(drafting, sampling, stop=[stop])) == expected


def test_the_context_is_filled_to_the_last_position(world: World) -> None:
    plain, drafting = world.dial(None), world.dial(world.drafts((1,), "confidence:0", draft=7))
    expected = said(world.text(plain, max_tokens=1000))
    assert [place for place, *_ in expected] == list(range(len(PROMPT), CONTEXT + 1))
    assert said(world.text(drafting, max_tokens=1000)) == expected


def test_two_sessions_take_turns(world: World) -> None:
    plain = world.dial(None)
    drafting = world.dial(world.drafts((1, 2), "confidence:0.05", draft=4))
    expected = [said(world.text(plain, sampling)) for sampling in SAMPLINGS.values()][:2]
    with world.client(drafting) as first, world.client(drafting) as second:
        streams = [
            client.generate(40, (), sampling)
            for client, sampling in zip((first, second), SAMPLINGS.values(), strict=False)
        ]
        pairs = list(zip_longest(*streams))
    for made, one in zip(zip(*pairs, strict=True), expected, strict=True):
        assert said(made) == one


def test_what_was_drafted_in_vain_is_counted(world: World) -> None:
    counts = []
    for how in (None, world.drafts((1,), "confidence:0", draft=4)):
        with world.client(world.dial(how)) as client:
            tokens = list(client.generate(30, (), GREEDY))
            counts.append((client.rows_run, client.heads_run))
    assert counts[0] == (len(PROMPT) + 29, 30)
    rejected = sum(token.rejected for token in tokens)
    assert rejected > 0
    assert counts[1] == (counts[0][0] + rejected, 30 + rejected)


def test_an_edge_in_mode_cloud_notices_nothing_but_time(world: World) -> None:
    made = Generation(mode="cloud", max_tokens=24, ignore_eos=True)
    answers = []
    for how in (None, world.drafts()):
        edge = Edge(
            world.artifact, mode="cloud", placement=0, connect=world.dial(how), limits=LIMITS
        )
        answers.append(edge.answer(PROMPT, made).finish())
    plain, drafted = answers
    assert [(t.token_id, t.confidence, t.source) for t in drafted.tokens] == [
        (t.token_id, t.confidence, t.source) for t in plain.tokens
    ]
    assert drafted.rounds == 1 and drafted.cloud_seconds > 0


def test_later_turns_are_drafted_too(world: World) -> None:
    """Kept sessions go on, with other continuations of the text, shorter and longer."""
    turns = ((7, [3, 4]), (20, [9]), (12, [1, 2, 3, 4, 5]), (28, [8, 8]))
    for sampling in (GREEDY, SAMPLINGS["sampled"]):
        for how in (
            world.drafts((1,), "confidence:0", draft=4),
            world.drafts((2,), "confidence:0", draft=3),
            world.drafts((1, 2, 3), "margin:0.02 & coherence:logprob=-9", draft=6),
        ):
            texts, drafted = [], []
            for dial in (world.dial(None), world.dial(how)):
                with world.client(dial) as client:
                    made = [list(client.generate(20, (), sampling))]
                    for position, ids in turns:
                        assert client.take_up(position) == position
                        client.append(ids, None)
                        made.append(list(client.generate(12, (), sampling)))
                texts.append([said(one) for one in made])
                drafted.append(
                    [sum(not t.cloud_seconds or t.rejected for t in one) for one in made]
                )
            assert texts[0] == texts[1]
            assert all(drafted[1]) or "margin" in how.criterion.name, drafted


def test_verified_edges_are_served_by_a_drafting_cloud(world: World) -> None:
    made = Generation(max_tokens=24, threshold=0.05, ignore_eos=True)
    whole = Edge(world.artifact, mode="verified", placement=4, limits=LIMITS)
    expected = whole.answer(PROMPT, made).finish().token_ids
    dial = world.dial(world.drafts())
    for placement in (0, 1, 2, 3):
        edge = Edge(
            world.artifact, mode="verified", placement=placement, connect=dial, limits=LIMITS
        )
        assert edge.answer(PROMPT, made).finish().token_ids == expected


@pytest.mark.parametrize("taken", [1, 2, 5, 11])
def test_given_up_between_tokens_the_session_goes_on_from_there(
    artifact: Artifact, taken: int
) -> None:
    """The rest is asked for again: wherever it was left, no draft is in the way."""
    stage = Stage(artifact, range(4), exits=(1,), limits=LIMITS)
    how = self_draft(artifact, (1,), criterion="confidence:0", draft=6)
    texts = []
    for service in (CloudService(stage, LIMITS), CloudService(stage, LIMITS, how)):
        conversation = service.open(Peer("test"))
        hello = Hello(protocol_major=1, protocol_minor=1, fingerprint=artifact.fingerprint,
                      cut=0, wire_format="ids", software="test")  # fmt: skip
        list(conversation.receive(encode(hello)))
        list(
            conversation.receive(
                encode(Append(epoch=0, base=0, token_ids=tuple(PROMPT), rows=None))
            )
        )
        replies = iter(conversation.receive(encode(_generate(0, len(PROMPT)))))
        begun = [_token(next(replies)) for _ in range(taken)]
        replies.close()  # type: ignore[attr-defined]
        text = [*PROMPT, *(token.token_id for token in begun)]
        # What is held of it may be more than was told; back to the prompt, then all of it again.
        list(conversation.receive(encode(Crop(epoch=1, position=len(PROMPT)))))
        rest = Append(epoch=1, base=len(PROMPT), token_ids=tuple(text[len(PROMPT) :]), rows=None)
        list(conversation.receive(encode(rest)))
        *tokens, last = conversation.receive(encode(_generate(1, len(text))))
        assert isinstance(decode_cloud(last, LIMITS), Finished)
        texts.append(said([*begun, *map(_token, tokens)]))
        conversation.close()
    assert texts[0] == texts[1]
    assert len(texts[0]) == taken + 20


def _generate(epoch: int, base: int) -> Generate:
    return Generate(epoch=epoch, base=base, max_tokens=20, stop_ids=(), sampling=GREEDY)


def _token(frame: bytes) -> Token:
    message = decode_cloud(frame, LIMITS)
    assert isinstance(message, Token)
    return message


def test_what_cannot_be_is_refused_in_one_line(artifact: Artifact) -> None:
    with pytest.raises(PlacementError, match=r"exit 4: this cloud can draft with .* at 1, 2, 3$"):
        self_draft(artifact, (1, 4), criterion="confidence:0.6", draft=6)
    with pytest.raises(PromptError, match="sureness"):
        self_draft(artifact, (1,), criterion="sureness:0.5", draft=6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--exits", "1,7"], "exit 7"),
        (["--exits", "one"], "--exits 'one'"),
        (["--exits", "1", "--criterion", "sureness:0.5"], "sureness"),
        (["--exits", "1", "--draft", "0"], "--draft"),
    ],
)
def test_the_command_refuses_before_the_port_is_opened(
    artifact: Artifact,
    options: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def opened(*_: object, **__: object) -> None:
        pytest.fail("the cloud was started")

    monkeypatch.setattr("collm.cli.cloud.run_cloud", opened)
    monkeypatch.setattr(sys, "argv", ["collm", "cloud", str(artifact.folder), *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert words in line and line.count("\n") == 1
