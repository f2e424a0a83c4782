"""Which tokens a constraint lets follow: a pure function of (constraint, answer so far).

Edge and cloud ask the same function, so both choose under one mask and a draft is right exactly
when the constrained full model would have chosen it. llguidance (https://guidance-ai.github.io)
parses; where the answer may end the end-of-text tokens are allowed, where it must, nothing else.

JSON is written as Python's `json.dumps` does, a space after `,` and `:` and no other space outside
strings: small models left free to add white space may never stop adding it.

Every session compiles its own parser (a millisecond or two): llguidance's copies share the tables
that their limits count, and one answer could use them up for another. What a constraint may cost is
bounded by `_parser_limits` and, where those do not help, by the lengths in `limits.py`.

Not covered: schemas that refer to other documents, `not` and other words that llguidance does not
know (each is refused by name), models without an end-of-text token.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from collm.config import Constraint
from collm.errors import PromptError, ProtocolError, one_line
from collm.limits import DEFAULT_LIMITS, Limits
from collm.model.artifact import Artifact

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer
    from llguidance._lib import JsonCompileOptions

Bool = npt.NDArray[np.bool_]

_WRITTEN: Final[JsonCompileOptions] = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
_KEPT: Final = 32
"""Masks that are kept for places which are asked about again: a draft is written, then judged."""
_MOST_MULTIPLES: Final = 20_000
"""Of all a schema's `multipleOf`, their digits read as numbers: their automata have as many states,
each of which takes 20 µs."""
_MOST_DEPTH: Final = 100

# What sessions took under constraints of all kinds, 40 tokens into their answers (MB): nothing to
# speak of, 0.2 (a schema of 0.2 kB), 1.4 (16 kB), 3.6 (54 kB), 9.4 (a multiple of 19,999), 2.9 and
# 1.7 (expressions of 8 and 11 bytes; most take 0.01).
_LEAST_BYTES: Final = 400_000
_BYTES_PER_BYTE: Final = 80
_BYTES_PER_STATE: Final = 500
_EXPRESSION_BYTES: Final = 3_000_000


class Masks:
    """One text under a constraint; follows it where it grows and where it is cropped.

    Raises PromptError for a constraint that cannot be compiled within the limits.
    Not for use by several threads at once.
    """

    def __init__(
        self, artifact: Artifact, constraint: Constraint, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        self.constraint = constraint
        self._vocabulary = artifact.architecture.vocab_size
        self._eos = sorted(artifact.manifest.eos_ids)
        if not self._eos:
            raise PromptError("this model has no end-of-text token: a constraint could not end")
        self._ends = frozenset(self._eos)
        self._consumed: list[int] = []
        self._masks: dict[int, bytes] = {}
        """Packed, by the number of tokens before."""
        grammar = _grammar(constraint, limits)
        with _COMPILING:
            self._matcher = _compiled(artifact, constraint.kind, grammar)
            self._masks[0] = self._compute()  # nothing at all may fit it

    def allowed(self, ids: Sequence[int]) -> Bool:
        """Which tokens may follow `ids`, prompt included: bool [vocabulary], at least one true.

        Raises ProtocolError where `ids` break the constraint themselves, PromptError where going
        on would take more than a constraint may.
        """
        if len(ids) < self.constraint.start:
            raise ProtocolError(
                f"a constraint from position {self.constraint.start} on, in a text of {len(ids)}"
            )
        answer = list(ids[self.constraint.start :])
        if not self._ends.isdisjoint(answer):
            return self._only_the_end()
        count = len(answer)
        known = self._masks.get(count)
        if known is None or self._consumed[:count] != answer:
            self._go_to(answer)
            known = self._masks[count] = self._compute()
            if len(self._masks) > _KEPT:
                del self._masks[min(self._masks)]
        bits = np.unpackbits(np.frombuffer(known, np.uint8), bitorder="little")
        mask: Bool = bits[: self._vocabulary].view(np.bool_)
        return mask if mask.any() else self._only_the_end()

    def _only_the_end(self) -> Bool:
        mask = np.zeros(self._vocabulary, dtype=np.bool_)
        mask[self._eos] = True
        return mask

    def _go_to(self, answer: Sequence[int]) -> None:
        """Take the parser to the end of `answer`, the shortest way."""
        same = len(self._consumed)
        if answer[:same] != self._consumed:
            pairs = zip(self._consumed, answer, strict=False)
            differing = (at for at, (a, b) in enumerate(pairs) if a != b)
            same = next(differing, min(same, len(answer)))
            self._crop(same)
        for token in answer[same:]:
            self._consume(token)

    def _crop(self, count: int) -> None:
        self._matcher.rollback(len(self._consumed) - count)
        del self._consumed[count:]
        self._masks = {at: mask for at, mask in self._masks.items() if at <= count}

    def _consume(self, token: int) -> None:
        self._check()
        is_allowed = self._matcher.validate_tokens([token]) == 1
        self._check()
        if not is_allowed:
            at = self.constraint.start + len(self._consumed)
            raise ProtocolError(f"token {token} at position {at} breaks the answer's constraint")
        self._matcher.consume_token(token)
        self._check()
        self._consumed.append(token)

    def _compute(self) -> bytes:
        mask = self._matcher.compute_bitmask()
        self._check()
        return mask

    def _check(self) -> None:
        if self._matcher.is_error():
            raise PromptError(f"the constraint cannot be kept to: {_words(self._matcher)}")


def check_constraint(
    artifact: Artifact, constraint: Constraint | None, limits: Limits = DEFAULT_LIMITS
) -> None:
    """Raises PromptError for a constraint that no answer of this model could be made under."""
    if constraint is not None:
        Masks(artifact, constraint, limits)


def constraint_bytes(constraint: Constraint, vocabulary: int) -> int:
    """About what `Masks` may come to take; measured as said at the figures."""
    return _parser_bytes(constraint.kind, constraint.text) + _KEPT * (vocabulary // 8 + 64)


@lru_cache(maxsize=128)
def _parser_bytes(kind: str, text: str) -> int:
    if kind == "json_object":
        return _LEAST_BYTES
    has_expressions, multiples = True, 0.0
    if kind == "json_schema":
        try:
            patterns, multiples = _dear(_schema(text, DEFAULT_LIMITS))
            has_expressions = patterns > 0
        except PromptError:
            return _LEAST_BYTES  # it will be refused
    dear = _EXPRESSION_BYTES if has_expressions else 0
    return _LEAST_BYTES + _BYTES_PER_BYTE * len(text) + round(_BYTES_PER_STATE * multiples) + dear


def _compiled(artifact: Artifact, kind: str, grammar: str) -> LLMatcher:
    from llguidance import LLMatcher  # only whoever constrains pays for it

    vocabulary = _vocabulary(artifact)
    matcher = LLMatcher(vocabulary, grammar, log_level=0, limits=_parser_limits())
    if matcher.is_error():
        raise PromptError(f"the {kind} cannot be used: {_words(matcher)}")
    return matcher


def _parser_limits() -> LLParserLimits:
    """Less than llguidance's own: a step stays below some 20 ms, a session below some 20 MB."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=100_000,
        step_lexer_fuel=100_000,
        step_max_items=10_000,
        max_items_in_row=1_000,
        max_lexer_states=8_000,
        max_grammar_size=100_000,
        verbose_errors=False,
    )


