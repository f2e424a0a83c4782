"""What the Responses API answers, for the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal

from collm.serve.openai.shapes import AnswerExtra, ChunkExtra, PromptTokens, Shape

ResponseStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(Shape):
    """The text of an answer."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Any]


class OutputMessage(Shape):
    """The answer."""

    id: str
    type: Literal["message"]
    status: ResponseStatus
    role: Literal["assistant"]
    content: list[OutputText]


class OutputTokens(Shape):
    """Of the answer's tokens."""

    reasoning_tokens: int


class ResponseUsage(Shape):
    """Tokens."""

    input_tokens: int
    input_tokens_details: PromptTokens
    output_tokens: int
    output_tokens_details: OutputTokens
    total_tokens: int


class Incomplete(Shape):
    """Why there is no more."""

    reason: Literal["max_output_tokens"]


class TextResponse(Shape):
    """A response, under way or complete."""

    id: str
    object: Literal["response"]
    created_at: int
    model: str
    status: ResponseStatus
    error: None
    incomplete_details: Incomplete | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, Any]
    output: list[OutputMessage]
    parallel_tool_calls: bool
    previous_response_id: None
    store: Literal[False]
    temperature: float
    text: dict[str, Any]
    tool_choice: Literal["none"]
    tools: list[Any]
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    collm: AnswerExtra | None = None


class ResponseEvent(Shape):
    """An event of a streamed response."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
        "response.incomplete",
        "error",
    ]
    sequence_number: int
    response: TextResponse | None = None
    output_index: int = 0
    content_index: int = 0
    item_id: str = ""
    item: OutputMessage | None = None
    part: OutputText | None = None
    delta: str = ""
    text: str = ""
    logprobs: list[Any] | None = None
    message: str = ""
    code: str | None = None
    param: str | None = None
    collm: ChunkExtra | None = None
