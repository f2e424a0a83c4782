"""What a request may say. Unknown names are refused: nothing that could change a text is ignored.

Types are strict (`"5"` is no number), as OpenAI's are. Lists are checked up to the first thing that
is wrong, as a million errors would take memory. Where a value is accepted by the schema but
not supported, `refusals.py` says so by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError, PydanticKnownError

from collm.serve.openai.errors import NO_TOOLS

_MOST_STOPS = 16
_MOST_PROMPTS = 64
_MOST_TOKENS = 1_000_000
MOST_TURNS = 4096
UNLIMITED = -1
"""For `max_tokens`, as other servers take it."""


def _whole(value: object) -> object:
    """24.0 is an integer, in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _tokens(value: int) -> int:
    if value < 1 and value != UNLIMITED:
        raise PydanticKnownError("greater_than_equal", {"ge": 1})
    if value > _MOST_TOKENS:
        raise PydanticKnownError("less_than_equal", {"le": _MOST_TOKENS})
    return value


def only(*values: Any) -> WithJsonSchema:
    """Told in the document: what passes. `refusals.py` says why others do not."""
    return WithJsonSchema({"enum": [*values, None]})


WHOLE = BeforeValidator(_whole)
MaxTokens = Annotated[
    int,
    AfterValidator(_tokens),
    WHOLE,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": _MOST_TOKENS},
                {"const": UNLIMITED},
            ]
        }
    ),
]
"""-1: as many as the context has room for."""
Unit = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Stop = Annotated[str, Field(max_length=1000)]
Stops = Stop | Annotated[list[Stop], Field(max_length=_MOST_STOPS, fail_fast=True)]
TokenId = Annotated[int, Field(ge=0, lt=2**31), WHOLE]
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class Lenient(BaseModel):
    """Clients send along what they were sent: null, or empty, for what there is not."""

    model_config = ConfigDict(strict=True, extra="ignore")


Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]
"""As OpenAI bounds it."""


def spoken(part: Any) -> Any:
    """A part of a turn; a refusal's words are text."""
    if isinstance(part, dict) and part.get("type") == "refusal" and "refusal" in part:
        return {"type": "text", "text": part["refusal"]}
    return part


class CollmOptions(Strict):
    """How this answer is shared between device and cloud; what is left out is as the server is
    set."""

    mode: Literal["auto", "verified", "threshold", "refine", "standalone", "cloud"] | None = None
    threshold: Unit | None = Field(
        default=None, description="Confidence from which an exit's token stands"
    )
    criterion: Annotated[str, Field(max_length=1000)] | None = Field(
        default=None, description="What an exit's token must meet, such as 'margin:0.5 & coherence'"
    )
    deadline_ms: Annotated[float, Field(ge=0, le=3_600_000)] | None = Field(
        default=None, description="Longest time from token to token, in mode threshold; 0: none"
    )
    draft: Annotated[int, Field(ge=1, le=128), WHOLE] | None = Field(
        default=None, description="Most tokens drafted before the cloud is asked"
    )
    batch: Annotated[int, Field(ge=1, le=128), WHOLE] | None = None
    ahead: Unit | None = None
    lookup: bool | None = None
    segment: Annotated[int, Field(ge=1, le=255), WHOLE] | None = None
    passes: Annotated[int, Field(ge=0, le=1000), WHOLE] | None = None
    rank: Annotated[int, Field(ge=1, le=2**24), WHOLE] | None = None
    gap: Annotated[float, Field(ge=0, le=100)] | None = None


class StreamOptions(Lenient):
    """What a stream has besides its text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class TextPart(Lenient):
    """A part of a message. What clients note beside the text changes nothing."""

    type: Literal["text"]
    text: str

    _spoken = model_validator(mode="before")(spoken)


class ChatMessage(Strict):
    """One turn. An assistant's may be sent back as it came."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]
    name: str | None = None
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None
    function_call: None = None
    reasoning_content: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, given: Any) -> Any:
        """Tools first, whose turns have no text; a refusal's words are text."""
        if not isinstance(given, dict):
            return given
        field = next((name for name in ("tool_calls", "function_call") if given.get(name)), "")
        if not field and given.get("role") in ("tool", "function"):
            field = "role"
        if field:
            said = "this model calls no tools; leave out calls of tools and their results"
            raise PydanticCustomError(NO_TOOLS, said, {"field": field})
        if isinstance(given.get("refusal"), str) and given.get("content") is None:
            return {**given, "content": given["refusal"], "refusal": None}
        return given


class JsonSchema(Lenient):
    """A schema that the answer has to meet."""

    name: Annotated[str, Field(max_length=64)] | None = None
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextFormat(Strict):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Strict):
    """A JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Strict):
    """JSON that a schema allows."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class _Common(Strict):
    """What both kinds of completion take."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128), WHOLE] | None = None
    stop: Stops | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64), WHOLE] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Unit | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**24), WHOLE] | None = Field(
        default=None, description="Sample among the k likeliest tokens; 0 or -1: all"
    )
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    ignore_eos: bool | None = None
    max_tokens: MaxTokens | None = Field(default=None, description="-1: as the context allows")
    response_format: ResponseFormat | None = None
    collm: CollmOptions | None = None
    # Supported at their neutral values only.
    frequency_penalty: Annotated[Penalty | None, only(0)] = None
    presence_penalty: Annotated[Penalty | None, only(0)] = None
    logit_bias: Annotated[dict[str, float] | None, only({})] = None
    min_p: Annotated[Unit | None, only(0)] = None
    # Without any effect on the text.
    user: str | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None


class ChatCompletionRequest(_Common):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[
        list[ChatMessage], Field(min_length=1, max_length=MOST_TURNS, fail_fast=True)
    ]
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    tools: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    tool_choice: Annotated[str | dict[str, Any] | None, only("none", "auto")] = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[Any] | None, only([])] = None
    function_call: Annotated[str | dict[str, Any] | None, only("none", "auto")] = None
    modalities: Annotated[list[Any] | None, only(["text"], [])] = None
    audio: Annotated[dict[str, Any] | None, only()] = None
    prediction: Annotated[dict[str, Any] | None, only()] = None
    reasoning_effort: Annotated[str | None, only("none")] = None
    verbosity: Annotated[str | None, only("medium")] = None
    web_search_options: Annotated[dict[str, Any] | None, only()] = None
    moderation: Annotated[dict[str, Any] | None, only()] = None


class CompletionRequest(_Common):
    """Body of POST /v1/completions."""

    prompt: (
        str
        | TokenIds
        | Annotated[list[str], Field(min_length=1, max_length=_MOST_PROMPTS, fail_fast=True)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=_MOST_PROMPTS, fail_fast=True)]
    )
    best_of: Annotated[int, Field(ge=1, le=128), WHOLE] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=5), WHOLE] | None = None
    suffix: Annotated[str | None, only("")] = None
