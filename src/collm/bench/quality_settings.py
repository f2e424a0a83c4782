"""Settings that `collm eval quality` compares: a mode, and everything that shapes its answers.

Written as words, the mode first, the rest as name=value::

    threshold criterion=confidence:0.8 wire=f16 exits=5,15 placement=15
    verified lookup=yes draft=12
    refine segment=32 passes=4 rank=3 gap=1.5
    threshold criterion="margin:0.5 & coherence" deadline=50 name="margin and coherence"
    verified exits=none                 # no drafts: a round trip a token, KV caches on both sides
    verified drafter=oracle:0.9         # drafts are the full model's answer, right 9 times in 10

Not covered: sampling; every setting answers greedily, so that texts can be compared.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from collm.config import MODES, Generation, Refinement
from collm.errors import PromptError
from collm.session.oracle import ORACLE, Oracle

_CRITERION_MODES = ("threshold", "standalone")
"""Where criteria go unless only other modes were named: there they decide what the text is."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to answer. Two settings are the same when all but their names is."""

    mode: str
    placement: int
    """Layers on the edge."""
    criterion: str = ""
    """Empty: confidence:0.6."""
    exits: tuple[int, ...] | None = None
    """None: all of the placement; empty: none."""
    wire: str = "f32"
    first_cut: int | None = None
    draft: int = 8
    ahead: float | None = None
    lookup: bool = False
    drafter: str = ""
    """Empty: the exits; else `oracle:RATE`."""
    deadline: float = 0.0
    """Milliseconds from token to token; 0: none."""
    segment: int = Refinement().segment
    passes: int = Refinement().passes
    rank: int = Refinement().rank
    gap: float = Refinement().gap
    repetition: float = Refinement().repetition
    name: str = ""
    """What tables call it; empty: the words it is written with."""

    @property
    def label(self) -> str:
        """What tables and plots call it."""
        return self.name or self.words

    @property
    def words(self) -> str:
        """As it is written, with what differs from the defaults."""
        words = [self.mode]
        plain = Setting(mode=self.mode, placement=self.placement)
        for field, default in asdict(plain).items():
            value = getattr(self, field)
            if field not in ("mode", "placement", "name") and value != default:
                shown = ",".join(map(str, value)) or "none" if isinstance(value, tuple) else value
                shown = "yes" if shown is True else shown
                prefix = "" if field == "criterion" else f"{field}="
                words.append(f"{prefix}{shown}")
        return " ".join(words)

    @property
    def key(self) -> str:
        """What results are stored under: everything but the name, as JSON."""
        fields = asdict(replace(self, name=""))
        if self.ahead is None:
            del fields["ahead"]
        if not self.drafter:
            del fields["drafter"]  # so answers kept from before there were any are still found
        return json.dumps(fields, sort_keys=True)

    @property
    def edge_key(self) -> tuple[Any, ...]:
        """Settings that agree in this can share an edge."""
        return self.mode, self.placement, self.exits, self.wire, self.first_cut

    def oracle(self, own: Sequence[int], seed: int = 0) -> Oracle | None:
        """The drafter, where it is an oracle. own: the full model's answer to the prompt."""
        if not self.drafter:
            return None
        return Oracle(tuple(own), float(self.drafter.removeprefix(f"{ORACLE}:")), seed)

    def generation(self, max_tokens: int) -> Generation:
        """As the session takes it. Raises PromptError for values out of range."""
        return Generation(
            mode=self.mode,
            max_tokens=max_tokens,
            criterion=self.criterion,
            draft=self.draft,
            ahead=self.ahead,
            lookup=self.lookup,
            deadline_seconds=self.deadline / 1000,
            refinement=Refinement(
                segment=self.segment,
                passes=self.passes,
                rank=self.rank,
                gap=self.gap,
                repetition=self.repetition,
            ),
        )


BASELINE = Setting(mode="cloud", placement=0)
"""The full model in the cloud, alone: the text and the work that all are compared with."""


