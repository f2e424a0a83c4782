"""The likeliest tokens beside each, and what is refused: bad constraints, old and false peers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.contract.test_constraints import (
    MADE,
    REGEX,
    SCHEMA_C,
    World,
    artifact,
    constrained,
    finish,
    world,
)
from tests.contract.tiers import LIMITS, PROMPT

from collm.config import Constraint, Sampling
from collm.errors import PromptError, ProtocolError, Refused
from collm.link.base import Link
from collm.policy.sampling import likeliest, log_probability
from collm.runtime.stage import Stage
from collm.wire.messages import CONSTRAINT_MINOR

__all__ = ["artifact", "world"]


def test_alternatives_are_those_of_the_full_model(world: World) -> None:
    """Recomputed from the logits of the whole model, at temperature 1 and without a penalty."""
    sampling = Sampling(temperature=0.7, seed=3, repetition_penalty=1.3, top_logprobs=5)
    made = replace(MADE, max_tokens=20, ignore_eos=True, sampling=sampling)
    plain = replace(made, sampling=replace(sampling, top_logprobs=0))
    for mode, placement in (("verified", 2), ("cloud", 0), ("verified", 4), ("auto", 1)):
        edge = world.edge(mode, placement)
        account = finish(edge, made)
        assert account.token_ids == finish(edge, plain).token_ids  # to ask changes nothing
        session = Stage(world.artifact, range(4), limits=LIMITS).open()
        session.append_ids(PROMPT)
        for token in account.tokens:
            logits = session.logits(session.position - 1)[-1]
            assert token.alternatives == likeliest(logits, 5)
            assert token.logprob == log_probability(logits, token.token_id)
            session.append_ids([token.token_id])


def test_exits_tell_their_own_alternatives(world: World) -> None:
    made = replace(MADE, max_tokens=20, ignore_eos=True, sampling=Sampling(top_logprobs=4))
    plain = replace(made, sampling=Sampling())
    edge = world.edge("standalone", 1)
    account = finish(edge, made)
    assert account.token_ids == finish(edge, plain).token_ids
    session = Stage(world.artifact, range(1), exits=(1,), limits=LIMITS).open(exact=False)
    session.append_ids(PROMPT)
    for token in account.tokens:
        assert token.source == "exit@1"
        assert token.alternatives == likeliest(session.exit_logits(1), 4)
        assert token.alternatives[0][0] == token.token_id
        assert token.logprob == pytest.approx(token.alternatives[0][1], abs=1e-5)
        session.append_ids([token.token_id])


def test_nothing_is_told_where_nothing_was_asked(world: World) -> None:
    for mode, placement in (("verified", 2), ("threshold", 2), ("cloud", 0), ("refine", 1)):
        account = finish(world.edge(mode, placement), replace(MADE, mode=mode))
        assert not any(token.alternatives for token in account.tokens)


def test_an_older_cloud_is_refused_instead_of_ignoring_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collm.session.cloud.PROTOCOL_MINOR", CONSTRAINT_MINOR - 1)
    edge = world.edge("verified", 2)
    assert finish(edge, MADE).tokens  # what it knows it does
    asked = (Sampling(constraint=REGEX), Sampling(top_logprobs=1))
    for sampling in asked:
        for mode, placement in (("verified", 2), ("cloud", 0), ("refine", 2), ("threshold", 2)):
            made = replace(MADE, mode=mode, threshold=1.0, sampling=sampling)
            with pytest.raises(Refused, match=r"speaks protocol 1\.4, .* needs 1\.5; update"):
                finish(world.edge(mode, placement), made)


def test_a_cloud_found_on_the_way_that_is_older_ends_the_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    links: list[Link] = []

    def dial() -> Link:
        links.append(world.dial())
        return links[-1]

    answer = world.edge("verified", 1, connect=dial).answer(PROMPT, constrained(SCHEMA_C))
    pieces = iter(answer)
    next(pieces)
    monkeypatch.setattr("collm.session.cloud.PROTOCOL_MINOR", CONSTRAINT_MINOR - 1)
    links[-1].close()
    with pytest.raises(Refused, match="update the cloud"):
        list(pieces)


BAD = {
    "no schema": Constraint(kind="json_schema", text='{"type": "text"}'),
    "too dear": Constraint(kind="regex", text="(((a{1000}){1000}){1000})"),
    "of itself": Constraint(kind="lark", text="start: start"),
}


@pytest.mark.parametrize("constraint", BAD.values(), ids=BAD.keys())
def test_a_bad_constraint_is_refused_before_any_token(world: World, constraint: Constraint) -> None:
    sampling = Sampling(constraint=replace(constraint, start=len(PROMPT)))
    if constraint.kind != "regex":  # that one compiles
        for mode, placement in (("verified", 2), ("cloud", 0), ("standalone", 1)):
            made, edge = replace(MADE, mode=mode, sampling=sampling), world.edge(mode, placement)
            with pytest.raises(PromptError, match=r"^the .* cannot be"):
                edge.answer(PROMPT, made)
    with world.client() as client:  # whoever does not look is told by the cloud
        client.append(PROMPT, None)
        with pytest.raises(Refused, match=r"^the cloud refuses: the .* cannot be") as caught:
            list(client.generate(9, (2,), sampling))
    assert caught.value.code == "limits" and "\n" not in str(caught.value)
    assert finish(world.edge("verified", 2), MADE).tokens  # nobody else noticed


def test_a_client_that_breaks_its_own_constraint_is_refused(world: World) -> None:
    with world.client() as client:
        client.append(PROMPT, None)
        with pytest.raises(Refused, match="breaks the answer's constraint") as caught:
            client.verify((), Sampling(constraint=replace(REGEX, start=2)))
    assert caught.value.code == "protocol"
    with world.client() as client:
        client.append(PROMPT, None)
        with pytest.raises(Refused, match="from position 90 on, in a text of 7"):
            client.verify((), Sampling(constraint=replace(REGEX, start=90)))


def test_a_cloud_that_breaks_the_constraint_is_not_believed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collm.session.constrained.Constrained.masks", lambda *_: None)
    with pytest.raises(ProtocolError, match="breaks the answer's constraint"):
        finish(world.edge("verified", 2), constrained(SCHEMA_C))
