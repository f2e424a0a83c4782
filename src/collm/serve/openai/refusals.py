"""Parameters that are known, would change the text, and that there is not: refused by name.

Their neutral values pass, because clients send those along. Nothing here is ignored in silence.
"""

from __future__ import annotations

from typing import Any

from collm.serve.openai.errors import ApiError, unsupported
from collm.serve.openai.responses_schema import ResponseRequest
from collm.serve.openai.schemas import ChatCompletionRequest, CompletionRequest

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "min_p": (0,),
    "modalities": (["text"], []),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "suffix": ("",),
}
"""The values, besides null, that change nothing."""
_INSTEAD = {
    "frequency_penalty": "not supported, expected 0; repetition_penalty is",
    "presence_penalty": "not supported, expected 0; repetition_penalty is",
    "logit_bias": "not supported, expected {}",
    "min_p": "not supported, expected 0; top_p and top_k are",
    "modalities": 'this model writes text; expected ["text"]',
    "reasoning_effort": "this model has no reasoning to set; leave it out",
    "functions": "this model calls no functions; leave it out",
    "function_call": "this model calls no functions; leave it out",
    "suffix": "this model cannot fill in the middle of a text; leave it out",
}
_NEVER = ("audio", "prediction", "web_search_options", "moderation")


_NO_RESPONSE: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "include": ([],),
    "previous_response_id": (),
    "conversation": (),
    "prompt": (),
    "reasoning": ({},),
    "background": (False,),
    "truncation": ("disabled",),
    "top_logprobs": (0,),
    "max_tool_calls": (),
    "moderation": (),
    "context_management": ([],),
}
_RESPONSE_INSTEAD = {
    "tools": "this model calls no tools; leave them out",
    "tool_choice": "this model calls no tools; leave it out",
    "previous_response_id": "responses are not kept here; send the turns so far as input",
    "conversation": "conversations are not kept here; send the turns so far as input",
    "reasoning": "this model has no reasoning to set; leave it out",
    "context_management": "nothing is left out of what is sent; shorten the input instead",
}


def check_response(request: ResponseRequest) -> None:
    """Raises ApiError."""
    for name in request.model_fields_set:
        value = getattr(request, name)
        if value is not None and name in _NO_RESPONSE and value not in _NO_RESPONSE[name]:
            raise unsupported(name, _RESPONSE_INSTEAD.get(name, "not supported; leave it out"))
    if request.text is not None and request.text.verbosity not in (None, "medium"):
        raise unsupported("text.verbosity", "not supported; leave it out")


def check_chat(request: ChatCompletionRequest) -> None:
    """Raises ApiError."""
    _check_neutral(request)
    if request.tools and request.tool_choice != "none":
        raise unsupported("tools", 'this model calls no tools; leave them out or say "none"')
    if request.tool_choice not in (None, "none", "auto"):
        raise unsupported("tool_choice", 'this model calls no tools; expected "none"')
    tokens, newer = request.max_tokens, request.max_completion_tokens
    if tokens is not None and newer is not None and tokens != newer:
        raise ApiError(
            400,
            f"max_tokens {tokens} and max_completion_tokens {newer}: give one of them",
            param="max_tokens",
            code="invalid_value",
        )
    if request.top_logprobs and not request.logprobs:
        raise ApiError(
            400,
            "top_logprobs goes with logprobs: true",
            param="top_logprobs",
            code="invalid_value",
        )


def check_completion(request: CompletionRequest) -> None:
    """Raises ApiError."""
    _check_neutral(request)
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise unsupported("best_of", "not supported beyond n; leave it out")
    if request.echo and request.logprobs is not None:
        raise unsupported("echo", "the prompt's log-probabilities are not computed; leave out one")


def _check_neutral(request: ChatCompletionRequest | CompletionRequest) -> None:
    for name in request.model_fields_set:
        value = getattr(request, name)
        if value is None:
            continue
        if name in _NEVER:
            raise unsupported(name, "not supported; leave it out")
        if name in _NEUTRAL and value not in _NEUTRAL[name]:
            raise unsupported(name, _INSTEAD.get(name, "not supported; leave it out"))
