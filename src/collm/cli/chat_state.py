"""A conversation, its settings, and what becomes of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from collm.config import Generation
from collm.errors import PromptError, UsageError
from collm.limits import DEFAULT_LIMITS
from collm.serve.talk import Message, Tally

_FORMAT, _VERSION = "collm-chat", 1
_ROLES = ("system", "user", "assistant")
_SAMPLING: dict[str, Callable[[str], Any]] = {
    "temperature": float,
    "top-k": int,
    "top-p": float,
    "seed": int,
    "repetition-penalty": float,
}


def _switch(text: str) -> bool:
    words = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}
    return words[text.lower()]


_PLAIN: dict[str, Callable[[str], Any]] = {
    "mode": str,
    "max-tokens": int,
    "threshold": float,
    "criterion": str,
    "draft": int,
    "batch": int,
    "ahead": float,
    "lookup": _switch,
    "ignore-eos": _switch,
}
SETTINGS = (*_SAMPLING, *_PLAIN, "deadline")
"""What `/set` knows, `system` beside."""


def value_of(generation: Generation, name: str) -> object:
    """A setting as `/set` takes it."""
    if name == "deadline":
        return 1000 * generation.deadline_seconds
    holder: object = generation.sampling if name in _SAMPLING else generation
    return getattr(holder, name.replace("-", "_"))


def changed(generation: Generation, name: str, text: str) -> Generation:
    """With one setting as `text` says. Raises PromptError."""
    name = name.replace("_", "-")
    if name not in SETTINGS:
        near = get_close_matches(name, SETTINGS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(SETTINGS)}, system"
        raise PromptError(f"no setting {name[:40]!r}; {hint}")
    try:
        if name in _SAMPLING:
            value = {name.replace("-", "_"): _SAMPLING[name](text)}
            return replace(generation, sampling=replace(generation.sampling, **value))
        if name == "deadline":
            return replace(generation, deadline_seconds=float(text) / 1000)
        if name == "mode":
            return _in_mode(generation, text)
        return replace(generation, **{name.replace("-", "_"): _PLAIN[name](text)})
    except (ValueError, KeyError):
        kind = "on or off" if name in ("lookup", "ignore-eos") else "a number"
        raise PromptError(f"{name} {text[:40]!r}: expected {kind}") from None


def _in_mode(generation: Generation, mode: str) -> Generation:
    """What does not go with the mode goes."""
    try:
        return replace(generation, mode=mode)
    except PromptError:
        return replace(generation, mode=mode, deadline_seconds=0.0, ahead=None, lookup=False)


@dataclass
class Conversation:
    """What was said, and how answers are to be made."""

    generation: Generation
    chosen: set[str] = field(default_factory=set)
    """Settings that the user has set."""
    system: str = ""
    turns: list[dict[str, str]] = field(default_factory=list)
    """User and assistant, one after the other."""
    tallies: list[Tally] = field(default_factory=list)
    retries: int = 0
    """Of the last turn."""
    taken_back: list[dict[str, str]] = field(default_factory=list)
    """What a retry that is under way is to replace."""

    def messages(self) -> list[Message]:
        """As a talker takes them."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, *self.turns]

    def set(self, name: str, text: str) -> None:
        """Raises PromptError."""
        if name == "system":
            self.system = text
            return
        self.generation = changed(self.generation, name, text)
        self.chosen.add(name.replace("_", "-"))

    def asked(self, text: str, *, is_retry: bool = False) -> None:
        """A new turn of the user's, or the one that `retry` gave."""
        self.turns.append({"role": "user", "content": text})
        if not is_retry:
            self.retries = 0
            self.taken_back = []

    def answered(self, text: str, tally: Tally | None) -> None:
        """The answer to it; without a text the turn is as if it had not been.

        Where it was a retry, what it was to replace is back.
        """
        if tally is not None:
            self.tallies.append(tally)
        if text:
            self.turns.append({"role": "assistant", "content": text})
        elif self.turns:
            self.turns.pop()
            if self.taken_back:
                self.turns.extend(self.taken_back)
                self.retries -= 1
        self.taken_back = []

    def retry(self) -> str | None:
        """As `undo`, until there is another answer: `answered` without a text brings it back."""
        before, retries = list(self.turns), self.retries
        asked = self.undo()
        if asked is not None:
            self.taken_back = before[len(self.turns) :]
            self.retries = retries + 1
        return asked

    def undo(self) -> str | None:
        """Take the last turn back; what the user said in it. None where there is none."""
        if self.turns and self.turns[-1]["role"] == "assistant":
            self.turns.pop()
        return self.turns.pop()["content"] if self.turns else None

    def settings(self) -> Generation:
        """For the next answer: a retry that samples has another seed."""
        sampling = self.generation.sampling
        if not self.retries or not sampling.temperature:
            return self.generation
        seed = (sampling.seed + self.retries) % 2**64
        return replace(self.generation, sampling=replace(sampling, seed=seed))

    def clear(self) -> None:
        """Forget what was said, not how."""
        self.turns.clear()
        self.retries = 0

    def save(self, path: Path) -> None:
        """Raises UsageError; no other file than a saved conversation is written over."""
        if path.exists():
            _read(path)
        data = {
            "format": _FORMAT,
            "version": _VERSION,
            "system": self.system,
            "settings": {name: value_of(self.generation, name) for name in sorted(self.chosen)},
            "turns": self.turns,
        }
        text = json.dumps(data, ensure_ascii=False, indent=1) + "\n"
        try:
            # Nobody else's to read.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise UsageError(f"{path}: cannot be written ({error.strerror})") from None

    def load(self, path: Path) -> None:
        """In place of what was said. Raises UsageError, and leaves all as it was."""
        data = _read(path)
        made = replace(self, chosen=set(self.chosen), tallies=self.tallies)
        try:
            made.system = _text(data["system"])
            made.turns = [
                {"role": _role(one["role"]), "content": _text(one["content"])}
                for one in data["turns"]
            ]
            for name, value in data["settings"].items():
                if value is not None:
                    text = ("on" if value else "off") if isinstance(value, bool) else str(value)
                    made.set(name, text)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"{path}: a damaged conversation ({error})") from None
        self.system, self.turns, self.retries = made.system, made.turns, 0
        self.generation, self.chosen = made.generation, made.chosen


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("expected text")
    return value


def _role(value: object) -> str:
    if value not in _ROLES:
        raise ValueError(f"role {str(value)[:20]!r}")
    return str(value)


def _read(path: Path) -> dict[str, Any]:
    most = DEFAULT_LIMITS.max_prompt_bytes
    try:
        with path.open("rb") as file:
            text = file.read(most + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        data = json.loads(text) if len(text) <= most else None
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict) or (data.get("format"), data.get("version")) != (
        _FORMAT,
        _VERSION,
    ):
        raise UsageError(f"{path}: no conversation that /save wrote; it is left as it is")
    return data
