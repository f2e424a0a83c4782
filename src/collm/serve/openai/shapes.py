"""What is answered, for the OpenAPI document; the answers themselves are made as plain objects.

A test holds them against each other.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

FinishReason = Literal["stop", "length"]


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorInfo(Shape):
    """What is wrong, and what to do."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Shape):
    """Every error."""

    error: ErrorInfo


class PromptTokens(Shape):
    """Of the prompt's tokens."""

    cached_tokens: int


class Usage(Shape):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens


class Way(Shape):
    """How tokens are made from here on, and why."""

    mode: str
    placement: int
    wire: str
    reason: str


class ChangedWay(Way):
    """The same, in an answer's summary."""

    index: int


class Summary(Shape):
    """What an answer took. Times are milliseconds."""

    mode: str
    placement: int
    exits: list[int]
    sources: dict[str, int]
    rounds: int
    drafted: int
    cloud_rows: int
    bytes_up: int
    bytes_down: int
    edge_ms: float
    cloud_ms: float
    wall_ms: float
    ttft_ms: float
    tokens_per_second: float | None
    reconnects: int
    replayed_bytes: int
    previewed: int
    withdrawn: int
    provisional: int
    degraded: int
    reused_tokens: int
    changes: list[ChangedWay]


class AnswerExtra(Shape):
    """What CoLLM adds to a response."""

    summary: Summary
    summaries: list[Summary] = []
    seed: int | None = None


class ChunkExtra(Shape):
    """What CoLLM adds to a chunk: of a token, of one that may be taken back, of the end."""

    source: str = ""
    exit: int | None = None
    confidence: float | None = None
    by: str = ""
    provisional: bool = False
    index: int = 0
    ms: float | None = None
    way: Way | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
    preview: str = ""
    summary: Summary | None = None
    seed: int | None = None


class TopLogprob(Shape):
    """A token, and how likely it was."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """The same of the chosen token, and what else there was."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Shape):
    """Of a chat completion."""

    content: list[TokenLogprob] | None
    refusal: None


class TextLogprobs(Shape):
    """Of a plain completion."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class AnswerMessage(Shape):
    """The answer."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Shape):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class Base(Shape):
    id: str
    created: int
    model: str
    system_fingerprint: str


class ChatCompletion(Base):
    """A whole chat completion."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage
    collm: AnswerExtra


class Delta(Shape):
    """What comes on."""

    role: Literal["assistant"] = "assistant"
    content: str = ""
    refusal: None = None


class ChatChunkChoice(Shape):
    """A piece of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatChunk(Base):
    """An event of a streamed chat completion."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    collm: ChunkExtra | None = None


class TextChoice(Shape):
    """One answer, or a piece of one."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason | None


class TextCompletion(Base):
    """A whole plain completion."""

    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: Usage
    collm: AnswerExtra


class TextChunk(Base):
    """An event of a streamed plain completion."""

    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: Usage | None = None
    collm: ChunkExtra | None = None


class ModelInfo(Shape):
    """A model that may be asked."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(Shape):
    """All of them."""

    object: Literal["list"]
    data: list[ModelInfo]


class Tier(Shape):
    """Who runs layers `first` to `last`, the last one not included: the device first, then each
    as the one below it saw it last. Above one that is not ok nothing is known, and none is ok."""

    role: Literal["device", "edge server", "cloud"]
    first: int
    last: int
    ok: bool
    address: str
    rtt_ms: float | None = None
    sessions: int | None = None
    error: str = ""


class Status(Shape):
    """How the server is."""

    model: str
    version: str
    mode: str
    modes: list[str]
    placement: int
    layers: int
    exits: list[int]
    cuts: list[int]
    wire: str
    fingerprint: str
    weights: str
    context_length: int
    active: int
    waiting: int
    most_active: int
    kept: int
    kept_bytes: int
    answers: int
    tokens: int
    uptime_seconds: float
    rss_bytes: int
    tiers: list[Tier]


class Health(Shape):
    """Of a probe."""

    status: Literal["ok"]
