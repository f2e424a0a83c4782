"""Log-probabilities in OpenAI's two shapes.

A token's is the full model's where that one chose or judged it, else that of the exit's confidence.
What else there was is empty where nobody could tell: drafts of an exit that no cloud has seen.
"""

from __future__ import annotations

from typing import Any

from collm.model.tokenizer import Tokenizer
from collm.session.events import EmittedToken

UNKNOWN = -9999.0
"""What OpenAI tells of tokens whose log-probability it does not know."""


def chat_logprobs(tokenizer: Tokenizer, tokens: list[EmittedToken]) -> dict[str, Any]:
    """Of a chat completion."""
    content = [
        {
            **_entry(tokenizer, token.token_id, _logprob(token)),
            "top_logprobs": [_entry(tokenizer, *other) for other in token.alternatives],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def text_logprobs(
    tokenizer: Tokenizer, tokens: list[EmittedToken], offset: int, *, has_top: bool
) -> dict[str, Any]:
    """Of a plain completion; offset: characters before the first of the tokens."""
    data = [tokenizer.token_bytes(token.token_id) for token in tokens]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += token_length(tokenizer, token)
    top = [
        {_named(tokenizer.token_bytes(other)): value for other, value in token.alternatives}
        for token in tokens
    ]
    return {
        "tokens": [_named(one) for one in data],
        "token_logprobs": [_logprob(token) for token in tokens],
        "top_logprobs": top if has_top else None,
        "text_offset": offsets,
    }


def token_length(tokenizer: Tokenizer, token: EmittedToken) -> int:
    """Characters, by which `text_offset` goes on."""
    return len(tokenizer.token_bytes(token.token_id).decode(errors="replace"))


def _logprob(token: EmittedToken) -> float:
    return UNKNOWN if token.logprob is None else token.logprob


def _entry(tokenizer: Tokenizer, token_id: int, value: float) -> dict[str, Any]:
    data = tokenizer.token_bytes(token_id)
    # A token may be a part of a character.
    return {"token": data.decode(errors="replace"), "logprob": value, "bytes": list(data)}


def _named(data: bytes) -> str:
    """As OpenAI names parts of characters, which would otherwise all be alike."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
