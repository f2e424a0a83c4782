"""What a request asks, as token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from collm.errors import PromptError
from collm.model.tokenizer import Tokenizer
from collm.serve.engine import Engine
from collm.serve.openai.errors import ApiError
from collm.serve.openai.schemas import ChatMessage


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a model can take."""

    context: int
    """Positions."""
    vocabulary: int
    """Entries."""
    longest: int
    """Bytes of its longest token."""

    @classmethod
    def of(cls, engine: Engine) -> Self:
        """Of the model that the engine runs."""
        architecture = engine.artifact.architecture
        return cls(
            context=architecture.context_length,
            vocabulary=architecture.vocab_size,
            longest=engine.tokenizer.longest_bytes,
        )

    def check_text(self, size: int, param: str) -> None:
        """Raises ApiError for what cannot fit, before time is spent on it. size: bytes."""
        if size > self.context * self.longest:
            raise ApiError(
                400,
                f"the prompt has {size} bytes, and the model's context is {self.context} tokens "
                f"of at most {self.longest} bytes, the answer's included; shorten the prompt",
                param=param,
                code="context_length_exceeded",
            )


def chat_ids(
    tokenizer: Tokenizer, messages: list[ChatMessage], room: Room, param: str = "messages"
) -> list[int]:
    """Ids of a conversation, up to where the answer begins. Raises ApiError.

    param: what the conversation was given as.
    """
    told = [
        {"role": "system" if m.role == "developer" else m.role, "content": _text(m)}
        for m in messages
    ]
    room.check_text(sum(len(one["content"].encode()) for one in told), param)
    try:
        ids = tokenizer.encode_chat(told)
    except PromptError as error:
        raise ApiError(400, str(error), param=param, code="invalid_value") from None
    return _checked(ids, room, param)


def prompt_ids(
    tokenizer: Tokenizer,
    prompt: str | list[str] | list[int] | list[list[int]],
    room: Room,
) -> list[tuple[list[int], str]]:
    """Ids and text of each of the prompts. Raises ApiError."""
    many: list[str | list[int]] = []
    if isinstance(prompt, str):
        many = [prompt]
    else:
        ids = [part for part in prompt if isinstance(part, int)]
        many = [ids] if ids else [part for part in prompt if not isinstance(part, int)]
    found = []
    for one in many:
        if isinstance(one, str):
            room.check_text(len(one.encode()), "prompt")
            found.append((_checked(tokenizer.encode(one), room, "prompt"), one))
        else:
            found.append((_checked(one, room, "prompt"), tokenizer.decode(one)))
    return found


def _text(message: ChatMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part.text for part in message.content)


def _checked(ids: list[int], room: Room, param: str) -> list[int]:
    if not ids:
        raise ApiError(
            400, "the prompt is empty; expected a text", param=param, code="invalid_value"
        )
    if len(ids) >= room.context:
        raise ApiError(
            400,
            f"the prompt has {len(ids)} tokens, and the model's context is {room.context} "
            "tokens, the answer's included; shorten the prompt",
            param=param,
            code="context_length_exceeded",
        )
    if max(ids) >= room.vocabulary:
        raise ApiError(
            400,
            f"token id {max(ids)}: expected 0 to {room.vocabulary - 1}",
            param=param,
            code="invalid_value",
        )
    return ids
