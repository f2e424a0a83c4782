"""`collm`: the verbs gathered, and errors turned into one line and exit code 2."""

from __future__ import annotations

import sys

import typer

from collm import __version__
from collm.cli.analyze import analyze_command
from collm.cli.bench import bench
from collm.cli.build import add_exit_command, build_command
from collm.cli.calibrate import calibrate_command
from collm.cli.cloud import cloud_command
from collm.cli.compress import compress_command
from collm.cli.demo import demo_command
from collm.cli.eval import evaluation
from collm.cli.eval_policy import eval_policy_command
from collm.cli.info import info_command
from collm.cli.link import link_command
from collm.cli.plan import plan_command
from collm.cli.profile import probe_command, profile_command
from collm.cli.pull import pull_command
from collm.cli.run import run_command
from collm.cli.serve import serve_command
from collm.cli.synthesize import synthesize_command
from collm.cli.trace import trace_command
from collm.cli.tune import tune_command
from collm.cli.tune_policy import tune_policy_command
from collm.errors import CollmError

app = typer.Typer(
    name="collm",
    help="Share a language model between a small device and the cloud, token by token.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("build")(build_command)
app.command("add-exit")(add_exit_command)
app.command("info")(info_command)
app.command("pull")(pull_command)
app.command("run")(run_command)
app.command("cloud")(cloud_command)
app.command("serve")(serve_command)
app.command("link")(link_command)
app.command("profile")(profile_command)
app.command("probe")(probe_command)
app.command("plan")(plan_command)
app.command("demo")(demo_command)
app.command("synthesize")(synthesize_command)
app.command("analyze")(analyze_command)
app.command("compress")(compress_command)
app.command("tune")(tune_command)
app.command("calibrate")(calibrate_command)
app.command("trace")(trace_command)
app.command("tune-policy")(tune_policy_command)
evaluation.command("policy")(eval_policy_command)
app.add_typer(evaluation, name="eval")
app.add_typer(bench, name="bench")


@app.callback(invoke_without_command=True)
def _root(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
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
