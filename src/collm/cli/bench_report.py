"""`collm bench report`: the report of `collm bench table` made again from its raw figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from collm.errors import UsageError

_MOST_BYTES = 256 * 2**20


def report_command(
    raw: Annotated[
        list[Path], typer.Argument(help="table.json of one run, or of several that go together.")
    ],
    out: Annotated[Path, typer.Option(help="A folder for report.md, report.html and the plots.")],
    capacity: Annotated[
        Path | None, typer.Option(help="Also show this --out of collm bench capacity.")
    ] = None,
) -> None:
    """Make the report again from raw figures, without measuring anything."""
    from collm.bench.table_report import write_report

    runs = [_read(path, "collm-table") for path in raw]
    held = None if capacity is None else _read(capacity, "collm-capacity")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: it is a file; expected a folder")
    out.mkdir(parents=True, exist_ok=True)
    try:
        written = write_report(runs, out, held)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise UsageError(f"{raw[0]}: damaged figures ({error!r}); expected table.json") from None
    for path in written:
        typer.echo(f"wrote {path}")


def _read(path: Path, kind: str) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UsageError(f"{path}: over {_MOST_BYTES:,} bytes; expected raw figures")
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}; give the file of a run") from None
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("format") != kind:
        raise UsageError(f"{path}: not a {kind} file; give what the run wrote as JSON")
    return found
