"""Edge servers over both links, on a tiny random model: who answers, and that the text is right."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract.link_services import until
from tests.contract.test_recut import Once, Wanderer
from tests.contract.tiers import LAYERS, LIMITS, PROMPT, Build, Host, Tiers, finish, whole
from tests.support import F32, random_artifact

from collm.config import Generation, Refinement, Sampling, Way
from collm.errors import PlacementError, Refused
from collm.metrics import REGISTRY
from collm.model.artifact import Artifact
from collm.policy.sampling import log_probability
from collm.runtime.stage import Stage
from collm.session.above import Above
from collm.session.client import CloudClient
from collm.session.relay import RelayService
from collm.session.run import Run
from collm.session.server_exits import server_exits
from collm.wire.codec import cast_rows
from collm.wire.messages import Verdict

MADE = Generation(max_tokens=40, ignore_eos=True)
THRESHOLD = replace(MADE, mode="threshold", max_tokens=30)
DRAFTS = (
    (1, 0.0, None), (5, 0.0, None), (16, 0.05, None), (3, 0.9, None), (5, 0.1, 0.0), (16, 0.05, 0),
)  # fmt: skip
GREEDY = Sampling()
WARM = Sampling(temperature=1.3, top_p=0.95, seed=11, repetition_penalty=1.3)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder: Path = tmp_path_factory.mktemp("tiny") / "artifact"
    return random_artifact(folder, cuts=(1, 2, 3), weights="int4", max_position_embeddings=96)


@pytest.fixture(params=["memory", "grpc"])
def build(request: pytest.FixtureRequest, artifact: Artifact) -> Iterator[Build]:
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(Tiers(artifact, request.param, **options))


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "sampled"])
def test_verified_through_a_server_is_the_whole_model(build: Build, sampling: Sampling) -> None:
    """Its exits have no say in it, however sure they are."""
    tiers = build(exits=(2, 3), criterion="confidence:0.0")
    made = replace(MADE, sampling=sampling)
    reference = whole(tiers.artifact, made)
    for placement in (1, 2):
        edge = tiers.edge("verified", placement)
        for draft, threshold, ahead in DRAFTS:
            bold = replace(made, draft=draft, threshold=threshold, ahead=ahead)
            account = finish(edge, bold)
            assert account.token_ids == reference, (placement, draft, threshold, ahead)
            assert not any(source.startswith("server") for source in account.sources)
    assert until(lambda: not len(tiers.relay().sessions))
    assert until(lambda: not len(tiers.cloud.service.sessions))


def test_a_drafts_wrong_first_token_needs_no_trip_up(build: Build) -> None:
    """What the last verdict said already the server says itself."""
    tiers = build()
    with CloudClient(tiers.hosts["server0"].connect(), fingerprint=tiers.artifact.fingerprint,
                     cut=1, vocabulary=300, limits=LIMITS) as client:  # fmt: skip
        edge = Stage(tiers.artifact, range(1), limits=LIMITS).open()
        edge.append_ids(PROMPT)
        client.append(PROMPT, edge.hidden_at(1, 0))
        first = client.verify([], GREEDY)
        (held,) = (entry.held for entry in tiers.relay().sessions._entries.values())
        up = held._up  # type: ignore[attr-defined]
        sent = up.bytes_up
        assert replace(client.verify([], GREEDY), cloud_seconds=0) == replace(
            first, cloud_seconds=0, logprobs_accepted=()
        )
        wrong = (first.next_token + 1) % 300
        edge.append_ids([wrong, 5])
        client.append([wrong, 5], edge.hidden_at(1, len(PROMPT)))
        second = client.verify([wrong, 5], GREEDY)
        assert (second.accepted, second.next_token, second.logprob) == (
            0, first.next_token, first.logprob)  # fmt: skip
        assert up.bytes_up == sent
        edge.crop(len(PROMPT))
        edge.append_ids([first.next_token])
        client.append([first.next_token], edge.hidden_at(1, len(PROMPT)))
        third = client.verify([], GREEDY)
    assert [first.next_token, third.next_token] == whole(
        tiers.artifact, replace(MADE, max_tokens=2)
    )


class Split:
    """CE-CoLLM's decoding over three tiers, without any network: what the mode has to give."""

    def __init__(self, artifact: Artifact, exits: tuple[int, ...], wires: tuple[str, str]) -> None:
        self.wires = wires
        self.edge = Stage(artifact, range(1), exits=(1,), limits=LIMITS)
        self.server = Stage(artifact, LAYERS, exits=exits, limits=LIMITS)
        self.cloud = Stage(artifact, range(LAYERS.stop, 4), limits=LIMITS)

    def text(self, here: float, there: float, tokens: int) -> Iterator[tuple[int, str]]:
        edge, server = self.edge.open(exact=False), self.server.open()
        cloud = self.cloud.open()
        sent = passed_on = 0
        edge.append_ids(PROMPT)
        for _ in range(tokens):
            rows: F32 = edge.hidden_at(1, sent)
            server.append_hidden(cast_rows(self.wires[0], rows))
            sent = edge.position
            token, source = self._next(edge, server, here, there)
            if not source:
                up = server.hidden_at(LAYERS.stop, passed_on)
                cloud.append_hidden(cast_rows(self.wires[1], up))
                passed_on = server.position
                token, source = int(cloud.logits(sent - 1)[-1].argmax()), "cloud"
            yield token, source
            edge.append_ids([token])

    def _next(self, edge: object, server: object, here: float, there: float) -> tuple[int, str]:
        made = edge.exit_at(1)  # type: ignore[attr-defined]
        if made.confidence >= here:
            return made.token_id, "exit@1"
        for cut in self.server.exits:
            made = server.exit_at(cut)  # type: ignore[attr-defined]
            if made.confidence >= there:
                return made.token_id, f"server@{cut}"
        return 0, ""


