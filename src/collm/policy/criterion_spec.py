"""Criteria from text, as the command line and the API give them.

Grammar::

    either    = both { "|" both }              the first part that takes
    both      = single { "&" single }          all parts have to take
    single    = "(" either ")" | name [ "(" either ")" ] [ ":" arguments ]
    arguments = [ value ] { "," key "=" value }

Names with all their arguments; those with a key may be left out::

    confidence:0.8      margin:0.5      entropy:1.0      risk      learned:PATH
    patience:2,confidence=0.4     window:0.7,over=8     hybrid:0.6,weight=0.8
    coherence:repetition=0.5,logprob=-1.2,drift=0.7,trend=0.15,boundary=0.5
    deadline(confidence:0.6):margin=0.005

Spaces around parts do not matter. A path with a space or one of `|&()` in it is put in double
quotes; one with a double quote in it cannot be given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from collm.errors import PromptError
from collm.policy.criteria import (
    Both,
    Confidence,
    Deadline,
    Either,
    Entropy,
    Margin,
    Patience,
    Risk,
)
from collm.policy.observation import Criterion
from collm.policy.text_criteria import CoherenceGate, Hybrid, Window


def _nothing_learned(path: str) -> Criterion:
    raise PromptError(f"criterion learned:{path!r}: learned criteria cannot be loaded here")


@dataclass(frozen=True)
class Available:
    """What criteria may need besides their text."""

    thresholds: Mapping[int, float | None] = field(default_factory=dict)
    """Risk bounds by cut, from the manifest; empty: not calibrated."""
    learned: Callable[[str], Criterion] = _nothing_learned
    """Turns a path into a learned criterion."""


def parse_criterion(spec: str, available: Available | None = None) -> Criterion:
    """The criterion that `spec` describes. Raises PromptError, one line."""
    return _Parser(spec, available or Available()).whole()


@dataclass(frozen=True)
class _Argument:
    """A number a criterion is given: its range, and what it is where it is left out."""

    low: float
    high: float
    default: float | None = None
    whole: bool = False


_SHARE = _Argument(0.0, 1.0)

_NUMBERS: dict[str, tuple[Callable[..., Criterion], str, dict[str, _Argument]]] = {
    # name: what makes it, its first argument (which is written without a key), all arguments
    "confidence": (Confidence, "threshold", {"threshold": _SHARE}),
    "margin": (Margin, "threshold", {"threshold": _SHARE}),
    "entropy": (Entropy, "threshold", {"threshold": _Argument(0.0, 100.0)}),
    "patience": (
        lambda exits, confidence: Patience(int(exits), confidence),
        "exits",
        {"exits": _Argument(1, 64, whole=True), "confidence": _Argument(0.0, 1.0, 0.0)},
    ),
    "window": (
        lambda threshold, over: Window(threshold, int(over)),
        "threshold",
        {"threshold": _SHARE, "over": _Argument(1, 16, 8, whole=True)},
    ),
    "coherence": (
        CoherenceGate,
        "",
        {
            "repetition": _Argument(0.0, 1.0, CoherenceGate().repetition),
            "logprob": _Argument(-100.0, 0.0, CoherenceGate().logprob),
            "drift": _Argument(0.0, 1.0, CoherenceGate().drift),
            "trend": _Argument(-100.0, 100.0, CoherenceGate().trend),
            "boundary": _Argument(0.0, 1.0, CoherenceGate().boundary),
        },
    ),
    "hybrid": (
        Hybrid,
        "threshold",
        {"threshold": _SHARE, "weight": _Argument(0.0, 100.0, Hybrid(0).weight)},
    ),
}

NAMES = (*_NUMBERS, "risk", "deadline", "learned")
"""Every criterion there is."""

_MOST_PARENTHESES = 32
_WORD = re.compile(r"[A-Za-z_]+")
_ARGUMENTS = re.compile(r'[^&|()"]*')
_PATH = re.compile(r'"[^"]*"|[^\s&|()"]*')


class _Parser:
    """Recursive descent over one specification."""

    def __init__(self, spec: str, available: Available) -> None:
        self._spec = spec.strip()
        self._available = available
        self._at = 0

    def whole(self) -> Criterion:
        """The whole text as one criterion."""
        if not self._spec:
            raise PromptError("the criterion is empty; expected one such as confidence:0.8")
        if self._spec.count("(") > _MOST_PARENTHESES:
            raise PromptError(f"the criterion has over {_MOST_PARENTHESES} parentheses; use fewer")
        made = self._either()
        if self._at < len(self._spec):
            raise self._wrong("expected & or | or the end")
        return made

    def _either(self) -> Criterion:
        parts = [self._both()]
        while self._skip("|"):
            parts.append(self._both())
        return parts[0] if len(parts) == 1 else Either(tuple(parts))

    def _both(self) -> Criterion:
        parts = [self._single()]
        while self._skip("&"):
            parts.append(self._single())
        if len(parts) == 1:
            return parts[0]
        if any(_forces(part) for part in parts):
            raise self._error(
                "deadline cannot be joined by &, which could keep a token that is due; "
                "put what has to hold inside it: deadline(confidence:0.6 & coherence)"
            )
        return Both(tuple(parts))

    def _single(self) -> Criterion:
        if self._skip("("):
            return self._closed()
        found = _WORD.match(self._spec, self._at)
        if found is None:
            raise self._wrong("expected the name of a criterion")
        name = found.group()
        if name not in NAMES:
            raise self._error(f"no criterion {name!r}; expected one of {', '.join(NAMES)}")
        self._at = found.end()
        self._skip("")  # the spaces after it
        inner = self._closed() if name == "deadline" and self._skip("(") else None
        if name != "deadline" and self._spec.startswith("(", self._at):
            raise self._error(f"only deadline goes around another criterion, not {name}")
        given = self._given(_PATH if name == "learned" else _ARGUMENTS)
        if name == "learned":
            if not given:
                raise self._error("learned needs a file: learned:PATH")
            return self._available.learned(given)
        if name == "risk":
            return self._risk(given)
        if name == "deadline":
            if inner is None:
                raise self._error("deadline goes around another: deadline(confidence:0.6)")
            margin = self._numbers(name, "", {"margin": _Argument(0.0, 3600.0, 0.0)}, given)
            return Deadline(inner, margin["margin"])
        make, first, known = _NUMBERS[name]
        return make(**self._numbers(name, first, known, given))

    def _closed(self) -> Criterion:
        made = self._either()
        if not self._skip(")"):
            raise self._wrong("expected )")
        return made

    def _given(self, pattern: re.Pattern[str]) -> str:
        """What follows a colon, without quotes."""
        if not self._skip(":"):
            return ""
        found = pattern.match(self._spec, self._at)
        assert found is not None  # it matches the empty text
        self._at = found.end()
        self._skip("")  # the spaces after it
        return found.group().strip('"')

    def _risk(self, given: str) -> Criterion:
        self._numbers("risk", "", {}, given)
        if not self._available.thresholds:
            raise self._error(
                "risk needs calibrated exits; run collm calibrate ARTIFACT --agreement 0.98"
            )
        return Risk(self._available.thresholds)

    def _numbers(
        self, name: str, first: str, known: Mapping[str, _Argument], given: str
    ) -> dict[str, float]:
        """The arguments by key, checked, defaults filled in."""
        values = {key: arg.default for key, arg in known.items() if arg.default is not None}
        for place, item in enumerate(given.split(",") if given else ()):
            key, equals, text = (part.strip() for part in item.partition("="))
            if not equals:
                key, text = (first if place == 0 else ""), key
            if key not in known:
                keys = ", ".join(known) or "none"
                raise self._error(f"{name} has no parameter {item.strip()!r}; it has {keys}")
            values[key] = self._number(name, key, known[key], text)
        if first and first not in values:
            raise self._error(f"{name} needs its {first}, as in {name}:{_EXAMPLES[name]}")
        return values

    def _number(self, name: str, key: str, argument: _Argument, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise self._error(f"{name}: {key} {text!r} is not a number") from None
        fits = argument.low <= value <= argument.high  # false for NaN
        if not fits or (argument.whole and value != int(value)):
            kind = "a whole number" if argument.whole else "a number"
            raise self._error(
                f"{name}: {key} {text}: expected {kind} from {argument.low:g} to {argument.high:g}"
            )
        return value

    def _skip(self, text: str) -> bool:
        """Whether `text` comes next; if so, go past it and the spaces around it."""
        rest = self._spec[self._at :]
        bare = rest.lstrip()
        if not bare.startswith(text):
            return False
        after = bare[len(text) :].lstrip()
        self._at = len(self._spec) - len(after)
        return True

    def _wrong(self, expected: str) -> PromptError:
        rest = self._spec[self._at :]
        return self._error(f"{expected}, found {rest!r}" if rest else f"{expected}, found its end")

    def _error(self, what: str) -> PromptError:
        return PromptError(f"criterion {self._spec!r}: {what}")


_EXAMPLES = {
    "confidence": "0.8",
    "margin": "0.5",
    "entropy": "1",
    "patience": "2",
    "window": "0.7",
    "hybrid": "0.6",
}


def _forces(criterion: Criterion) -> bool:
    """Whether it may take a reading only because it is due."""
    if isinstance(criterion, Either):
        return any(_forces(part) for part in criterion.parts)
    return isinstance(criterion, Deadline)
