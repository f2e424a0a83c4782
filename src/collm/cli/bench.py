"""`collm bench`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from collm.cli.options import JsonOption, ThreadsOption, output_file, thread_count
from collm.model.artifact import Artifact
from collm.model.sources import resolve_source

bench = typer.Typer(help="Measure, against baselines in the same run.", no_args_is_help=True)


@bench.command("engine")
def engine_command(
    artifact: Annotated[Path, typer.Argument(help="The artifact folder.")],
    gguf: Annotated[
        str, typer.Option(help="The GGUF file that llama.cpp runs, or the word smollm2.")
    ] = "smollm2",
    threads: ThreadsOption = 1,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens decoded a measurement.")] = 128,
    prefill: Annotated[int, typer.Option(min=1, help="Tokens of the long prompt.")] = 512,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of every contestant.")] = 7,
    exit_cut: Annotated[
        int | None,
        typer.Option("--exit", help="The standalone exit; default: nearest to half the layers."),
    ] = None,
    agreement_tokens: Annotated[
        int, typer.Option(min=0, help="Tokens compared with the fp32 model; 0: none.")
    ] = 1000,
    as_json: JsonOption = False,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")] = None,
) -> None:
    """Compare decode, prefill and argmax agreement with llama.cpp's."""
    from collm.bench.engine import run_engine
    from collm.bench.engine_report import EngineOptions
    from collm.bench.engine_table import print_report

    output_file(out)
    options = EngineOptions(
        threads=thread_count(threads),
        tokens=tokens,
        prefill=prefill,
        rounds=rounds,
        exit=exit_cut,
        agreement_tokens=agreement_tokens,
    )
    opened = Artifact(artifact)
    with _progress() as progress:
        report = run_engine(opened, resolve_source(gguf), options, progress)
    text = json.dumps(report.to_json(), indent=1)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
    if as_json:
        typer.echo(text)
    else:
        # Wide enough for the tables also where the output is no terminal.
        console = Console()
        print_report(console if console.is_terminal else Console(width=120), report)


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error that draws only when told: a timer would disturb the figures."""
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as bar:
        task = bar.add_task("starting", total=None)

        def progress(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total, refresh=True)

        yield progress