@pytest.mark.parametrize("wires", [("f32", "f32"), ("f16", "int8")])
def test_threshold_over_three_tiers(build: Build, wires: tuple[str, str]) -> None:
    """Device, server and cloud each answer what the one before was not sure of."""
    sources, before = set(), _answered("exit@2")
    for there in (0.08, 0.14):
        tiers = build(exits=(2, 3), criterion=f"confidence:{there}", wire=wires[1])
        edge = tiers.edge("threshold", 1, wire=wires[0])
        for here in (0.1, 0.2):
            account = finish(edge, replace(THRESHOLD, threshold=here))
            expected = list(Split(tiers.artifact, (2, 3), wires).text(here, there, 30))
            assert [(t.token_id, t.source) for t in account.tokens] == expected
            sources |= account.sources.keys()
            before += account.sources.get("server@2", 0)
            assert _answered("exit@2") == before
    assert sources == {"exit@1", "server@2", "server@3", "cloud"}


def _answered(by: str) -> float:
    return REGISTRY.get_sample_value("collm_answered_total", {"by": by}) or 0.0


def test_a_server_that_is_never_sure_is_as_good_as_none(build: Build) -> None:
    tiers = build(exits=(2, 3), criterion="confidence:1.0")
    made = replace(THRESHOLD, threshold=0.13)
    account = finish(tiers.edge("threshold", 1), made)
    two = finish(tiers.edge("threshold", 1, ["cloud"]), made)
    assert account.token_ids == two.token_ids
    assert account.sources == two.sources
    assert account.rounds == two.rounds > 0


def test_a_server_that_is_always_sure_asks_nobody(build: Build) -> None:
    tiers = build(exits=(2,), criterion="confidence:0.0")
    asked = REGISTRY.get_sample_value("collm_verdicts_total")
    account = finish(tiers.edge("threshold", 1), replace(THRESHOLD, threshold=0.99))
    assert account.sources == {"server@2": 30}
    assert all(token.by == "edge server" for token in account.tokens)
    assert REGISTRY.get_sample_value("collm_verdicts_total") == asked


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "sampled"])
def test_refine_and_cloud_go_through(build: Build, sampling: Sampling) -> None:
    tiers = build(layers=range(3))
    strict = replace(MADE, refinement=Refinement(segment=7, passes=100, rank=1))
    account = finish(tiers.edge("refine", 2), strict)
    assert account.token_ids == whole(tiers.artifact, strict)
    rules = replace(MADE, refinement=Refinement(segment=10, passes=2, rank=2, gap=0.5))
    here, there = (finish(tiers.edge("refine", 2, [at]), rules) for at in ("server0", "cloud"))
    assert (here.token_ids, here.passes) == (there.token_ids, there.passes)
    warm = replace(MADE, sampling=sampling)
    account = finish(tiers.edge("cloud", 0), warm)
    assert account.token_ids == whole(tiers.artifact, warm)
    full = finish(tiers.edge("cloud", 0), replace(warm, max_tokens=1000))
    assert len(full.tokens) == 96 - len(PROMPT)


