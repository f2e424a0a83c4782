"""What an answer shows while its cloud is away, and what it counts of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

from collm.session.answer import Answer
from collm.session.events import Account, EmittedToken, Preview

WORDS = ["a", "b", "c", "d", "x"]


def decode(ids: Sequence[int]) -> str:
    return "".join(WORDS[one] for one in ids)


class Text:
    """Every token is certain text at once."""

    stopped = False

    def push(self, token_id: int) -> str:
        return WORDS[token_id]

    def flush(self) -> str:
        return ""


def token(word: str) -> EmittedToken:
    return EmittedToken(token_id=WORDS.index(word), source="exit@5")


def answer(*said: str) -> Answer:
    """`a` is the token, `b?2` a preview of b as the answer's third token."""

    def loop(_run: Any) -> Iterator[EmittedToken | Preview]:
        for one in said:
            word, _, index = one.partition("?")
            yield Preview(token(word), int(index)) if index else token(word)

    run = SimpleNamespace(
        account=Account(mode="verified", prompt_tokens=3), stop_ids=frozenset[int](), ready_at=0.0
    )
    return Answer(cast(Any, run), cast(Any, loop), cast(Any, Text()), decode)


def test_previews_that_stand_are_counted_once() -> None:
    made = answer("a?0", "b?1", "a", "b", "c")
    assert [(piece.text, piece.preview) for piece in made.with_previews()] == [
        ("a", True), ("b", True), ("a", False), ("b", False), ("c", False),
    ]  # fmt: skip
    assert (made.account.previewed, made.account.withdrawn) == (2, 0)
    assert made.account.text == "abc"


def test_what_is_shown_again_is_shown_whole_and_counted_once() -> None:
    """After a certain piece the previews behind it are shown anew; after a second break too."""
    made = answer("a?0", "b?1", "c?2", "a", "b?1", "c?2", "d?3", "b", "c", "x", "a?4")
    shown = list[str]()
    lines = list[str]()
    for piece in made.with_previews():
        shown = [*shown, piece.text] if piece.preview else []
        lines.append(made.account.text + "".join(shown))
    assert lines == ["a", "ab", "abc", "a", "ab", "abc", "abcd", "ab", "abc", "abcx", "abcxa"]
    assert made.account.previewed == 5
    assert made.account.withdrawn == 1  # d, for x


def test_iteration_gives_what_is_certain() -> None:
    made = answer("a?0", "x?1", "a", "b")
    assert [piece.text for piece in made] == ["a", "b"]
    assert made.account.withdrawn == 1
