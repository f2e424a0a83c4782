"""How tokens are to be chosen, and what else was likely: fields that several messages share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from collm.config import MOST_ALTERNATIVES, Constraint, Sampling
from collm.errors import PromptError, ProtocolError
from collm.limits import Limits
from collm.wire import checks
from collm.wire import session_pb2 as pb
from collm.wire.messages import Alternatives, Scored, Token, Verdict


def sampling_fields(sampling: Sampling) -> pb.Sampling:
    """As it travels."""
    constraint = None
    if sampling.constraint is not None:
        constraint = pb.Constraint(**vars(sampling.constraint))
    return pb.Sampling(**{**vars(sampling), "constraint": constraint})


def sampling_of(body: pb.Sampling, limits: Limits) -> Sampling:
    """What travelled. Raises `ProtocolError` for what no sampling can be."""
    try:
        return Sampling(
            temperature=body.temperature,
            top_k=checks.bounded("top_k", body.top_k, limits.max_token_id),
            # A message without sampling has zeros here, and top_p 0 is refused.
            top_p=body.top_p,
            seed=body.seed,
            repetition_penalty=body.repetition_penalty,
            constraint=_constraint(body.constraint, limits)
            if body.HasField("constraint")
            else None,
            top_logprobs=body.top_logprobs,
        )
    except PromptError as error:
        raise ProtocolError(f"sampling: {error}") from None


def _constraint(body: pb.Constraint, limits: Limits) -> Constraint:
    # Characters first: encoding takes memory of its own. The kind's own bound comes later.
    most, text = limits.max_constraint_bytes, body.text
    if len(text) > most or len(text.encode()) > most:
        raise ProtocolError(f"a constraint is longer than {most} bytes")
    start = checks.bounded("constraint start", body.start, limits.max_positions)
    return Constraint(kind=body.kind[:40], text=text, start=start)


def with_alternatives(
    message: Verdict | Scored | Token, places: Sequence[Alternatives]
) -> dict[str, Any]:
    """The message's fields, with the alternatives of its places side by side."""
    fields: dict[str, Any] = dict(vars(message))
    del fields["alternatives"]
    if any(places):
        if len({len(place) for place in places}) > 1:
            raise ProtocolError("the places of a message have not as many alternatives each")
        fields["alternative_ids"] = [token_id for place in places for token_id, _ in place]
        fields["alternative_logprobs"] = [logprob for place in places for _, logprob in place]
    return fields


def alternatives_of(
    body: pb.Verdict | pb.Scored | pb.Token, places: int, limits: Limits
) -> tuple[Alternatives, ...]:
    """Of so many places; empty where there are none at all."""
    count = len(body.alternative_ids)
    if not count and not len(body.alternative_logprobs):
        return ()
    checks.counted("alternatives", count, places * MOST_ALTERNATIVES)
    if len(body.alternative_logprobs) != count or count % places:
        raise ProtocolError(
            f"{count} alternatives with {len(body.alternative_logprobs)} log-probabilities for "
            f"{places} tokens"
        )
    ids = checks.token_ids("alternative", body.alternative_ids, limits)
    told = list(zip(ids, map(checks.logprob, body.alternative_logprobs), strict=True))
    each = count // places
    return tuple(tuple(told[at : at + each]) for at in range(0, count, each))
