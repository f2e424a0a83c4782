"""Who takes part in `collm bench table`: each module here exports `CONTENDERS`.

A new one is one small file; nothing else names it.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

from collm.bench.contender import Contender
from collm.errors import PromptError

PLAIN = "plain cloud"
"""What all are compared with; in every run."""


def all_contenders() -> list[Contender]:
    """Everyone, the plain cloud first, then by module name."""
    found: list[Contender] = []
    for module in sorted(info.name for info in pkgutil.iter_modules(__path__)):
        found += import_module(f"{__name__}.{module}").CONTENDERS
    return sorted(found, key=lambda one: one.name != PLAIN)


def choose_contenders(keys: str | None, modes: str | None) -> list[Contender]:
    """Those named, by key or mode, separated by commas, after the plain cloud; default: all."""
    everyone = all_contenders()
    if keys is not None and modes is not None:
        raise PromptError("--contenders and --modes both given; expected one of them")
    if keys is not None:
        wanted = _words("--contenders", keys, [one.key for one in everyone])
        chosen = [one for one in everyone if one.key in wanted]
    elif modes is not None:
        wanted = _words("--modes", modes, sorted({one.mode for one in everyone}))
        chosen = [one for one in everyone if one.mode in wanted]
    else:
        chosen = everyone
    return [one for one in everyone if one.name == PLAIN or one in chosen]


def _words(option: str, text: str, known: list[str]) -> set[str]:
    words = {word.strip() for word in text.split(",")}
    for word in sorted(words):
        if word not in known:
            raise PromptError(f"{option} {word!r}: expected some of {', '.join(known)}")
    return words
