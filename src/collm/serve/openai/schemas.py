"""What a request may say. Unknown names are refused: nothing that could change a text is ignored.

Types are strict (`"5"` is no number), as OpenAI's are. Lists are checked up to the first thing that
is wrong, as a million errors would take memory. Where a value is accepted by the schema but
not supported, `refusals.py` says so by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_MOST_STOPS = 16
_MOST_PROMPTS = 64

Unit = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Stops = Stop | Annotated[list[Stop], Field(max_length=_MOST_STOPS, fail_fast=True)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Lenient(BaseModel):
    """Clients send along what they were sent: null, or empty, for what there is not."""

    model_config = ConfigDict(strict=True, extra="ignore")


class CollmOptions(_Strict):
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
    draft: Annotated[int, Field(ge=1, le=128)] | None = Field(
        default=None, description="Most tokens drafted before the cloud is asked"
    )
    batch: Annotated[int, Field(ge=1, le=128)] | None = None
    ahead: Unit | None = None
    lookup: bool | None = None
    segment: Annotated[int, Field(ge=1, le=255)] | None = None
    passes: Annotated[int, Field(ge=0, le=1000)] | None = None
    rank: Annotated[int, Field(ge=1, le=2**24)] | None = None
    gap: Annotated[float, Field(ge=0, le=100)] | None = None


class StreamOptions(_Lenient):
    """What a stream has besides its text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class TextPart(_Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(_Strict):
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


class JsonSchema(_Lenient):
    """A schema that the answer has to meet."""

    name: Annotated[str, Field(max_length=64)] | None = None
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextFormat(_Strict):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(_Strict):
    """A JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(_Strict):
    """JSON that a schema allows."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]


class _Common(_Strict):
    """What both kinds of completion take."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: Stops | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Unit | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**24)] | None = Field(
        default=None, description="Sample among the k likeliest tokens; 0 or -1: all"
    )
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    ignore_eos: bool | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    response_format: ResponseFormat | None = None
    collm: CollmOptions | None = None
    # Supported at their neutral values only.
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[str, float] | None = None
    min_p: Unit | None = None
    # Without any effect on the text.
    user: str | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


class ChatCompletionRequest(_Common):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[dict[str, Any]], Field(fail_fast=True)] | None = None
    function_call: str | dict[str, Any] | None = None
    modalities: Annotated[list[str], Field(fail_fast=True)] | None = None
    audio: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    web_search_options: dict[str, Any] | None = None


class CompletionRequest(_Common):
    """Body of POST /v1/completions."""

    prompt: (
        str
        | TokenIds
        | Annotated[list[str], Field(min_length=1, max_length=_MOST_PROMPTS, fail_fast=True)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=_MOST_PROMPTS, fail_fast=True)]
    )
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    suffix: str | None = None
