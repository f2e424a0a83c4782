"""Constrained answers are the constrained full model's, whoever makes the tokens and how."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from tests.contract.link_services import until
from tests.contract.tiers import LIMITS, PROMPT, Tiers
from tests.exit_files import exit_file
from tests.support import F32, RandomCheckpoint, tokenizer_json
from tokenizers import Tokenizer

from collm.config import Constraint, Generation, Refinement, Sampling
from collm.errors import Refused
from collm.link.base import Link
from collm.link.memory import MemoryCloud
from collm.model.artifact import Artifact
from collm.model.build import build
from collm.model.exits import add_exit
from collm.runtime.constraints import Masks
from collm.runtime.stage import Stage
from collm.serve.engine import Engine, EngineSettings
from collm.session.client import CloudClient
from collm.session.cloud import CloudService
from collm.session.edge import Edge
from collm.session.events import Account
from collm.session.self_draft import self_draft
from collm.wire.encoding import decode_client

__all__ = ["World", "artifact", "constrained", "finish", "world"]

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "ok": {"type": "boolean"},
                   "of": {"enum": ["edge", "cloud", "both of them"]}},
    "required": ["name", "ok", "of"],
    "additionalProperties": False,
}  # fmt: skip
SCHEMA_C = Constraint(kind="json_schema", text=json.dumps(SCHEMA))
REGEX = Constraint(kind="regex", text="([a-f]{2} ){3,6}[0-9]+")
LARK = Constraint(kind="lark", text='start: "(" start ")" | "[" start "]" | /[x-z]{9,30}/')
CONSTRAINTS = {"schema": SCHEMA_C, "regex": REGEX, "lark": LARK}
SAMPLINGS = {
    "greedy": Sampling(),
    "sampled": Sampling(temperature=0.9, top_p=0.95, seed=11, repetition_penalty=1.1),
}
MADE = Generation(max_tokens=48, threshold=0.1, draft=4)


class Quiet(RandomCheckpoint):
    """Layers that say little: exits are often right, and often wrong."""

    def floats(self, name: str) -> F32:
        made = super().floats(name)
        return made if "embed" in name or "norm" in name else made * 0.7


@dataclass(frozen=True)
class World:
    artifact: Artifact
    service: CloudService
    dial: Callable[[], Link]

    def edge(self, mode: str, placement: int, **options: object) -> Edge:
        options = {"connect": self.dial, "limits": LIMITS, **options}
        return Edge(self.artifact, mode=mode, placement=placement, **options)  # type: ignore[arg-type]

    def client(self, cut: int = 0) -> CloudClient:
        return CloudClient(self.dial(), fingerprint=self.artifact.fingerprint, cut=cut,
                           vocabulary=300, limits=LIMITS, dial=self.dial)  # fmt: skip


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The exit at 2 has a shortlist without digits, brackets and quotes: often it is at a loss."""
    folder: Path = tmp_path_factory.mktemp("quiet") / "artifact"
    checkpoint = Quiet(max_position_embeddings=128)
    build(checkpoint, folder, cuts=(1, 2, 3), weights="int4")
    add_exit(folder, exit_file(folder.parent / "x2", checkpoint.architecture, 2, "layer",
                               shortlist=60, window=16))  # fmt: skip
    return Artifact(folder)


@pytest.fixture
def world(artifact: Artifact) -> Iterator[World]:
    service = CloudService(Stage(artifact, range(4), limits=LIMITS), LIMITS)
    with MemoryCloud(service, LIMITS) as cloud:
        yield World(artifact, service, cloud.connect)
    service.close()


def finish(edge: Edge, generation: Generation) -> Account:
    account = edge.answer(PROMPT, replace(generation, mode=edge.mode)).finish()
    assert all(token.logprob is not None for token in account.tokens)
    return account


def whole(artifact: Artifact, made: Generation) -> Account:
    edge = Edge(artifact, mode="verified", placement=4, limits=LIMITS)
    return finish(edge, replace(made, ahead=None, lookup=False))


def constrained(constraint: Constraint, sampling: Sampling = SAMPLINGS["greedy"]) -> Generation:
    return replace(MADE, sampling=replace(sampling, constraint=constraint))


