"""What a check found, in a line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "FAULT"]


@dataclass(frozen=True)
class Finding:
    """One line: how it is, what was found, and what to do about it."""

    check: str
    level: Level
    found: str
    todo: str = ""


Findings = Iterator[Finding]


def ok(check: str, found: str) -> Finding:
    """As it should be."""
    return Finding(check, "ok", found)


def warning(check: str, found: str, todo: str) -> Finding:
    """Works, but somebody will stumble over it."""
    return Finding(check, "warning", found, todo)


def fault(check: str, found: str, todo: str) -> Finding:
    """Does not work."""
    return Finding(check, "FAULT", found, todo)
