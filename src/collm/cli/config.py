"""`collm config`: what is set, where it comes from, and a file to begin with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperCommand

from collm.cli.config_apply import (
    COMMON,
    DEFAULTS,
    Setting,
    check_sections,
    commands_of,
    key_of,
    name_variables,
    options_of,
    settings,
)
from collm.cli.config_files import ConfigFile, config_files, places
from collm.cli.lazy import load
from collm.cli.options import JsonOption
from collm.cli.verbs import all_verbs
from collm.errors import UsageError

config = typer.Typer(
    help="Show where each setting comes from: command line, environment, file or default.",
    no_args_is_help=True,
)
_SECRET = ("token", "secret", "password", "api-key")
_EVERYDAY = ("run", "chat", "serve", "cloud", "pull")


@dataclass(frozen=True)
class Shown:
    """An option of a verb, its value, and who said so."""

    verb: str
    key: str
    value: Any
    source: str


@config.command("show", context_settings={"ignore_unknown_options": True})
def show_command(
    context: typer.Context,
    verb: Annotated[str, typer.Argument(help="Such as run, or bench table; default: all.")] = "",
    words: Annotated[
        list[str] | None, typer.Argument(help="Options, as if typed: they count most.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also what nobody has set (always so with a VERB).")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say of each option what it is set to, and by whom."""
    root = context.find_root().params
    files = [] if root.get("no_config") else config_files(root.get("config"))
    for file in files:
        check_sections(file)
    names = [one.name for one in all_verbs()]
    if verb and verb not in names:
        raise UsageError(f"{verb[:40]}: no verb of that name; expected one of {', '.join(names)}")
    shown: list[Shown] = []
    for one in all_verbs():
        if verb in ("", one.name):
            typed = list(words or ())
            command = load(one)
            if not root.get("no_config"):
                name_variables(command, one.name)
            for path, each in commands_of(files, one, command):
                if len(path) > 1 and typed:
                    if typed[0] != path[1]:
                        continue
                shown += _shown(files, path, each, typed[len(path) - 1 :])
    if not (verb or everything):
        shown = [one for one in shown if one.source != "default"]
    if as_json:
        found = [
            {"verb": s.verb, "option": s.key, "value": s.value, "source": s.source} for s in shown
        ]
        files_told = [str(file.path.absolute()) for file in files]
        typer.echo(json.dumps({"files": files_told, "settings": found}, default=str))
        return
    _print(shown, files)


def _shown(
    files: list[ConfigFile], names: tuple[str, ...], command: TyperCommand, typed: list[str]
) -> list[Shown]:
    told = settings(files, names, command)
    known = options_of(command)
    defaults = {str(known[key].name): one.value for key, one in told.items()}
    for parameter in known.values():
        parameter.required = False  # nothing is run
    try:
        context = command.make_context(names[-1], list(typed), default_map=defaults)
    except typer.TyperException as error:
        raise UsageError(f"collm {' '.join(names)}: {error.format_message().rstrip('.')}") from None
    found = []
    for key, parameter in known.items():
        source = context.get_parameter_source(str(parameter.name))
        value = context.params.get(str(parameter.name))
        said = _source(source.name if source else "", told.get(key), str(parameter.envvar))
        if any(key.endswith(word) for word in _SECRET) and value:
            value = "(not shown)"
        found.append(Shown(" ".join(names), key_of(parameter), value, said))
    return found


def _source(name: str, setting: Setting | None, variable: str) -> str:
    match name:
        case "COMMANDLINE":
            return "command line"
        case "ENVIRONMENT":
            return f"environment: {variable}"
        case "DEFAULT_MAP" if setting is not None:
            return f"{setting.file.path.absolute()} [{setting.section}]"
        case _:
            return "default"


def _print(shown: list[Shown], files: list[ConfigFile]) -> None:
    console = Console(highlight=False)
    verb = ""
    width = max((len(one.key) for one in shown), default=0)
    for one in shown:
        if one.verb != verb:
            console.print(Text(f"[{one.verb.replace(' ', '.')}]", "bold"))
            verb = one.verb
        line = Text(f"  {one.key:<{width}} = ")
        line.append(_toml(one.value), "" if one.source == "default" else "bold")
        line.append(f"   {one.source}", "dim")
        console.print(line, soft_wrap=True)
    if not shown:
        console.print("nothing is set: every option has its default")
    told = ", ".join(str(file.path.absolute()) for file in files) or "none found"
    console.print(Text(f"files: {told}", "dim"), soft_wrap=True)


def _toml(value: Any) -> str:
    if value is None or value == ():
        return "(not set)"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value if isinstance(value, bool | int | float) else str(value))


@config.command("path")
def path_command(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the places where collm.toml is looked for; those that count most first."""
    named = context.find_root().params.get("config")
    found = [named] if named is not None else list(places())[::-1]
    if as_json:
        told = [{"path": str(one.absolute()), "exists": one.is_file()} for one in found]
        typer.echo(json.dumps(told))
        return
    for one in found:
        typer.echo(f"{one.absolute()}  {'there' if one.is_file() else 'not there'}")


@config.command("init")
def init_command(
    file: Annotated[
        Path | None, typer.Argument(help="The file to make; default: the user's.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write over a file that is there.")
    ] = False,
) -> None:
    """Write a file with every everyday option, all commented out."""
    path = file or places()[1]
    if path.exists() and not force:
        raise UsageError(f"{path}: is there already; edit it, or write over it with --force")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(example(), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from None
    typer.echo(f"{path}: written; take the # from what you want to set")


def example() -> str:
    """A file that says what there is to say."""
    lines = [
        "# CoLLM's options, so that they need not be typed. What counts, the strongest first: the",
        "# command line, variables such as COLLM_RUN_MAX_TOKENS, ./collm.toml, the user's file,",
        "# /etc/collm/collm.toml. Paths count from this file's folder.",
        "# collm config show tells what is set, and by whom.",
        "",
        f"[{DEFAULTS}]",
        "# For every verb that has the option.",
        '# cloud = "127.0.0.1:50051"',
        "# threads = 2",
        f"# Others: {', '.join(one for one in COMMON if one not in ('cloud', 'threads'))}",
    ]
    for verb in all_verbs():
        if verb.name not in _EVERYDAY:
            continue
        command = load(verb)
        assert isinstance(command, TyperCommand)
        lines += ["", f"[{verb.name}]", f"# {verb.says}."]
        for key, option in options_of(command).items():
            value = option.default
            told = _toml(value) if value not in (None, (), []) else "…"
            said = " ".join((getattr(option, "help", None) or "").split())
            lines.append(f"# {key} = {told}" + (f"  # {said}" if said else ""))
    return "\n".join(lines) + "\n"