def obeys(constraint: Constraint, account: Account) -> bool:
    """Whether a finished answer is what was asked for; one cut off, what may become so."""
    text = account.text
    if account.finish_reason == "length":
        hub = Tokenizer.from_str(tokenizer_json())
        return text == hub.decode(account.token_ids) and len(account.tokens) == MADE.max_tokens
    if constraint.kind == "json_schema":
        value = json.loads(text)
        return (value.keys() == {"name", "ok", "of"} and len(value["name"]) <= 5
                and isinstance(value["ok"], bool) and value["of"] in SCHEMA["properties"]["of"]["enum"])  # type: ignore[index]  # noqa: E501  # fmt: skip
    if constraint.kind == "regex":
        return re.fullmatch(constraint.text, text) is not None
    opened = "".join({"(": ")", "[": "]"}[c] for c in text if c in "([")
    return re.fullmatch(r"[\[(]*[x-z]{9,30}" + re.escape(opened[::-1]), text) is not None


def is_under_way(artifact: Artifact, constraint: Constraint, account: Account) -> bool:
    """Whether every token of it was allowed where it stands."""
    masks = Masks(artifact, replace(constraint, start=len(PROMPT)))
    ids = list(PROMPT)
    for token in account.token_ids:
        if not masks.allowed(ids)[token]:
            return False
        ids.append(token)
    return True


WAYS: dict[str, tuple[str, int, dict[str, object]]] = {
    "drafts": ("verified", 3, {}),
    "a shortlist": ("verified", 2, {"exits": (2,)}),
    "no exits": ("verified", 0, {}),
    "ahead": ("verified", 3, {"ahead": 0.0}),
    "lookup": ("verified", 1, {"lookup": True}),
    "the cloud": ("cloud", 0, {}),
    "auto": ("auto", 3, {}),
}


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS.keys())
@pytest.mark.parametrize("constraint", CONSTRAINTS.values(), ids=CONSTRAINTS.keys())
def test_every_lossless_way_gives_the_whole_models_answer(
    world: World, constraint: Constraint, sampling: Sampling
) -> None:
    made = replace(constrained(constraint, sampling))
    made = replace(made, sampling=replace(made.sampling, top_logprobs=3))
    reference = whole(world.artifact, made)
    assert obeys(constraint, reference)
    drafted = 0
    for name, (mode, placement, changes) in WAYS.items():
        options = {key: changes[key] for key in changes if key == "exits"}
        settings = {key: changes[key] for key in changes if key != "exits"}
        edge = world.edge(mode, placement, **options)
        account = finish(edge, replace(made, mode=mode, **settings))  # type: ignore[arg-type]
        assert account.token_ids == reference.token_ids, name
        assert account.text == reference.text
        assert account.finish_reason == reference.finish_reason
        # What the full model makes of each token is told bit for bit, drafted or not.
        told = [(token.logprob, token.alternatives) for token in account.tokens]
        assert told == [(token.logprob, token.alternatives) for token in reference.tokens], name
        drafted += sum(token.source.startswith(("exit", "lookup")) for token in account.tokens)
    assert drafted > 5
    plain = whole(world.artifact, replace(made, sampling=sampling))
    assert plain.token_ids != reference.token_ids


@pytest.mark.parametrize("constraint", CONSTRAINTS.values(), ids=CONSTRAINTS.keys())
@pytest.mark.parametrize("mode", ["threshold", "refine", "standalone"])
def test_exits_keep_to_it_too(world: World, mode: str, constraint: Constraint) -> None:
    sources: set[str] = set()
    for placement, exits in ((1, (1,)), (2, (2,)), (3, None)):
        for threshold in (0.0, 0.2):
            edge = world.edge(mode, placement, exits=exits)
            sampling = Sampling(constraint=constraint, top_logprobs=2)
            made = replace(MADE, mode=mode, threshold=threshold, sampling=sampling)
            account = finish(edge, made)
            assert obeys(constraint, account)
            assert is_under_way(world.artifact, constraint, account)
            assert all(len(token.alternatives) == 2 for token in account.tokens)
            sources |= account.sources.keys()
    assert "exit@1" in sources and "exit@2" in sources


def test_refine_without_leniency_is_the_constrained_full_model(world: World) -> None:
    made = replace(constrained(SCHEMA_C), refinement=Refinement(segment=5, passes=100, rank=1))
    reference = whole(world.artifact, made)
    account = finish(world.edge("refine", 2), made)
    assert account.token_ids == reference.token_ids
    assert [t.logprob for t in account.tokens] == [t.logprob for t in reference.tokens]


