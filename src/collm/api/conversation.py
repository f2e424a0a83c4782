"""A conversation: messages so far, and turns that are added when they are whole."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import contextmanager
from typing import Unpack

from collm.api.asking import Options
from collm.api.events import Answer, Done, Event
from collm.api.streams import AsyncStream, Stream
from collm.errors import CollmError, UsageError


class Conversation:
    """Made by `Edge.chat`. One turn at a time.

    A turn enters the history once it is whole: one that is broken off, or that fails, leaves
    `messages` as it was. What the model has read of earlier turns is kept, here and in the cloud,
    and is not read again (`Summary.reused_tokens`), as long as there is room.
    """

    def __init__(
        self,
        stream: Callable[..., Stream],
        astream: Callable[..., AsyncStream],
        system: str | None,
        options: Options,
    ) -> None:
        self.messages: list[dict[str, str]] = []
        """The history; yours to change between turns."""
        if system is not None:
            self.messages.append({"role": "system", "content": system})
        self._stream = stream
        self._astream = astream
        self._options = options
        self._turn = threading.Lock()

    def say(self, text: str, **options: Unpack[Options]) -> Answer:
        """The answer to this. Raises as `Edge.ask` does, and UsageError while a turn is under way.

        Examples:
            >>> chat = edge.chat(max_tokens=4, ignore_eos=True)
            >>> answer = chat.say("Why is the sky blue?")
            >>> chat.messages[-1] == {"role": "assistant", "content": answer.text}
            True
        """
        answer: Answer | None = None
        for event in self.stream(text, **options):
            if isinstance(event, Done):
                answer = event.answer
        return _whole(answer)

    def stream(self, text: str, **options: Unpack[Options]) -> Generator[Event, None, None]:
        """Its events. The request is made when the first one is asked for; close to break off."""
        with self._taken():
            messages = self._with(text)
            with self._stream(messages, **self._merged(options)) as stream:
                for event in stream:
                    if isinstance(event, Done):
                        self._keep(messages, event)
                    yield event

    async def asay(self, text: str, **options: Unpack[Options]) -> Answer:
        """As `say`, in asyncio."""
        answer: Answer | None = None
        async for event in self.astream(text, **options):
            if isinstance(event, Done):
                answer = event.answer
        return _whole(answer)

    async def astream(self, text: str, **options: Unpack[Options]) -> AsyncGenerator[Event, None]:
        """As `stream`, in asyncio."""
        with self._taken():
            messages = self._with(text)
            async with self._astream(messages, **self._merged(options)) as stream:
                async for event in stream:
                    if isinstance(event, Done):
                        self._keep(messages, event)
                    yield event

    @contextmanager
    def _taken(self) -> Generator[None, None, None]:
        if not self._turn.acquire(blocking=False):
            raise UsageError(
                "this conversation is still answering: read that answer to its end or close it, "
                "or begin another conversation"
            )
        try:
            yield
        finally:
            self._turn.release()

    def _with(self, text: str) -> list[dict[str, str]]:
        return [*self.messages, {"role": "user", "content": text}]

    def _merged(self, options: Options) -> Options:
        return {**self._options, **options}

    def _keep(self, messages: list[dict[str, str]], done: Done) -> None:
        self.messages[:] = [*messages, {"role": "assistant", "content": done.answer.text}]


def _whole(answer: Answer | None) -> Answer:
    if answer is None:
        raise CollmError("the answer was broken off")
    return answer
