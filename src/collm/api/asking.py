"""What may be asked for with one request, and the prompt as token ids."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import TypedDict, get_type_hints

from collm.config import Constraint, Generation, Refinement, Sampling
from collm.errors import PromptError, UsageError
from collm.model.tokenizer import Tokenizer

Message = Mapping[str, str]
Prompt = str | Sequence[Message]
"""A user's message, or a conversation: mappings with `role` and `content`."""


class Options(TypedDict, total=False):
    """Options of one request; all may be left out. They mean what they mean to `collm run`."""

    mode: str
    """One of `Edge.modes`; default: the edge's."""
    max_tokens: int
    """Longest answer; default 128."""
    temperature: float
    """0, the default, is greedy."""
    top_k: int
    """Sample among the k likeliest; 0, the default, is off."""
    top_p: float
    """Sample among the likeliest up to this sum of probabilities; default 1."""
    seed: int
    """Same seed, same text."""
    repetition_penalty: float
    """Of tokens that were there before; 1, the default, is off."""
    stop: str | Sequence[str]
    """The answer ends before this, or the first of these."""
    ignore_eos: bool
    """Go on after the end of the text."""
    raw: bool
    """No chat template around a prompt that is a string."""
    threshold: float
    """Confidence from which an exit's token is taken; default 0.6."""
    criterion: str
    """Such as `margin:0.3 & coherence`, in the place of `threshold`."""
    draft: int
    """Most tokens drafted before the cloud is asked; default 8."""
    ahead: float
    """Mode `verified`: while a verdict is awaited, draft on from guesses of this confidence."""
    lookup: bool
    """Mode `verified`: also draft from the text so far."""
    batch: int
    """Mode `verified`: hidden states in one message."""
    deadline: float
    """Mode `threshold`: seconds from token to token; 0: none."""
    top_logprobs: int
    """Tell so many of the likeliest tokens beside each: `Token.alternatives`."""
    schema: Mapping[str, object] | bool
    """The answer is JSON that this JSON schema allows; True: any JSON object. It may be cut off by
    `max_tokens`."""
    regex: str
    """The whole answer matches this regular expression."""
    refinement: Refinement
    """Mode `refine`: what is let stand."""


_OWN = frozenset({"raw", "stop", "deadline", "schema", "regex"})
_SAMPLING = frozenset(
    {"temperature", "top_k", "top_p", "seed", "repetition_penalty", "top_logprobs"}
)
_KNOWN = get_type_hints(Options)
_EXPECTED: Mapping[type, tuple[type, str]] = {  # numpy's numbers will do
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    bool: (bool, "True or False"),
    str: (str, "a string"),
    Refinement: (Refinement, "a Refinement"),
}


def generation(options: Options, mode: str) -> Generation:
    """The settings that these options make. Raises UsageError for unknown ones, PromptError."""
    unknown = sorted(set(options).difference(_KNOWN))
    if unknown:
        raise UsageError(
            f"unknown option {unknown[0]}: expected some of {', '.join(sorted(_KNOWN))}"
        )
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        _check_kind(name, value)
    made = {name: value for name, value in given.items() if name not in _OWN | _SAMPLING}
    return Generation(
        **{"mode": mode, **made},  # type: ignore[arg-type]
        stop=_stops(given.get("stop", ())),
        deadline_seconds=given.get("deadline", 0.0),  # type: ignore[arg-type]
        sampling=Sampling(
            constraint=_constraint(options),
            **{name: value for name, value in given.items() if name in _SAMPLING},  # type: ignore[arg-type]
        ),
    )


def _check_kind(name: str, value: object) -> None:
    kind, words = _EXPECTED.get(_KNOWN[name], (object, ""))
    is_number_for_truth = isinstance(value, bool) and kind is not bool and kind is not object
    if is_number_for_truth or not isinstance(value, kind):
        raise PromptError(f"{name} {_shown(value)}: expected {words}")


def _stops(given: object) -> tuple[str, ...]:
    if isinstance(given, str):
        return (given,) if given else ()
    stops = tuple(given) if isinstance(given, Iterable) else (given,)
    for one in stops:
        if not isinstance(one, str):
            raise PromptError(f"stop {_shown(one)}: expected a string, or a list of strings")
    return stops


def _constraint(options: Options) -> Constraint | None:
    schema, regex = options.get("schema"), options.get("regex")
    if schema is None and regex is None:
        return None
    if schema is not None and regex is not None:
        raise PromptError("schema and regex: an answer can obey one of them only")
    if regex is not None:
        return Constraint(kind="regex", text=regex)
    if schema is True:
        return Constraint(kind="json_object")
    if not isinstance(schema, Mapping):
        raise PromptError(f"schema {_shown(schema)}: expected a JSON schema as a mapping, or True")
    try:
        return Constraint(kind="json_schema", text=json.dumps(schema))
    except (TypeError, ValueError) as error:
        raise PromptError(f"the schema cannot be written as JSON: {error}") from None


def prompt_ids(tokenizer: Tokenizer, prompt: Prompt, *, raw: bool) -> list[int]:
    """Ids of a prompt up to where the answer begins. Raises PromptError."""
    if isinstance(prompt, str):
        if raw or not tokenizer.has_chat_template:
            return tokenizer.encode(prompt)
        prompt = [{"role": "user", "content": prompt}]
    elif raw:
        raise PromptError("raw goes with a prompt that is a string, not with a conversation")
    if isinstance(prompt, bytes | Mapping) or not isinstance(prompt, Iterable):
        raise PromptError(
            f"a prompt {_shown(prompt)}: expected a string, or a list of messages, which are "
            "mappings with role and content"
        )
    messages = list(prompt)
    for message in messages:
        if not _is_message(message):
            raise PromptError(
                f"a message {_shown(message)}: expected a mapping with role and content, "
                'such as {"role": "user", "content": "…"}'
            )
    if not messages:
        raise PromptError("the conversation is empty; expected at least one message")
    return tokenizer.encode_chat(messages)


def _is_message(given: object) -> bool:
    return isinstance(given, Mapping) and all(
        isinstance(given.get(key), str) for key in ("role", "content")
    )


def _shown(given: object) -> str:
    return repr(given)[:80]