@pytest.mark.parametrize("mode", ["verified", "cloud", "threshold"])
def test_a_broken_link_changes_nothing(artifact: Artifact, mode: str) -> None:
    """Another cloud, which never saw the session, hears of the constraint when all is replayed."""
    made = constrained(SCHEMA_C, SAMPLINGS["sampled"])
    links: list[Link] = []
    with ExitStack() as stack:
        clouds = []
        for _ in range(2):
            service = CloudService(Stage(artifact, range(4), limits=LIMITS), LIMITS)
            stack.callback(service.close)
            clouds.append(stack.enter_context(MemoryCloud(service, LIMITS)))

        def dial() -> Link:
            links.append(clouds[len(links) % 2].connect())
            return links[-1]

        placement = 0 if mode == "cloud" else 2
        edge = Edge(artifact, mode=mode, placement=placement, connect=dial, limits=LIMITS)
        answer = edge.answer(PROMPT, replace(made, mode=mode, threshold=0.3))
        for count, _ in enumerate(answer):
            if count in (2, 5, 9):
                links[-1].close()
        assert answer.account.reconnects >= 1
        assert obeys(SCHEMA_C, answer.account)
        if mode != "threshold":
            assert answer.account.token_ids == whole(artifact, made).token_ids


def test_a_cloud_that_forgets_is_told_again(world: World) -> None:
    made = constrained(LARK, SAMPLINGS["sampled"])
    answer = world.edge("verified", 1).answer(PROMPT, made)
    for count, _ in enumerate(answer):
        if count in (1, 4, 6):
            for entry in world.service.sessions._entries.values():
                with entry.held.lock:
                    entry.held.drop()
    assert answer.account.token_ids == whole(world.artifact, made).token_ids


@pytest.mark.parametrize("constraint", CONSTRAINTS.values(), ids=CONSTRAINTS.keys())
def test_a_cloud_that_drafts_for_itself(artifact: Artifact, constraint: Constraint) -> None:
    how = self_draft(artifact, (1, 2), criterion="confidence:0.1", draft=5)
    stage = Stage(artifact, range(4), exits=(1, 2), limits=LIMITS)
    made = constrained(constraint)
    made = replace(made, sampling=replace(made.sampling, top_logprobs=2))
    with MemoryCloud(CloudService(stage, LIMITS, how), LIMITS) as cloud:
        edge = Edge(artifact, mode="cloud", placement=0, connect=cloud.connect, limits=LIMITS)
        account = finish(edge, made)
    reference = whole(artifact, made)
    assert account.token_ids == reference.token_ids
    assert [t.alternatives for t in account.tokens] == [t.alternatives for t in reference.tokens]


def test_edge_servers_pass_it_on_and_obey_it(artifact: Artifact) -> None:
    made = constrained(SCHEMA_C)
    made = replace(made, sampling=replace(made.sampling, top_logprobs=2))
    with Tiers(artifact, exits=(2,), criterion="confidence:0.0") as tiers:
        for mode, placement in (("verified", 1), ("cloud", 0)):
            names = ("server0",) if mode == "verified" else ("cloud",)
            account = finish(tiers.edge(mode, placement, names), made)
            assert account.token_ids == whole(artifact, made).token_ids
        refined = finish(tiers.edge("refine", 1), replace(made, mode="refine"))
        assert obeys(SCHEMA_C, refined) and is_under_way(artifact, SCHEMA_C, refined)
        asked = replace(made.sampling, constraint=REGEX)
        asked_for = replace(made, mode="threshold", threshold=0.9, sampling=asked)
        account = finish(tiers.edge("threshold", 1), asked_for)
        assert account.sources["server@2"] > 3
        assert obeys(REGEX, account) and is_under_way(artifact, REGEX, account)
        assert all(len(token.alternatives) == 2 for token in account.tokens)


def test_without_a_cloud_the_exits_still_keep_to_it(artifact: Artifact) -> None:
    limits = replace(LIMITS, resume_seconds=0.3, redial_seconds=0.05)
    service = CloudService(Stage(artifact, range(4), limits=limits), limits)
    with MemoryCloud(service, limits) as cloud:
        is_up = True

        def dial() -> Link:
            if not is_up:
                raise Refused("busy", "no")
            links.append(cloud.connect())
            return links[-1]

        links: list[Link] = []
        edge = Edge(artifact, mode="verified", placement=2, connect=dial, limits=limits)
        answer = edge.answer(PROMPT, constrained(SCHEMA_C))
        for count, _ in enumerate(answer):
            if count == 3:
                is_up = False
                links[-1].close()
    service.close()
    assert answer.account.provisional > 2
    assert obeys(SCHEMA_C, answer.account)
    assert is_under_way(artifact, SCHEMA_C, answer.account)


@pytest.mark.parametrize("value", ["true", "false", "1" + "0" * 400])
def test_a_cloud_refuses_what_cannot_be_kept_to(world: World, value: str) -> None:
    """An edge would not have sent it."""
    odd = Constraint(kind="json_schema", text=f'{{"type": "number", "multipleOf": {value}}}')
    with world.client() as client:
        client.append(PROMPT, None)
        with pytest.raises(Refused, match="multipleOf"):
            client.verify((), Sampling(constraint=replace(odd, start=len(PROMPT))))


