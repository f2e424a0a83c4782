"""What the configuration says of one verb: options by section and key, checked like typed ones.

`[run]` holds the options of `collm run` by their long names, `[bench.table]` those of `collm bench
table`. `[defaults]` holds what several verbs share. The file ends up as click's `default_map`, so
that it counts less than the environment (`COLLM_RUN_MAX_TOKENS`) and the command line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from collm.cli.config_files import ConfigFile, config_files
from collm.cli.verbs import Verb, all_verbs
from collm.errors import UsageError, one_line

DEFAULTS = "defaults"
COMMON = (
    "cloud", "route", "ca", "cert", "key", "token-file", "threads", "mode", "placement", "wire",
    "threshold", "max-tokens", "temperature", "store",
)  # fmt: skip
"""What `[defaults]` may say, for every verb that has the option. `eval` and `bench` measure what
they are told to, and take nothing from there."""
Parameter = TyperOption | TyperArgument
Commands = TyperCommand | TyperGroup


@dataclass(frozen=True)
class Setting:
    """A value of a file, as an option takes it."""

    value: Any
    file: ConfigFile
    section: str


def options_of(command: Commands) -> dict[str, Parameter]:
    """Options and arguments by the names they have in files; hidden ones are nobody's to set."""
    return {
        key_of(one): one
        for one in command.params
        if isinstance(one, TyperOption | TyperArgument)
        and one.name not in ("help", "install_completion", "show_completion")
        and not one.hidden
    }


def key_of(parameter: Parameter) -> str:
    """`--max-tokens` is `max-tokens`."""
    if isinstance(parameter, TyperOption) and parameter.opts:
        return max(parameter.opts, key=len).lstrip("-")
    return str(parameter.name).replace("_", "-")


def name_variables(command: Commands, *words: str) -> None:
    """Let each option be told by a variable too, such as COLLM_RUN_MAX_TOKENS."""
    if isinstance(command, TyperGroup):
        for name, one in command.commands.items():
            assert isinstance(one, TyperCommand | TyperGroup)
            name_variables(one, *words, name)
        return
    for key, parameter in options_of(command).items():
        if parameter.envvar is None:
            parameter.envvar = "_".join(["collm", *words, key]).replace("-", "_").upper()
            parameter.show_envvar = False


def verb_defaults(named: Path | None, verb: Verb, command: Commands) -> dict[str, Any]:
    """click's `default_map` of a verb. Raises UsageError for what no verb or option is called."""
    files = config_files(named)
    for file in files:
        check_sections(file)
    return _mapped(files, (verb.name,), command)


def _mapped(files: list[ConfigFile], names: tuple[str, ...], command: Commands) -> dict[str, Any]:
    if isinstance(command, TyperGroup):
        for file in files:
            _check_names(file, names, file.table(names), list(command.commands), "command")
        return {
            name: _mapped(files, (*names, name), one)
            for name, one in command.commands.items()
            if isinstance(one, TyperCommand | TyperGroup)
        }
    known = options_of(command)
    found = settings(files, names, command)
    return {str(known[key].name): one.value for key, one in found.items()}


def settings(
    files: list[ConfigFile], names: tuple[str, ...], command: TyperCommand
) -> dict[str, Setting]:
    """By key: what the files say of a command, the last word of each. Raises UsageError."""
    known = options_of(command)
    context = command.make_context(names[-1], [], resilient_parsing=True)
    found: dict[str, Setting] = {}
    for file in files:
        if len(names) == 1:
            for key, value in file.table((DEFAULTS,)).items():
                if (key := key.replace("_", "-")) in known:
                    taken = _taken(file, DEFAULTS, key, value, known[key], context)
                    found[key] = Setting(taken, file, DEFAULTS)
    for file in files:
        table, section = file.table(names), ".".join(names)
        _check_names(file, names, table, list(known), "option")
        for key, value in table.items():
            key = key.replace("_", "-")
            found[key] = Setting(
                _taken(file, section, key, value, known[key], context), file, section
            )
    return found


