"""From pieces to events: previews that stand, fall or are shown again; changes of the way."""

from __future__ import annotations

from collm import Done, Event, Preview, Token, WayChanged, Withdrawn
from collm.api.reading import Reading
from collm.config import Way
from collm.session.events import Account, Change, EmittedToken, Piece

WORDS = "abcdx"


class Told:
    """Pieces as an answer gives them: `a` is certain, `a?` a preview."""

    def __init__(self) -> None:
        self.account = Account(mode="verified", prompt_tokens=3)
        self.reading = Reading(self.account, 15, (5, 15))
        self.events: list[Event] = []

    def tell(self, *pieces: str) -> list[Event]:
        seen = len(self.events)
        for one in pieces:
            word, is_preview = one[0], one.endswith("?")
            token = EmittedToken(token_id=WORDS.index(word), source="exit@5", confidence=0.5)
            if not is_preview:
                self.account.tokens.append(token)
                self.account.token_seconds.append(0.01)
                self.account.text += word
            self.events += self.reading.events(Piece(token=token, text=word, preview=is_preview))
        return self.events[seen:]


def words(events: list[Event]) -> list[str]:
    said = {
        Token: lambda e: e.text,
        Preview: lambda e: f"{e.preview}?{e.index}",
        Withdrawn: lambda e: f"-{e.count}@{e.index}",
        WayChanged: lambda e: f"{e.mode}@{e.index}",
        Done: lambda e: "done",
    }
    return [said[type(event)](event) for event in events]


def test_previews_that_stand_are_not_withdrawn() -> None:
    told = Told()
    assert words(told.tell("a?", "b?", "a", "b?", "b", "c")) == [
        "a?0", "b?1", "a", "b?1", "b", "c",
    ]  # fmt: skip


def test_a_token_that_is_another_withdraws_all_that_was_shown_from_there() -> None:
    told = Told()
    made = told.tell("a", "b?", "c?", "d?", "b", "c?", "x", "a")
    assert words(made) == ["a", "b?1", "c?2", "d?3", "b", "c?2", "-2@2", "x", "a"]
    assert "".join(event.text for event in made) == told.account.text == "abxa"


def test_previews_behind_the_end_are_withdrawn_with_it() -> None:
    told = Told()
    told.tell("a", "b?", "c?")
    assert words(list(told.reading.end())) == ["-2@1", "done"]


def test_a_change_of_the_way_comes_before_the_first_token_that_it_makes() -> None:
    """The answer's thread may be ahead: a change further on waits for its token."""
    told = Told()
    told.account.changes += [
        Change(index=1, way=Way(mode="cloud"), reason="it is faster"),
        Change(index=2, way=Way(placement=5), reason="it is not"),
    ]
    assert words(told.tell("a", "b")) == ["a", "cloud@1", "b"]
    assert words(list(told.reading.end())) == ["verified@2", "done"]


def test_text_held_back_until_the_end_is_dones() -> None:
    told = Told()
    told.tell("a")
    rest = Piece(token=told.account.tokens[-1], text="bc")
    told.account.text += rest.text
    assert list(told.reading.events(rest)) == []
    (done,) = told.reading.end()
    assert isinstance(done, Done)
    assert (done.text, done.answer.text, len(done.answer.tokens)) == ("bc", "abc", 1)
    assert told.reading.is_whole


def test_what_was_not_read_to_its_end_is_not_whole() -> None:
    told = Told()
    told.tell("a", "b")
    told.account.text += "c"
    assert not told.reading.is_whole
