"""The results of `collm bench capacity`: a JSON file, kept up to date after every measurement.

A run that was broken off goes on from what it finds there; settings may be added later.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from collm.bench.quality_settings import Setting
from collm.errors import UsageError

FORMAT, VERSION = "collm-capacity", 1


@dataclass(frozen=True, kw_only=True)
class Level:
    """So many clients at a time, in steady state."""

    clients: int
    p95_seconds: float
    """Of the time per token."""
    median_seconds: float
    first_token_seconds: float | None
    """Median, with the connection; None where no answer began while it was measured."""
    tokens_per_second: float
    """Of all clients together."""
    cloud_cpu: float
    """CPU seconds of the cloud a second: 1 is a whole core."""
    generator_cpu: float
    """The same of the process that the clients run in; near 1 the figures are its own."""
    cloud_memory_bytes: int
    """Resident, weights and all."""

    @property
    def cloud_cpu_per_token(self) -> float | None:
        """Seconds, prompts and all."""
        return self.cloud_cpu / self.tokens_per_second if self.tokens_per_second else None


@dataclass(kw_only=True)
class Result:
    """A setting, and what was measured of it so far."""

    name: str
    setting: str
    """`Setting.key`."""
    levels: dict[int, Level] = field(default_factory=dict)
    clients: int | None = None
    """The largest number that was held; None while it is sought."""
    is_most: bool = False
    """Whether that is as many as were tried at all."""
    identical: int = 0
    """Recorded answers that are the full model's."""
    answers: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to be measured."""
        return self.clients is not None

    @property
    def level(self) -> Level | None:
        """At capacity; one client's where not even one is held."""
        return self.levels.get(self.clients or 1)

    def to_json(self) -> dict[str, Any]:
        """For the file."""
        level = self.level
        return {
            "name": self.name,
            "setting": self.setting,
            "clients": self.clients,
            "is_most": self.is_most,
            "p95_seconds": level.p95_seconds if level and self.is_complete else None,
            "identical": self.identical,
            "answers": self.answers,
            "curve": [asdict(self.levels[n]) for n in sorted(self.levels)],
        }


class CapacityFile:
    """The file at `path`, read where it is there; None keeps nothing.

    header: what all results share (target, answers, artifact); about: what is only told (machine,
    command). Raises UsageError for files of other runs.
    """

    def __init__(
        self, path: Path | None, header: Mapping[str, Any], about: Mapping[str, Any]
    ) -> None:
        self._path = path
        self._header = json.loads(json.dumps(header))
        self._about = about
        self._results: dict[str, Result] = {}
        if path is not None and path.exists() and path.stat().st_size:
            self._read(path)

    def of(self, setting: Setting) -> Result:
        """What is known of a setting."""
        made = Result(name=setting.label, setting=setting.key)
        return self._results.setdefault(setting.key, made)

    def add(self, setting: Setting, level: Level, identical: int, answers: int) -> None:
        """One more measurement, on disk before this returns."""
        result = self.of(setting)
        result.levels[level.clients] = level
        result.identical, result.answers = identical, answers
        self._write()

    def finish(self, setting: Setting, clients: int, most: int) -> None:
        """The search is over."""
        result = self.of(setting)
        result.clients, result.is_most = clients, clients == most
        self._write()

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "format": FORMAT,
            "version": VERSION,
            **self._header,
            **self._about,
            "results": [one.to_json() for one in self._results.values() if one.levels],
        }

    def _write(self) -> None:
        if self._path is None:
            return
        draft = self._path.with_name(f"{self._path.name}.part")
        draft.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        os.replace(draft, self._path)

    def _read(self, path: Path) -> None:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError):
            found = None
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise UsageError(f"{path}: no results of collm bench capacity; give another --out")
        if found.get("version") != VERSION:
            raise UsageError(f"{path}: version {found.get('version')!r}; give another --out")
        for name, ours in self._header.items():
            if found.get(name) != ours:
                raise UsageError(
                    f"{path}: made with {name.replace('_', ' ')} {str(found.get(name))[:24]}, this "
                    f"run has {str(ours)[:24]}; give another --out"
                )
        try:
            for one in found["results"]:
                self._results[one["setting"]] = _result(one)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{path}: damaged results ({error}); give another --out") from None


def _result(found: Mapping[str, Any]) -> Result:
    levels = [_level(one) for one in found["curve"]]
    result = Result(name=str(found["name"]), setting=str(found["setting"]))
    result.levels = {level.clients: level for level in levels}
    clients = found["clients"]
    if clients is not None and (
        not isinstance(clients, int) or (clients or 1) not in result.levels
    ):
        raise ValueError(f"clients {clients!r}")
    result.clients, result.is_most = clients, bool(found["is_most"])
    result.identical, result.answers = int(found["identical"]), int(found["answers"])
    return result


def _level(found: Mapping[str, Any]) -> Level:
    hints = get_type_hints(Level)
    values = {}
    for name in (one.name for one in fields(Level)):
        allowed = hints[name] if hints[name] is int else hints[name] | int
        if not isinstance(found[name], allowed):
            raise ValueError(f"{name} {found[name]!r}")
        values[name] = found[name]
    return Level(**values)
