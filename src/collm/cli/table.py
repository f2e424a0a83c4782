"""Tables and figures in a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def wide_console(width: int) -> Console:
    """The terminal, or one of `width` characters where the output goes to a file."""
    console = Console()
    return console if console.is_terminal else Console(width=width)


def plain_table(title: str | None, columns: list[str]) -> Table:
    """A table whose first column is words and whose others are figures."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table


def kilobytes(count: int) -> str:
    """Bytes for people, 1 kB = 1000 B."""
    return f"{count / 1000:.1f} kB"


def megabytes(count: int) -> str:
    """Bytes for people, 1 MB = 1,000,000 B."""
    return f"{count / 1e6:.0f} MB"