def _grammar(constraint: Constraint, limits: Limits) -> str:
    from llguidance import LLMatcher

    kind, text = constraint.kind, constraint.text
    is_schema = kind == "json_schema"
    most = limits.max_constraint_bytes if is_schema else limits.max_expression_bytes
    size = len(text.encode())
    if size > most:
        raise PromptError(f"a {kind} of {size} bytes; expected at most {most}")
    if kind == "regex":
        return LLMatcher.grammar_from_regex(text)
    if kind == "lark":
        if "%json" in text:
            raise PromptError("a lark grammar with %json; give the schema itself, as json_schema")
        return LLMatcher.grammar_from_lark(text)
    schema = _schema(text, limits) if is_schema else {"type": "object"}
    try:
        return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_WRITTEN)
    except ValueError as error:
        raise PromptError(f"the JSON schema cannot be read: {one_line(error)}") from None


def _schema(text: str, limits: Limits) -> dict[str, object]:
    """The schema, without what would take llguidance too long."""
    try:
        schema = json.loads(text)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise PromptError(f"the JSON schema is not JSON: {one_line(error)}") from None
    if not isinstance(schema, dict):
        raise PromptError("the JSON schema is not a JSON object; expected { … }")
    patterns, multiples = _dear(schema)
    if patterns > limits.max_expression_bytes:
        raise PromptError(
            f"the JSON schema has patterns of {patterns} bytes; expected at most "
            f"{limits.max_expression_bytes}"
        )
    if multiples > _MOST_MULTIPLES:
        raise PromptError(
            f"the JSON schema has multipleOf with too many digits; expected at most "
            f"{_MOST_MULTIPLES}, all of them together and without their points"
        )
    return schema


