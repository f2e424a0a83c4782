"""Completions as OpenAI writes them, whole and in chunks: what chat and plain ones share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

from collm.serve.openai.answering import Streamed, Whole, dumps
from collm.serve.openai.extras import final_extra, preview_extra, token_extra
from collm.serve.openai.live import Choice
from collm.serve.openai.serving import Serving
from collm.session.events import EmittedToken, Piece

_DONE = "data: [DONE]\n\n"


class Form(Protocol):
    """Chat completions and plain ones say the same things in other words."""

    name: str
    """`object` of a whole response."""
    chunk_name: str
    """`object` of a chunk."""

    def opening(self, choice: Choice) -> dict[str, Any] | None:
        """The `choices` entry before the first token; None: there is none."""
        ...

    def token(self, choice: Choice, text: str, token: EmittedToken | None) -> dict[str, Any]:
        """The entry of a piece of text; token: the one that came with it, if any."""
        ...

    def preview(self, choice: Choice) -> dict[str, Any]:
        """The entry that comes with text that may be taken back."""
        ...

    def finish(self, choice: Choice) -> dict[str, Any]:
        """The last entry."""
        ...

    def whole(self, choice: Choice) -> dict[str, Any]:
        """The entry of a response that is not streamed."""
        ...


class WholeCompletion(Whole):
    """All at once."""

    def __init__(
        self, serving: Serving, form: Form, choices: Sequence[Choice], identity: str, since: float
    ) -> None:
        super().__init__(serving, choices, since)
        self._form = form
        self._base = _base(serving, identity)

    def whole(self) -> dict[str, Any]:
        """The body."""
        extras = [final_extra(self.serving.engine, choice) for choice in self.choices]
        extra = dict(extras[0])
        if len(extras) > 1:
            extra["summaries"] = [one["summary"] for one in extras]
        return {
            **self._base,
            "object": self._form.name,
            "choices": [self._form.whole(choice) for choice in self.choices],
            "usage": usage(self.choices),
            "collm": extra,
        }


class ChunkedCompletion(Streamed):
    """Piece by piece."""

    def __init__(
        self,
        serving: Serving,
        form: Form,
        choices: Sequence[Choice],
        identity: str,
        since: float,
        *,
        has_usage: bool,
    ) -> None:
        super().__init__(serving, choices, since)
        self._form = form
        self._has_usage = has_usage
        self._base = {**_base(serving, identity), "object": form.chunk_name}
        # What all chunks begin with is written once; of all but the last there is no usage yet.
        self._head = f"data: {dumps(self._base | ({'usage': None} if has_usage else {}))[:-1]},"

    def tell(self, choice: Choice, piece: Piece | None, parts: list[str]) -> None:
        """Add the chunks of a piece, or of the choice's end."""
        form, write = self._form, self._write
        if not choice.is_open:
            choice.is_open = True
            opening = form.opening(choice)
            if opening is not None:
                write(parts, opening)
        if piece is None:
            write(parts, form.finish(choice), final_extra(self.serving.engine, choice))
        elif piece.preview:
            write(parts, form.preview(choice), preview_extra(piece))
        elif choice.carries(piece):
            extra = token_extra(choice, piece.token)
            write(parts, form.token(choice, piece.text, piece.token), extra)
            choice.has_told(piece)
        else:
            write(parts, form.token(choice, piece.text, None))

    def end(self) -> str:
        """Usage, where it was asked for, and the word that all is said."""
        if not self._has_usage:
            return _DONE
        last = {**self._base, "choices": [], "usage": usage(self.choices)}
        return f"data: {dumps(last)}\n\n{_DONE}"

    def _write(
        self, parts: list[str], entry: dict[str, Any], extra: dict[str, Any] | None = None
    ) -> None:
        rest: dict[str, Any] = {"choices": [entry]}
        if extra is not None:
            rest["collm"] = extra
        parts.append(f"{self._head}{dumps(rest)[1:]}\n\n")


def _base(serving: Serving, identity: str) -> dict[str, Any]:
    return {
        "id": identity,
        "created": int(time.time()),
        "model": serving.name,
        "system_fingerprint": serving.fingerprint,
    }


def usage(choices: Sequence[Choice]) -> dict[str, Any]:
    """What all the answers took; a prompt with several answers counts once."""
    prompts = [choice for choice in choices if not choice.is_repeat]
    prompt = sum(len(choice.prompt_ids) for choice in prompts)
    made = sum(len(choice.reply.account.tokens) for choice in choices)
    reused = sum(choice.reply.account.reused_tokens for choice in prompts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
        "prompt_tokens_details": {"cached_tokens": reused},
    }
