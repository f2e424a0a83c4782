"""POST /v1/responses: text in, text out, whole or as named events.

Not covered: keeping responses (send the turns each time), tools, log-probabilities.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

from starlette.responses import Response

from collm.serve.openai.answering import Streamed, Whole, dumps
from collm.serve.openai.chunks import usage
from collm.serve.openai.errors import ApiError
from collm.serve.openai.extras import final_extra, preview_extra, token_extra
from collm.serve.openai.generation import generations
from collm.serve.openai.live import Choice
from collm.serve.openai.prompts import Room, chat_ids
from collm.serve.openai.refusals import check_response
from collm.serve.openai.responses_schema import ResponseRequest
from collm.serve.openai.serving import Serving, off_loop
from collm.session.events import Piece


async def response_response(serving: Serving, request: ResponseRequest) -> Response:
    """What answers the request. Raises ApiError."""
    since = time.perf_counter()
    serving.check_model(request.model)
    check_response(request)
    chat = request.as_chat()
    room = Room.of(serving.engine)
    ids = await off_loop(lambda: chat_ids(serving.engine.tokenizer, chat.messages, room, "input"))
    left = room.context - len(ids)
    [generation] = generations(chat, serving.defaults, serving.engine.modes, left, 1)
    choice = Choice(index=0, generation=generation, prompt_ids=ids)
    words = _Words(serving, request, choice)
    kind = _StreamedResponse if request.stream else _WholeResponse
    return kind(words, since)


class _Words:
    """A response, as it is told at its beginning and at its end."""

    def __init__(self, serving: Serving, request: ResponseRequest, choice: Choice) -> None:
        self.serving = serving
        self.choice = choice
        self.item = f"msg_{uuid.uuid4().hex}"
        sampling = choice.generation.sampling
        form = request.text.format if request.text is not None else None
        told = {"type": "text"} if form is None else form.model_dump(by_alias=True)
        self._base: dict[str, Any] = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": serving.name,
            "error": None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": sampling.temperature,
            "text": {"format": told},
            "tool_choice": "none",
            "tools": [],
            "top_p": sampling.top_p,
            "truncation": "disabled",
        }

    def under_way(self) -> dict[str, Any]:
        """At its beginning."""
        return {
            **self._base,
            "status": "in_progress",
            "incomplete_details": None,
            "output": [],
            "usage": None,
        }

    @property
    def status(self) -> str:
        """How it ended."""
        is_cut = self.choice.reply.account.finish_reason == "length"
        return "incomplete" if is_cut else "completed"

    def whole(self) -> dict[str, Any]:
        """At its end."""
        is_cut = self.status == "incomplete"
        return {
            **self._base,
            "status": self.status,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": [self.message()],
            "usage": _usage(self.choice),
            "collm": final_extra(self.serving.engine, self.choice),
        }

    def message(self) -> dict[str, Any]:
        """What it says."""
        return {
            "id": self.item,
            "type": "message",
            "status": self.status,
            "role": "assistant",
            "content": [_part(self.choice.reply.account.text)],
        }


class _WholeResponse(Whole):
    def __init__(self, words: _Words, since: float) -> None:
        super().__init__(words.serving, [words.choice], since)
        self._words = words

    def whole(self) -> dict[str, Any]:
        return self._words.whole()


class _StreamedResponse(Streamed):
    def __init__(self, words: _Words, since: float) -> None:
        super().__init__(words.serving, [words.choice], since)
        self._words = words
        self._number = 0
        self._where = {"item_id": words.item, "output_index": 0, "content_index": 0}
        head = dumps({"type": "response.output_text.delta", **self._where, "logprobs": []})
        # What all pieces begin with is written once.
        self._head = f"event: response.output_text.delta\ndata: {head[:-1]},"

    def tell(self, choice: Choice, piece: Piece | None, parts: list[str]) -> None:
        if not choice.is_open:
            choice.is_open = True
            self._open(parts)
        if piece is None:
            self._close(parts)
        elif piece.preview:
            self._delta(parts, "", preview_extra(piece))
        elif choice.carries(piece):
            self._delta(parts, piece.text, token_extra(choice, piece.token))
            choice.has_told(piece)
        else:
            self._delta(parts, piece.text, None)

    def end(self) -> str:
        return ""

    def failure(self, told: ApiError) -> str:
        parts: list[str] = []
        self._event(
            parts, "error", {"message": told.message, "code": told.code, "param": told.param}
        )
        return parts[0]

    def _open(self, parts: list[str]) -> None:
        words = self._words
        item = {**words.message(), "status": "in_progress", "content": []}
        for name in ("response.created", "response.in_progress"):
            self._event(parts, name, {"response": words.under_way()})
        self._event(parts, "response.output_item.added", {"output_index": 0, "item": item})
        self._event(parts, "response.content_part.added", {**self._where, "part": _part("")})

    def _close(self, parts: list[str]) -> None:
        words, text = self._words, self._words.choice.reply.account.text
        told = {**self._where, "text": text, "logprobs": []}
        self._event(parts, "response.output_text.done", told)
        self._event(parts, "response.content_part.done", {**self._where, "part": _part(text)})
        done = {"output_index": 0, "item": words.message()}
        self._event(parts, "response.output_item.done", done)
        self._event(parts, f"response.{words.status}", {"response": words.whole()})

    def _delta(self, parts: list[str], text: str, extra: dict[str, Any] | None) -> None:
        rest: dict[str, Any] = {"sequence_number": self._number, "delta": text}
        if extra is not None:
            rest["collm"] = extra
        self._number += 1
        parts.append(f"{self._head}{dumps(rest)[1:]}\n\n")

    def _event(self, parts: list[str], name: str, told: dict[str, Any]) -> None:
        body = {"type": name, "sequence_number": self._number, **told}
        self._number += 1
        parts.append(f"event: {name}\ndata: {dumps(body)}\n\n")


def _part(text: str) -> dict[str, Any]:
    """The one part of the one message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(choice: Choice) -> dict[str, Any]:
    told = usage([choice])
    return {
        "input_tokens": told["prompt_tokens"],
        "input_tokens_details": told["prompt_tokens_details"],
        "output_tokens": told["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": told["total_tokens"],
    }
