"""What a request for a response may say, in the words of OpenAI's Responses API.

Its parameters are those of a chat completion under other names: `as_chat` gives that.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from collm.serve.openai.schemas import (
    MOST_TURNS,
    WHOLE,
    ChatCompletionRequest,
    CollmOptions,
    JsonObjectFormat,
    Lenient,
    MaxTokens,
    Metadata,
    Strict,
    TextFormat,
    Unit,
    only,
    spoken,
)

_MOST_TURNS = MOST_TURNS - 1
"""A chat has the instructions besides, as a turn."""


class ResponsePart(Lenient):
    """A part of a turn. What an answer had besides its text may be sent back."""

    type: Literal["input_text", "output_text", "text"]
    text: str

    _spoken = model_validator(mode="before")(spoken)


class ResponseTurn(Lenient):
    """One turn. An answer's may be sent back as it came."""

    type: Literal["message"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[ResponsePart], Field(fail_fast=True)]


class NamedSchema(Strict):
    """JSON that a schema allows."""

    type: Literal["json_schema"]
    name: Annotated[str, Field(max_length=64)]
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class TextOptions(Strict):
    """What the answer's text looks like."""

    format: (
        Annotated[TextFormat | JsonObjectFormat | NamedSchema, Field(discriminator="type")] | None
    ) = None
    verbosity: Annotated[str | None, only("medium")] = None


class ResponseStreamOptions(Lenient):
    """What a stream has besides its text."""

    include_obfuscation: bool | None = None


class ResponseRequest(Strict):
    """Body of POST /v1/responses. Nothing is stored here: send all the turns each time."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    input: (
        str
        | Annotated[list[ResponseTurn], Field(min_length=1, max_length=_MOST_TURNS, fail_fast=True)]
    )
    instructions: str | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    max_output_tokens: MaxTokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Unit | None = None
    text: TextOptions | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64), WHOLE] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**24), WHOLE] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    ignore_eos: bool | None = None
    collm: CollmOptions | None = None
    # Supported at their neutral values only.
    tools: Annotated[list[Any] | None, only([])] = None
    tool_choice: Annotated[str | dict[str, Any] | None, only("none", "auto")] = None
    include: Annotated[list[Any] | None, only([])] = None
    previous_response_id: Annotated[str | None, only()] = None
    conversation: Annotated[str | dict[str, Any] | None, only()] = None
    prompt: Annotated[dict[str, Any] | None, only()] = None
    reasoning: Annotated[dict[str, Any] | None, only({})] = None
    background: Annotated[bool | None, only(False)] = None
    truncation: Annotated[str | None, only("disabled")] = None
    top_logprobs: Annotated[int | None, only(0)] = None
    max_tool_calls: Annotated[int | None, only()] = None
    moderation: Annotated[dict[str, Any] | None, only()] = None
    context_management: Annotated[list[Any] | None, only([])] = None
    # Without any effect on the text.
    parallel_tool_calls: bool | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    user: str | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    background_options: dict[str, Any] | None = None
    access_programs: dict[str, Any] | None = None
    image: dict[str, Any] | None = None

    def as_chat(self) -> ChatCompletionRequest:
        """The same, as a chat completion."""
        if isinstance(self.input, str):
            turns = [ResponseTurn(role="user", content=self.input)]
        else:
            turns = self.input
        messages = [{"role": turn.role, "content": _text(turn)} for turn in turns]
        if self.instructions is not None:
            messages.insert(0, {"role": "system", "content": self.instructions})
        same = (
            "model", "temperature", "top_p", "seed", "top_k", "repetition_penalty", "ignore_eos"
        )  # fmt: skip
        asked: dict[str, Any] = {name: getattr(self, name) for name in same}
        form = self.text.format if self.text is not None else None
        if isinstance(form, NamedSchema):
            schema = form.model_dump(by_alias=True, exclude={"type"})
            asked["response_format"] = {"type": form.type, "json_schema": schema}
        elif form is not None:
            asked["response_format"] = {"type": form.type}
        return ChatCompletionRequest.model_validate(
            {
                **asked,
                "messages": messages,
                "max_completion_tokens": self.max_output_tokens,
                "collm": None if self.collm is None else self.collm.model_dump(),
            }
        )


def _text(turn: ResponseTurn) -> str:
    if isinstance(turn.content, str):
        return turn.content
    return "\n".join(part.text for part in turn.content)
