"""`collm.toml`: where it is looked for, and what is in it.

The machine's file, the user's and the one in the working directory are laid over each other, key
by key; a file that was named stands alone. A file in the working directory that belongs to
somebody else is left out, as it could send prompts anywhere.

Not covered: whether the options are a verb's (`config_apply`).
"""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_config_path

from collm.errors import UsageError, one_line
from collm.limits import DEFAULT_LIMITS

NAME = "collm.toml"
Value = str | int | float | bool | list[object] | Mapping[str, object]
Table = Mapping[str, object]


@dataclass(frozen=True)
class ConfigFile:
    """One file, read."""

    path: Path
    tables: Mapping[str, Table]
    """Sections by name."""

    def table(self, names: Sequence[str]) -> Table:
        """The section `[a.b]` of names a, b; empty where there is none. Raises UsageError."""
        found: object = self.tables
        for i, name in enumerate(names):
            found = found.get(name, {}) if isinstance(found, Mapping) else {}
            if not isinstance(found, Mapping):
                raise UsageError(
                    f"{self.path}: {'.'.join(names[: i + 1])}: expected a section such as "
                    f"[{names[0]}]"
                )
        assert isinstance(found, Mapping)
        return found


def places() -> tuple[Path, ...]:
    """Where files are looked for, those that count most last."""
    return (Path("/etc/collm") / NAME, user_config_path("collm") / NAME, Path(NAME))


def config_files(named: Path | None) -> list[ConfigFile]:
    """The files that count, those that count most last. Raises UsageError.

    named: the only one, which then has to be there.
    """
    if named is not None:
        return [read_file(named)]
    return [read_file(path) for path in places() if _is_ours(path)]


def read_file(path: Path) -> ConfigFile:
    """Raises UsageError with one line that names the file."""
    most = DEFAULT_LIMITS.max_config_bytes
    try:
        with path.open("rb") as file:
            text = file.read(most + 1)
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror}); collm config init FILE makes one"
        ) from None
    if len(text) > most:
        raise UsageError(f"{path}: over {most} bytes; expected a collm.toml")
    try:
        found = tomllib.loads(text.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: no TOML ({one_line(error)})") from None
    for name, value in found.items():
        if not isinstance(value, dict):
            raise UsageError(
                f"{path}: {one_line(name, 60)} stands outside of any section; put it below "
                "[defaults], or below a verb such as [run]"
            )
    return ConfigFile(path, found)


def _trusted() -> tuple[int, ...]:
    return (0, os.getuid())


def _is_ours(path: Path) -> bool:
    """Whether it is there, and not put there by somebody else."""
    try:
        owner = path.stat().st_uid
    except OSError:
        return False
    if owner in _trusted():
        return True
    print(
        f"warning: {path.absolute()} belongs to another user, and is left out; name it with "
        "--config to use it",
        file=sys.stderr,
    )
    return False