def _dear(schema: dict[str, object]) -> tuple[int, float]:
    """Bytes of all expressions in it, and states of all automata that know multiples."""
    patterns, multiples = 0, 0.0
    for key, value in _members(schema):
        if key == "pattern" and isinstance(value, str):
            patterns += len(value.encode(errors="replace"))
        elif key == "patternProperties" and isinstance(value, dict):
            patterns += sum(len(pattern.encode(errors="replace")) for pattern in value)
        elif key == "multipleOf" and isinstance(value, int | float) and not isinstance(value, bool):
            multiples += _states(value)
    return patterns, multiples


def _members(schema: dict[str, object]) -> Iterator[tuple[str, object]]:
    """Every member of every object in it."""
    left: list[tuple[object, int]] = [(schema, 0)]
    while left:
        value, depth = left.pop()
        if depth > _MOST_DEPTH:
            raise _too_deep()
        if isinstance(value, dict):
            yield from value.items()
            left += [(one, depth + 1) for one in value.values()]
        elif isinstance(value, list):
            left += [(one, depth + 1) for one in value]


def _too_deep() -> PromptError:
    return PromptError(f"the JSON schema is more than {_MOST_DEPTH} levels deep")


def _states(multiple: float) -> float:
    """Of the automaton that knows its multiples: 25 for 0.025, 100 for 100."""
    if not abs(multiple) <= _MOST_MULTIPLES:  # NaN, too, and integers that are too large for floats
        return float("inf")
    given = Decimal(str(multiple))
    digits = int("".join(map(str, given.as_tuple().digits)))
    return max(digits, abs(multiple))


def _words(matcher: LLMatcher) -> str:
    """What is wrong, in one line."""
    said = matcher.get_error().split("<non-verbose/>")[0]
    return one_line(said.strip() or matcher.stop_reason())


def _vocabulary(artifact: Artifact) -> LLTokenizer:
    """The model's tokens as llguidance wants them; made once, in tenths of a second."""
    from llguidance import LLTokenizer

    size, eos_ids = artifact.architecture.vocab_size, sorted(artifact.manifest.eos_ids)
    path = artifact.path("tokenizer.json")
    key = (artifact.manifest.files["tokenizer.json"].sha256, size, tuple(eos_ids))
    found = _VOCABULARIES.pop(key, None)
    if found is None:
        try:
            text = path.read_text(encoding="utf-8")
            found = LLTokenizer(text, n_vocab=size, eos_token=eos_ids)
        except Exception as error:  # noqa: BLE001 - the Rust side raises bare ones
            raise PromptError(
                f"this model's tokenizer cannot be constrained: {one_line(error)}"
            ) from None
    _VOCABULARIES[key] = found
    while len(_VOCABULARIES) > _MOST_VOCABULARIES:
        del _VOCABULARIES[next(iter(_VOCABULARIES))]
    return found


_MOST_VOCABULARIES: Final = 4
_VOCABULARIES: Final[dict[tuple[str, int, tuple[int, ...]], LLTokenizer]] = {}
"""Those used last; under `_COMPILING`."""
_COMPILING: Final = threading.Lock()
"""One at a time: whoever sends dear constraints has one core, however many they are."""
