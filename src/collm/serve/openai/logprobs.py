"""Log-probabilities in OpenAI's two shapes.

A token's is that of its confidence: the full model's probability where that one chose, the exit's
calibrated one where an exit did. Where nobody told, it is the value that OpenAI has for that.
"""

from __future__ import annotations

import math
from typing import Any

from collm.model.tokenizer import Tokenizer
from collm.session.events import EmittedToken

UNKNOWN = -9999.0


def logprob(token: EmittedToken) -> float:
    """In nats."""
    confidence = token.confidence
    if confidence is None or not confidence > 0.0:  # false for NaN too
        return UNKNOWN
    return math.log(min(confidence, 1.0))


def chat_logprobs(tokenizer: Tokenizer, tokens: list[EmittedToken]) -> dict[str, Any]:
    """Of a chat completion."""
    content = [
        {**_entry(tokenizer, token.token_id, logprob(token)), "top_logprobs": []}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def text_logprobs(tokenizer: Tokenizer, tokens: list[EmittedToken], offset: int) -> dict[str, Any]:
    """Of a plain completion; offset: characters before the first of the tokens."""
    texts = [_text(tokenizer.token_bytes(token.token_id)) for token in tokens]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": texts,
        "token_logprobs": [logprob(token) for token in tokens],
        "top_logprobs": None,
        "text_offset": offsets,
    }


def _entry(tokenizer: Tokenizer, token_id: int, value: float) -> dict[str, Any]:
    data = tokenizer.token_bytes(token_id)
    return {"token": _text(data), "logprob": value, "bytes": list(data)}


def _text(data: bytes) -> str:
    """A token may be a part of a character."""
    return data.decode("utf-8", errors="replace")
