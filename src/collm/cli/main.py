"""`collm`: the verbs gathered, and errors turned into one line and exit code 2."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from collm import __version__
from collm.cli.lazy import VerbGroup
from collm.errors import CollmError

app = typer.Typer(
    name="collm",
    cls=VerbGroup,
    help="Share a language model between a small device and the cloud, token by token.",
    epilog="\b\n"
    "Begin with:\n"
    "  collm build smollm2 my-model\n"
    "  collm chat my-model --cloud spawn\n"
    "\n"
    "collm VERB --help says what a verb takes; collm config init writes a file to keep it in.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
    config: Path | None = typer.Option(
        None,
        envvar="COLLM_CONFIG",
        metavar="FILE",
        help="Take options from this file alone; default: collm.toml here, the user's, the "
        "machine's (collm config path).",
    ),
    no_config: bool = typer.Option(
        False, "--no-config", help="Take options from no file and no COLLM_VERB_OPTION variable."
    ),
) -> None:
    if version:
        typer.echo(f"collm {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point of the console script."""
    try:
        code = app(standalone_mode=False)
    except CollmError as error:
        _fail(f"error: {error}", 2)
    except typer.Abort:
        _fail("interrupted", 130)
    except typer.TyperException as error:
        _fail_usage(error)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output left; Python would complain at exit
        sys.exit(0)
    except OSError as error:
        _fail(f"error: {error.filename or 'file'}: {error.strerror or error}", 2)
    sys.exit(code if isinstance(code, int) else 0)


def _fail_usage(error: typer.TyperException) -> None:
    """A mistake in the command line itself; `collm` alone shows the help."""
    said = error.format_message()
    if "Usage:" in said:
        print(said)
        sys.exit(0)
    _fail(f"error: {said.rstrip('.')} (see --help)", 2)


def _fail(line: str, code: int) -> None:
    print(line, file=sys.stderr)
    sys.exit(code)