def check_sections(file: ConfigFile) -> None:
    """Raise UsageError for a section that is no verb's, or what `[defaults]` may not say."""
    _check_names(file, (), file.tables, [DEFAULTS, *(one.name for one in all_verbs())], "section")
    _check_names(file, (DEFAULTS,), file.table((DEFAULTS,)), list(COMMON), "option")


def _check_names(
    file: ConfigFile,
    names: tuple[str, ...],
    table: Mapping[str, object],
    known: list[str],
    what: str,
) -> None:
    for name in table:
        if name.replace("_", "-") in known:
            continue
        where = f"[{'.'.join(names)}] " if names else ""
        near = get_close_matches(name.replace("_", "-"), known, 1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
        raise UsageError(
            f"{file.path}: {where}{one_line(name, 60)}: no {what} of that name; {hint}"
        )


def _taken(
    file: ConfigFile, section: str, key: str, value: object, option: Parameter, context: Any
) -> Any:
    """The value as the option takes it. Raises UsageError."""
    where = f"{file.path}: [{section}] {key}"
    expected = _kind(option)
    try:
        fits = _fitting(value, expected, many=_is_many(option))
    except TypeError:
        given = one_line(repr(value), 60)
        raise UsageError(f"{where} = {given}: expected {_words(option, expected)}") from None
    fits = _placed(fits, file.path.absolute().parent, option, key)
    try:
        option.get_runtime_param().coerce(fits, param=option, ctx=context)
    except typer.BadParameter as error:
        raise UsageError(f"{where}: {one_line(error.message.rstrip('.'))}") from None
    return fits


def _kind(option: Parameter) -> type:
    annotation = option.type_descriptor.annotation
    for one in (bool, int, float, Path):
        if annotation is one or annotation == list[one]:  # type: ignore[valid-type]
            return one
    return str


def _is_many(option: Parameter) -> bool:
    return bool(getattr(option, "multiple", False)) or option.nargs != 1


def _fitting(value: object, kind: type, *, many: bool) -> Any:
    """Raises TypeError where a value is of another kind than the option's."""
    if many:
        values = value if isinstance(value, list) else [value]
        return [_fitting(one, kind, many=False) for one in values]
    if kind is str and isinstance(value, list):  # exits = [5, 15]
        return ",".join(_fitting(one, kind, many=False) for one in value)
    if isinstance(value, bool) or kind is bool:
        if kind is bool and isinstance(value, bool):
            return value
        raise TypeError
    if isinstance(value, int | float) and kind is str:  # placement = 15
        return str(value)
    if isinstance(value, int) and kind is float:
        return float(value)
    if isinstance(value, str if kind is Path else kind):
        return value
    raise TypeError


def _words(option: Parameter, kind: type) -> str:
    one = {bool: "true or false", int: "a whole number", float: "a number"}.get(
        kind, "a path in quotes" if kind is Path else "text in quotes"
    )
    return f"{one}, or a list of those" if _is_many(option) else one


def _placed(value: Any, folder: Path, option: Parameter, key: str) -> Any:
    """Paths count from the file's folder, not from wherever collm is started."""
    if _kind(option) is Path:
        if isinstance(value, list):
            return [_placed(one, folder, option, key) for one in value]
        return str(folder / Path(value).expanduser())
    if key == "artifact" and (found := folder / Path(value).expanduser()).exists():
        return str(found)
    return value


def commands_of(
    files: list[ConfigFile], verb: Verb, command: Commands
) -> Iterator[tuple[tuple[str, ...], TyperCommand]]:
    """A verb, or the commands it has of its own, by their words.

    Raises UsageError where a file names a command that it has not.
    """
    if isinstance(command, TyperGroup):
        for file in files:
            table = file.table((verb.name,))
            _check_names(file, (verb.name,), table, list(command.commands), "command")
        for name, one in command.commands.items():
            assert isinstance(one, TyperCommand)
            yield (verb.name, name), one
    else:
        yield (verb.name,), command
