"""Reading what somebody types: history, several lines, completion of commands."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from platformdirs import user_state_path
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import HTML
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from collm.cli.chat_commands import NAMES
from collm.cli.chat_state import SETTINGS

FENCE = '"""'


def history() -> History:
    """Of all chats of this user; in memory where there is no place for it."""
    path = user_state_path("collm") / "chat-history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND, 0o600))
        path.chmod(0o600)  # what was asked is nobody else's business
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


def is_whole(text: str) -> bool:
    '''Whether Enter ends it: not between """ and """.'''
    begun = text.lstrip()
    return not begun.startswith(FENCE) or (
        len(begun.rstrip()) >= 2 * len(FENCE) and begun.rstrip().endswith(FENCE)
    )


def unfenced(text: str) -> str:
    '''Without the """ around it.'''
    text = text.strip()
    if text.startswith(FENCE):
        return text[len(FENCE) :].removesuffix(FENCE).strip("\n")
    return text


class CommandCompleter(Completer):
    """Commands, modes, settings and files."""

    def __init__(self, modes: Callable[[], Iterable[str]]) -> None:
        self._modes = modes

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """See prompt_toolkit."""
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        word, space, rest = text.partition(" ")
        if not space:
            offered: Iterable[str] = NAMES
            rest = word
        elif word == "/mode":
            offered = self._modes()
        elif word == "/set" and " " not in rest:
            offered = (*SETTINGS, "system")
        elif word in ("/save", "/load"):
            offered = _files(rest)
        else:
            return
        for one in offered:
            if one.startswith(rest):
                yield Completion(one, start_position=-len(rest))


def _files(begun: str) -> list[str]:
    path = Path(begun).expanduser()
    below = path if begun.endswith("/") or not begun else path.parent
    try:
        return [str(one) + ("/" if one.is_dir() else "") for one in sorted(below.iterdir())[:200]]
    except OSError:
        return []


def prompt_session(modes: Callable[[], Iterable[str]]) -> PromptSession[str]:
    """What reads a turn: `prompt()` raises EOFError for Ctrl-D, KeyboardInterrupt for Ctrl-C."""
    keys = KeyBindings()

    @keys.add("enter")
    def _enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state and buffer.complete_state.current_completion:
            buffer.apply_completion(buffer.complete_state.current_completion)
        elif is_whole(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")

    @keys.add("escape", "enter")
    def _newline(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return PromptSession(
        HTML("<b>&gt;&gt;&gt; </b>"),
        multiline=True,
        prompt_continuation=lambda _width, _line, wraps: "" if wraps else "... ",
        history=history(),
        key_bindings=keys,
        completer=CommandCompleter(modes),
        complete_while_typing=False,
        enable_history_search=True,
    )
