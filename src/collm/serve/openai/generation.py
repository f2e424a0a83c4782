"""From a request's parameters to a Generation: what it leaves out is as the server was set."""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from typing import TypeVar

from collm.config import Constraint, Generation, Refinement, Sampling
from collm.serve.openai.errors import ApiError
from collm.serve.openai.schemas import (
    UNLIMITED,
    ChatCompletionRequest,
    CollmOptions,
    CompletionRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
)

_LEAST_TEMPERATURE = 0.001
"""Below, the likeliest token is all there is: greedy."""
_LEAST_TOP_P = 1e-6
_COMPLETION_TOKENS = 16
"""OpenAI's default for plain completions; a chat's answer has what the context leaves."""
_SEED_BITS = 53
"""Of a seed that we choose: every client reads it back exactly, JavaScript's too."""
_LOSSLESS = ("verified", "auto")

T = TypeVar("T")


def generations(
    request: ChatCompletionRequest | CompletionRequest,
    defaults: Generation,
    modes: tuple[str, ...],
    room: int,
    count: int,
) -> list[Generation]:
    """One for each of `count` answers, their seeds one after the other.

    modes: those that can be had. room: tokens that the context leaves. Raises ApiError and
    PromptError.
    """
    options = request.collm or CollmOptions()
    stop = request.stop
    base = _with_options(defaults, options, modes)
    longest = _longest(request)
    base = replace(
        base,
        max_tokens=room if longest is None else min(longest, room),
        # Clients send an empty one for none.
        stop=tuple(one for one in ([stop] if isinstance(stop, str) else stop or ()) if one),
        ignore_eos=_either(request.ignore_eos, defaults.ignore_eos),
    )
    sampling = _sampling(request, base.sampling)
    return [
        replace(base, sampling=replace(sampling, seed=(sampling.seed + i) % 2**64))
        for i in range(count)
    ]


def _sampling(request: ChatCompletionRequest | CompletionRequest, defaults: Sampling) -> Sampling:
    temperature = _either(request.temperature, defaults.temperature)
    temperature = temperature if temperature >= _LEAST_TEMPERATURE else 0.0
    if request.seed is not None:
        seed = request.seed % 2**64
    else:
        seed = secrets.randbits(_SEED_BITS) if temperature else 0
    return replace(
        defaults,
        temperature=temperature,
        top_p=max(_either(request.top_p, defaults.top_p), _LEAST_TOP_P),
        top_k=max(_either(request.top_k, defaults.top_k), 0),
        repetition_penalty=_either(request.repetition_penalty, defaults.repetition_penalty),
        seed=seed,
        constraint=_constraint(request),
        top_logprobs=_top_logprobs(request),
    )


def _with_options(defaults: Generation, asked: CollmOptions, modes: tuple[str, ...]) -> Generation:
    mode = asked.mode or defaults.mode
    if mode not in modes:
        raise ApiError(
            400,
            f"mode {mode}: this server has {', '.join(modes)}",
            param="collm.mode",
            code="invalid_value",
        )
    deadline = asked.deadline_ms
    refinement = defaults.refinement
    return replace(
        defaults,
        mode=mode,
        threshold=_either(asked.threshold, defaults.threshold),
        # A threshold of the request's own is not to lose against the server's criterion.
        criterion=_either(
            _criterion(asked, defaults), "" if asked.threshold is not None else defaults.criterion
        ),
        draft=_either(asked.draft, defaults.draft),
        batch=_either(asked.batch, defaults.batch),
        # The server's settings go with the server's mode; what the request says is checked.
        ahead=_either(asked.ahead, defaults.ahead if mode in _LOSSLESS else None),
        lookup=_either(asked.lookup, defaults.lookup and mode in _LOSSLESS),
        deadline_seconds=(
            deadline / 1000
            if deadline is not None
            else defaults.deadline_seconds
            if mode == "threshold"
            else 0.0
        ),
        refinement=Refinement(
            segment=_either(asked.segment, refinement.segment),
            passes=_either(asked.passes, refinement.passes),
            rank=_either(asked.rank, refinement.rank),
            gap=_either(asked.gap, refinement.gap),
            repetition=refinement.repetition,
        ),
    )


def _criterion(asked: CollmOptions, defaults: Generation) -> str | None:
    """Raises ApiError for one that names a file, which is the operator's to do."""
    spec = asked.criterion
    if spec is not None and "learned" in spec and spec != defaults.criterion:
        raise ApiError(
            400,
            "collm.criterion: a learned policy is a file, which a request cannot name; expected "
            "one such as 'margin:0.5 & coherence', or leave it out for the server's own "
            "(collm serve --criterion)",
            param="collm.criterion",
            code="invalid_value",
        )
    return spec


def _longest(request: ChatCompletionRequest | CompletionRequest) -> int | None:
    """None: as the context allows."""
    longest = request.max_tokens
    if isinstance(request, ChatCompletionRequest) and request.max_completion_tokens is not None:
        longest = request.max_completion_tokens
    elif isinstance(request, CompletionRequest) and longest is None:
        longest = _COMPLETION_TOKENS
    return None if longest == UNLIMITED else longest


def _constraint(request: ChatCompletionRequest | CompletionRequest) -> Constraint | None:
    match request.response_format:
        case JsonObjectFormat():
            return Constraint(kind="json_object")
        case JsonSchemaFormat(json_schema=asked):
            schema = asked.json_schema
            if schema is None:
                raise ApiError(
                    400,
                    "response_format.json_schema.schema is missing",
                    param="response_format.json_schema.schema",
                    code="missing_required_parameter",
                )
            return Constraint(kind="json_schema", text=json.dumps(schema, ensure_ascii=False))
        case _:
            return None


def _top_logprobs(request: ChatCompletionRequest | CompletionRequest) -> int:
    if isinstance(request, CompletionRequest):
        return request.logprobs or 0
    return request.top_logprobs or 0


def _either(asked: T | None, default: T) -> T:
    return default if asked is None else asked
