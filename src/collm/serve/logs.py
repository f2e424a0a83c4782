"""Logs: a line for people, or a JSON object a line for machines. Users' words are in neither."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from collm.errors import UsageError

FORMATS = ("text", "json")
_FIELDS = ("session", "identity", "code")
"""What `extra` may add to a line."""


class JsonLines(logging.Formatter):
    """One object a line: time (UTC), level, logger, message, and the fields of a session."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in _FIELDS:
            if hasattr(record, name):
                line[name] = getattr(record, name)
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


@contextmanager
def logs(form: str) -> Iterator[None]:
    """Log everything of ours from INFO on to standard error meanwhile. Raises UsageError."""
    if form not in FORMATS:
        raise UsageError(f"--log {form}: expected one of {', '.join(FORMATS)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonLines()
        if form == "json"
        else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    ours = logging.getLogger("collm")
    before = ours.level, ours.propagate
    ours.setLevel(logging.INFO)
    ours.propagate = False
    ours.addHandler(handler)
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.setLevel(before[0])
        ours.propagate = before[1]
