"""The one progress bar of this room: count, elapsed and remaining time."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def progress_bar() -> Progress:
    """A bar on standard error with a changing description; to be entered as a context.

    Where that is no terminal nothing is drawn: a log wants lines, not bars.
    """
    console = Console(stderr=True)
    console.quiet = not console.is_terminal  # rich would end with an empty line
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