def test_what_keeps_to_a_constraint_is_in_a_cloud_s_memory_budget(artifact: Artifact) -> None:
    text = '{"type": "integer", "multipleOf": 19999}'  # takes 9 MB
    dear = Constraint(kind="json_schema", text=text, start=len(PROMPT))
    limits = replace(LIMITS, max_kv_bytes=8 * 2**20)
    service = CloudService(Stage(artifact, range(4), limits=limits), limits)
    with MemoryCloud(service, limits) as cloud:
        world = World(artifact, service, cloud.connect)
        with world.client() as client:
            client.append(PROMPT, None)
            client.verify((), Sampling(constraint=replace(SCHEMA_C, start=len(PROMPT))))
            with pytest.raises(Refused, match="this session needs"):
                client.verify((), Sampling(constraint=dear))


def test_a_session_that_waits_gives_back_what_kept_to_its_answer(world: World) -> None:
    asked = Sampling(constraint=replace(REGEX, start=len(PROMPT)))
    with world.client() as client:
        client.append(PROMPT, None)
        made = list(client.generate(5, (), asked))
        (entry,) = world.service.sessions._entries.values()
        assert until(lambda: entry.held.bytes < 2**20)  # the parser would be more
        client.append([made[-1].token_id], None)
        client.verify((), asked)
        assert entry.held.bytes > 2**20
        client.take_up(len(PROMPT))
        client.append([5], None)
        client.verify((), Sampling())
        assert entry.held.bytes < 2**20
        client.append([6], None)
        client.verify((), replace(asked, constraint=replace(REGEX, start=client.sent)))
        assert entry.held.bytes > 2**20
        client.take_up(len(PROMPT))  # no question follows
        assert until(lambda: entry.held.bytes < 2**20)


def test_a_session_goes_on_with_another_constraint_or_none(world: World) -> None:
    """As the turns of a conversation do: what a verdict told under one does not hold under it."""
    stage = Stage(world.artifact, range(4), limits=LIMITS)
    with world.client() as client:
        client.append(PROMPT, None)
        for constraint in (REGEX, SCHEMA_C, None, LARK, REGEX):
            start = len(PROMPT)
            sampling = Sampling(constraint=constraint and replace(constraint, start=start))
            session = stage.open()
            session.append_ids(PROMPT)
            logits = session.logits(start - 1)[-1]
            if sampling.constraint is not None:
                allowed = Masks(world.artifact, sampling.constraint).allowed(PROMPT)
                logits = np.where(allowed, logits, -np.inf)
            assert client.verify((), sampling).next_token == logits.argmax()


def test_turns_of_a_conversation_keep_each_to_its_own(world: World) -> None:
    """What the last answer left, caches here and in the cloud, serves the next one."""
    settings = EngineSettings(mode="verified", placement=2, begin_offline=False)
    with Engine(world.artifact, settings, world.dial, limits=LIMITS) as engine:
        for mode in ("verified", "cloud", "threshold", "refine"):
            ids = [*PROMPT, *PROMPT]
            for constraint in (REGEX, SCHEMA_C, None, LARK):
                sampling = Sampling(constraint=constraint)
                made = replace(MADE, mode=mode, max_tokens=40, sampling=sampling)
                reply = engine.start(ids, made)
                list(reply)
                assert (reply.account.reused_tokens > 0) == (len(ids) > 2 * len(PROMPT))
                if mode in ("verified", "cloud"):
                    alone = Edge(world.artifact, mode="verified", placement=4, limits=LIMITS)
                    whole_made = replace(made, mode="verified")
                    expected = alone.answer(ids, whole_made).finish()
                    assert reply.account.token_ids == expected.token_ids
                if constraint is not None and reply.account.finish_reason == "stop":
                    assert obeys(constraint, reply.account)
                ids += [*reply.account.token_ids[:10], 9, 10]


def test_the_schema_goes_up_once(world: World) -> None:
    sent: list[bytes] = []

    def dial() -> Link:
        link = world.dial()
        send = link.send
        link.send = lambda frame: (sent.append(frame), send(frame))[1]  # type: ignore[method-assign]
        return link

    account = finish(world.edge("verified", 2, connect=dial), constrained(SCHEMA_C))
    assert account.rounds > 3
    assert sum(SCHEMA_C.text.encode() in frame for frame in sent) == 1
    assert decode_client(sent[0], LIMITS, "f32", 64, sealed=True).protocol_minor == 5  # type: ignore[union-attr]