def parse_setting(text: str, defaults: Setting) -> Setting:
    """Read a setting; what it leaves out is as in `defaults`. Raises PromptError, one line."""
    where = f"--setting {text!r}"
    try:
        mode, *words = shlex.split(text)
    except ValueError as error:
        raise PromptError(f"{where}: expected a mode, then name=value ({error})") from None
    _check_mode(mode, where)
    if mode == "cloud":
        if words:
            raise PromptError(f"{where}: cloud takes no values; it is the baseline, always run")
        return BASELINE
    values: dict[str, Any] = {}
    for word in words:
        name, is_given, value = word.partition("=")
        if not is_given or name not in _READ:
            raise PromptError(f"{where}: {word!r}; expected name=value with a name of {_NAMES}")
        if name in values:
            raise PromptError(f"{where}: {name} is given twice")
        try:
            values[name] = _READ[name](value)
        except (ValueError, KeyError):
            raise PromptError(f"{where}: {name}={value}; expected {_KINDS[name]}") from None
    made = replace(defaults, mode=mode, **values)
    made.generation(1)  # checks the ranges
    if mode != "verified" and (made.exits == () or made.drafter):
        which = "exits=none" if made.exits == () else f"drafter={made.drafter}"
        raise PromptError(f"{where}: {which} goes with mode verified, not {mode}")
    if made.drafter and made.lookup:
        raise PromptError(f"{where}: an oracle drafts alone; leave lookup out")
    return made


def cross_settings(
    modes: Sequence[str], criteria: Sequence[str], defaults: Setting
) -> list[Setting]:
    """Every mode, with every criterion where it takes any; `defaults` gives the rest.

    Criteria go to threshold and standalone. They go to verified and refine, which use them for
    drafts only, where neither of the first two is among `modes`.
    """
    made = []
    deciding = [mode for mode in modes if mode in _CRITERION_MODES]
    for mode in modes:
        _check_mode(mode, "--modes")
        if mode == "cloud":
            made.append(BASELINE)
        elif criteria and (mode in _CRITERION_MODES or not deciding):
            made += [replace(defaults, mode=mode, criterion=spec) for spec in criteria]
        else:
            made.append(replace(defaults, mode=mode))
    return made


def with_baseline(settings: Sequence[Setting]) -> list[Setting]:
    """The baseline, then the settings, each once. Raises PromptError where labels clash."""
    distinct = list({s.key: s for s in (BASELINE, *settings)}.values())
    labels: dict[str, Setting] = {}
    for i, setting in enumerate(distinct):
        if setting.label in labels and not setting.name:
            # The words leave the placement out, which is nearly always the same.
            distinct[i] = setting = replace(
                setting, name=f"{setting.words} placement={setting.placement}"
            )
        if setting.label in labels:
            raise PromptError(f"two settings are called {setting.label!r}; expected other names")
        labels[setting.label] = setting
    return distinct


def _check_mode(mode: str, where: str) -> None:
    if mode not in MODES:
        raise PromptError(f"{where}: mode {mode!r}; expected one of {', '.join(MODES)}")


def _layers(text: str) -> tuple[int, ...]:
    if text == "none":
        return ()
    return tuple(sorted({int(part) for part in text.split(",")}))


def _drafter(text: str) -> str:
    kind, _, rate = text.partition(":")
    if kind != ORACLE or not 0.0 <= float(rate) <= 1.0:
        raise ValueError(text)
    return f"{ORACLE}:{float(rate):g}"


_FLAGS = {"yes": True, "no": False}
_LAYERS, _COUNT, _NUMBER = "layers such as 5,15, or none", "a whole number", "a number"
_KINDS: Mapping[str, str] = {
    "placement": _COUNT,
    "exits": _LAYERS,
    "criterion": "a criterion",
    "wire": "f32, f16 or int8",
    "first_cut": _COUNT,
    "draft": _COUNT,
    "ahead": _NUMBER,
    "lookup": "yes or no",
    "drafter": f"{ORACLE}:RATE with a rate from 0 to 1",
    "deadline": "milliseconds",
    "segment": _COUNT,
    "passes": _COUNT,
    "rank": _COUNT,
    "gap": _NUMBER,
    "repetition": _NUMBER,
    "name": "a name",
}
_READ: Mapping[str, Callable[[str], Any]] = {
    **{name: int for name, kind in _KINDS.items() if kind == _COUNT},
    "exits": _layers,
    "criterion": str,
    "wire": str,
    "lookup": _FLAGS.__getitem__,
    "drafter": _drafter,
    "deadline": float,
    **{name: float for name, kind in _KINDS.items() if kind == _NUMBER},
    "name": str,
}
_NAMES = ", ".join(_KINDS)
