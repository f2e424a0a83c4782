"""POST /v1/chat/completions."""

from __future__ import annotations

import time
import uuid
from typing import Any

from starlette.responses import Response

from collm.model.tokenizer import Tokenizer
from collm.serve.openai.chunks import ChunkedCompletion, WholeCompletion
from collm.serve.openai.errors import ApiError
from collm.serve.openai.generation import generations
from collm.serve.openai.live import Choice
from collm.serve.openai.logprobs import chat_logprobs
from collm.serve.openai.prompts import Room, chat_ids
from collm.serve.openai.refusals import check_chat
from collm.serve.openai.schemas import ChatCompletionRequest
from collm.serve.openai.serving import Serving, off_loop
from collm.session.events import EmittedToken


class ChatForm:
    """The words of a chat completion."""

    name = "chat.completion"
    chunk_name = "chat.completion.chunk"

    def __init__(self, tokenizer: Tokenizer, *, has_logprobs: bool) -> None:
        self._tokenizer = tokenizer
        self._has_logprobs = has_logprobs

    def opening(self, choice: Choice) -> dict[str, Any]:
        """Who speaks."""
        return _entry(choice, {"role": "assistant", "content": "", "refusal": None})

    def token(self, choice: Choice, text: str, token: EmittedToken | None) -> dict[str, Any]:
        """A piece of the answer."""
        entry = _entry(choice, {"content": text})
        if self._has_logprobs and token is not None:
            entry["logprobs"] = chat_logprobs(self._tokenizer, [token])
        return entry

    def preview(self, choice: Choice) -> dict[str, Any]:
        """Nothing, for those who do not know `collm`."""
        return _entry(choice, {})

    def finish(self, choice: Choice) -> dict[str, Any]:
        """Why it ended."""
        return {**_entry(choice, {}), "finish_reason": choice.reply.account.finish_reason}

    def whole(self, choice: Choice) -> dict[str, Any]:
        """All of it."""
        account = choice.reply.account
        return {
            "index": choice.index,
            "message": {"role": "assistant", "content": account.text, "refusal": None},
            "logprobs": (
                chat_logprobs(self._tokenizer, account.tokens) if self._has_logprobs else None
            ),
            "finish_reason": account.finish_reason,
        }


def _entry(choice: Choice, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}


async def chat_response(serving: Serving, request: ChatCompletionRequest) -> Response:
    """What answers the request. Raises ApiError."""
    since = time.perf_counter()
    serving.check_model(request.model)
    check_chat(request)
    tokenizer = serving.engine.tokenizer
    room = Room.of(serving.engine)
    count = request.n or 1
    check_count(count, serving)
    ids = await off_loop(lambda: chat_ids(tokenizer, request.messages, room))
    wanted = generations(
        request, serving.defaults, serving.engine.modes, room.context - len(ids), count
    )
    choices = [
        Choice(index=i, generation=one, prompt_ids=ids, is_repeat=i > 0)
        for i, one in enumerate(wanted)
    ]
    form = ChatForm(tokenizer, has_logprobs=bool(request.logprobs))
    identity = f"chatcmpl-{uuid.uuid4().hex}"
    if not request.stream:
        return WholeCompletion(serving, form, choices, identity, since)
    options = request.stream_options
    has_usage = options is not None and bool(options.include_usage)
    return ChunkedCompletion(serving, form, choices, identity, since, has_usage=has_usage)


def check_count(count: int, serving: Serving) -> None:
    """Raises ApiError for more answers than one request may have."""
    settings = serving.engine.settings
    most = min(serving.limits.max_http_choices, settings.most_active + settings.most_waiting)
    if count > most:
        raise ApiError(
            400, f"{count} answers: one request has {most} at most", param="n", code="invalid_value"
        )
