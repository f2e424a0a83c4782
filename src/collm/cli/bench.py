"""`collm bench`."""

from __future__ import annotations

import typer

bench = typer.Typer(help="Measure, against baselines in the same run.", no_args_is_help=True)