def test_a_server_without_the_first_layers_leaves_what_begins_there_to_others(
    build: Build,
) -> None:
    tiers = build()
    with pytest.raises(Refused, match="start at layer 0, this cloud can start at 1, 2") as caught:
        finish(tiers.edge("cloud", 0), MADE)
    assert caught.value.code == "placement"
    account = finish(tiers.edge("cloud", 0, ["server0", "cloud"]), MADE)
    assert account.token_ids == whole(tiers.artifact, MADE)
    deep = finish(tiers.edge("verified", 3, ["server0", "cloud"]), MADE)
    assert deep.token_ids == account.token_ids


def test_two_servers_one_above_the_other(build: Build, artifact: Artifact) -> None:
    tiers = build(layers=range(2, 3), exits=(3,), criterion="confidence:0.13")
    stage = Stage(artifact, range(1, 2), exits=(2,), limits=LIMITS)
    exits = server_exits(artifact, range(1, 2), (2,), "confidence:0.16")
    above = Above(stage, LIMITS, tiers.dialer("server0"))
    assert above.check()
    tiers._add("lower", Host(RelayService(stage, LIMITS, above, exits), "memory", 8))
    made = replace(THRESHOLD, threshold=0.2)
    sources = finish(tiers.edge("threshold", 1, ["lower"]), made).sources
    assert {"server@2", "server@3", "cloud"} <= sources.keys()
    text = finish(tiers.edge("verified", 1, ["lower"]), MADE).token_ids
    assert text == whole(artifact, MADE)


def test_lossy_rows_on_both_hops(build: Build) -> None:
    """The reference is the model with these casts at both cuts, to the last bit."""
    tiers = build(wire="int8")
    account = finish(tiers.edge("verified", 1, wire="f16", exits=()), MADE)
    stages = [Stage(tiers.artifact, layers, limits=LIMITS)
              for layers in (range(1), range(1, 3), range(3, 4))]  # fmt: skip
    first, second, third = (stage.open() for stage in stages)
    ids, expected = list(PROMPT), list[tuple[int, float]]()
    for _ in range(40):
        first.append_ids(ids[first.position :])
        second.append_hidden(cast_rows("f16", first.hidden_at(1, second.position)))
        third.append_hidden(cast_rows("int8", second.hidden_at(3, third.position)))
        logits = third.logits(third.position - 1)[-1]
        ids.append(int(logits.argmax()))
        expected.append((ids[-1], math.exp(log_probability(logits, ids[-1]))))
    assert [(token.token_id, token.confidence) for token in account.tokens] == expected


class Mover(Wanderer):
    """Keeps to the cuts of a server of layers 0 to 3."""

    def way(self, run: Run, client: CloudClient, verdict: Verdict) -> Way | None:
        made = super().way(run, client, verdict)
        if made is None or made.placement <= 2:
            return made
        self.moves -= 1
        return None


@pytest.mark.parametrize("seed", range(3))
def test_the_cut_may_move_through_a_server_as_through_a_cloud(build: Build, seed: int) -> None:
    tiers = build(layers=range(3), exits=(2, 3), criterion="confidence:0.0")
    made = replace(MADE, max_tokens=60, threshold=0.05, sampling=(GREEDY, WARM)[seed % 2])
    mover = Mover(seed)
    account = tiers.edge("verified", 2).answer(PROMPT, made, steer=mover).finish()
    assert account.token_ids == whole(tiers.artifact, made)
    assert mover.moves >= 5
    rest = tiers.edge("verified", 2).answer(PROMPT, made, steer=Once(3, Way(mode="cloud")))
    assert rest.finish().token_ids == account.token_ids


def test_exits_that_are_not_the_servers_are_refused(artifact: Artifact) -> None:
    for cuts in ((1,), (4,), (2, 9)):
        with pytest.raises(PlacementError, match=r"a server of layers 1 to 3 can ask 2, 3$"):
            server_exits(artifact, LAYERS, cuts, "confidence:0.8")
