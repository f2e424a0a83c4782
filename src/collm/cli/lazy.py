"""Verbs that are imported when they are run, with what the configuration file says of them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from collm.cli.verbs import GROUPS, Verb, all_verbs
from collm.errors import UsageError


def load(verb: Verb) -> TyperCommand | TyperGroup:
    """The verb's command, its module imported by now."""
    module, _, name = verb.where.partition(":")
    found = getattr(import_module(f"collm.cli.{module}"), name)
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    if isinstance(found, typer.Typer):
        app.add_typer(found, name=verb.name)
        group = get_command(app)
        assert isinstance(group, TyperGroup)
        made = group.commands[verb.name]
    else:
        app.command(verb.name, epilog=_epilog(verb))(found)
        made = get_command(app)
    assert isinstance(made, TyperCommand | TyperGroup)
    made.name = verb.name
    return made


def _epilog(verb: Verb) -> str | None:
    if not verb.examples:
        return None
    # \b: as it stands, not wrapped.
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in verb.examples)


class LazyVerb(TyperCommand):
    """Stands for a verb until it is run, or asked what options it has."""

    def __init__(self, verb: Verb) -> None:
        super().__init__(name=verb.name, help=verb.says, short_help=verb.says)
        self.verb = verb
        self._command: TyperCommand | TyperGroup | None = None

    def command(self) -> TyperCommand | TyperGroup:
        """The real one."""
        if self._command is None:
            self._command = load(self.verb)
        return self._command

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """Of the real command. Raises UsageError for a configuration file that cannot be used."""
        from collm.cli.config_apply import name_variables, verb_defaults

        command = self.command()
        root = parent.find_root().params if parent is not None else {}
        if not root.get("no_config"):
            name_variables(command, self.verb.name)
            try:
                extra["default_map"] = verb_defaults(root.get("config"), self.verb, command)
            except UsageError:
                # Whoever asks for help, or whose shell completes, did not ask for this.
                if not extra.get("resilient_parsing") and "--help" not in args:
                    raise
        return command.make_context(info_name, args, parent=parent, **extra)


class VerbGroup(TyperGroup):
    """`collm` itself."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        named = {verb.name: LazyVerb(verb) for verb in all_verbs()}
        self.commands = {**named, **self.commands}

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The verbs, by what somebody wants."""
        told = set()
        width = max(map(len, self.commands))
        for title, verbs in GROUPS:
            with formatter.section(title):
                formatter.write_dl([(f"{verb.name:<{width}}", verb.says) for verb in verbs])
            told |= {verb.name for verb in verbs}
        others = {name: one for name, one in self.commands.items() if name not in told}
        if others:
            with formatter.section("More"):
                formatter.write_dl(
                    [
                        (f"{name:<{width}}", one.get_short_help_str(60))
                        for name, one in others.items()
                    ]
                )
