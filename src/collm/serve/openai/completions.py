"""POST /v1/completions."""

from __future__ import annotations

import time
import uuid
from typing import Any

from starlette.responses import Response

from collm.model.tokenizer import Tokenizer
from collm.serve.openai.chat import check_count
from collm.serve.openai.chunks import ChunkedCompletion, WholeCompletion
from collm.serve.openai.generation import generations
from collm.serve.openai.live import Choice
from collm.serve.openai.logprobs import text_logprobs, token_length
from collm.serve.openai.prompts import Room, prompt_ids
from collm.serve.openai.refusals import check_completion
from collm.serve.openai.schemas import CompletionRequest
from collm.serve.openai.serving import Serving, off_loop
from collm.session.events import EmittedToken


class TextForm:
    """The words of a plain completion."""

    name = "text_completion"
    chunk_name = "text_completion"

    def __init__(self, tokenizer: Tokenizer, logprobs: int | None) -> None:
        self._tokenizer = tokenizer
        self._logprobs = logprobs

    def opening(self, choice: Choice) -> dict[str, Any] | None:
        """The prompt, where it is echoed."""
        choice.offset += len(choice.lead)
        return _entry(choice, choice.lead) if choice.lead else None

    def token(self, choice: Choice, text: str, token: EmittedToken | None) -> dict[str, Any]:
        """A piece of the text."""
        entry = _entry(choice, text)
        if token is not None and self._logprobs is not None:
            entry["logprobs"] = self._told([token], choice.offset)
            # Text that is held back for a stop string comes later than its token.
            choice.offset += token_length(self._tokenizer, token)
        return entry

    def preview(self, choice: Choice) -> dict[str, Any]:
        """Nothing, for those who do not know `collm`."""
        return _entry(choice, "")

    def finish(self, choice: Choice) -> dict[str, Any]:
        """Why it ended."""
        return {**_entry(choice, ""), "finish_reason": choice.reply.account.finish_reason}

    def whole(self, choice: Choice) -> dict[str, Any]:
        """All of it."""
        account = choice.reply.account
        entry = _entry(choice, choice.lead + account.text)
        entry["logprobs"] = self._told(account.tokens, len(choice.lead))
        entry["finish_reason"] = account.finish_reason
        return entry

    def _told(self, tokens: list[EmittedToken], offset: int) -> dict[str, Any] | None:
        if self._logprobs is None:
            return None
        return text_logprobs(self._tokenizer, tokens, offset, has_top=self._logprobs > 0)


def _entry(choice: Choice, text: str) -> dict[str, Any]:
    return {"index": choice.index, "text": text, "logprobs": None, "finish_reason": None}


async def completion_response(serving: Serving, request: CompletionRequest) -> Response:
    """What answers the request. Raises ApiError."""
    since = time.perf_counter()
    serving.check_model(request.model)
    check_completion(request)
    tokenizer = serving.engine.tokenizer
    room = Room.of(serving.engine)
    prompts = await off_loop(lambda: prompt_ids(tokenizer, request.prompt, room))
    count = request.n or 1
    check_count(count * len(prompts), serving)
    choices: list[Choice] = []
    for ids, text in prompts:
        wanted = generations(
            request, serving.defaults, serving.engine.modes, room.context - len(ids), count
        )
        choices += [
            Choice(
                index=len(choices) + i,
                generation=one,
                prompt_ids=ids,
                lead=text if request.echo else "",
                is_repeat=i > 0,
            )
            for i, one in enumerate(wanted)
        ]
    form = TextForm(tokenizer, request.logprobs)
    identity = f"cmpl-{uuid.uuid4().hex}"
    if not request.stream:
        return WholeCompletion(serving, form, choices, identity, since)
    options = request.stream_options
    has_usage = options is not None and bool(options.include_usage)
    return ChunkedCompletion(serving, form, choices, identity, since, has_usage=has_usage)
