"""A conversation: messages so far, and turns that are added when they are whole."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Unpack

from collm.api.asking import Options
from collm.api.events import Answer
from collm.api.reading import Reading
from collm.api.streams import AsyncStream, Ended, Stream, whole
from collm.errors import UsageError
from collm.serve.reply import Reply


class Conversation:
    """Made by `Edge.chat`. One turn at a time.

    A turn enters the history once it is whole: one that is broken off, or that fails, leaves
    `messages` as it was. What the model has read of earlier turns is kept, here and in the cloud,
    and is not read again (`Summary.reused_tokens`), as long as there is room.
    """

    def __init__(
        self,
        begin: Callable[[list[dict[str, str]], Options], tuple[Reply, Reading]],
        system: str | None,
        options: Options,
    ) -> None:
        self.messages: list[dict[str, str]] = []
        """The history; yours to change between turns."""
        if system is not None:
            self.messages.append({"role": "system", "content": system})
        self._begin = begin
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
        stream = self.stream(text, **options)
        for _ in stream:
            pass
        return whole(stream.answer)

    def stream(self, text: str, **options: Unpack[Options]) -> Stream:
        """Its events, as `Edge.stream` gives them. The turn is over when the stream is: read to
        its end, closed, or let go of."""
        return Stream(*self._take_turn(text, options))

    async def asay(self, text: str, **options: Unpack[Options]) -> Answer:
        """As `say`, in asyncio."""
        async with self.astream(text, **options) as stream:
            async for _ in stream:
                pass
        return whole(stream.answer)

    def astream(self, text: str, **options: Unpack[Options]) -> AsyncStream:
        """As `stream`, in asyncio."""
        return AsyncStream(*self._take_turn(text, options))

    def _take_turn(self, text: str, options: Options) -> tuple[Reply, Reading, Ended]:
        if not self._turn.acquire(blocking=False):
            raise UsageError(
                "this conversation is still answering: read that answer to its end or close it, "
                "or begin another conversation"
            )
        messages = [*self.messages, {"role": "user", "content": text}]

        def ended(answer: Answer | None) -> None:
            if answer is not None:
                self.messages[:] = [*messages, {"role": "assistant", "content": answer.text}]
            self._turn.release()

        try:
            reply, reading = self._begin(messages, {**self._options, **options})
        except BaseException:
            self._turn.release()
            raise
        return reply, reading, ended
