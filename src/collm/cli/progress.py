"""The bar of long work: what is going on, how far it is, how long it will take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


@contextmanager
def counting_bar(
    begin: str, *, width: int = 28, unit: str = "", timed: bool = True
) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error, told by calls of (what, done, total).

    begin: shown until then; width: of what is shown, in characters; unit: of what is counted.
    timed: redraw by a timer too; without, only when told, as a timer would disturb measurements.
    """
    columns = (
        TextColumn(f"{{task.description:<{width}.{width}}}"),
        BarColumn(),
        TextColumn(f"{{task.completed:,}}/{{task.total:,}}{unit and ' '}{unit}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    # In a file the bar would leave nothing but an empty line.
    disable = not console.is_terminal
    with Progress(
        *columns, console=console, transient=True, auto_refresh=timed, disable=disable
    ) as bar:
        task = bar.add_task(begin, total=1)

        def progress(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total, refresh=not timed)

        yield progress


@contextmanager
def byte_bar(what: str) -> Iterator[tuple[Callable[[int, int], None], Callable[[str], None]]]:
    """A bar on standard error for bytes, told by calls of (done, total); and for lines above it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True, highlight=False, markup=False)
    disable = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=disable) as bar:
        task = bar.add_task(what, total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        def line(text: str) -> None:
            console.print(text, soft_wrap=True)

        yield progress, line
