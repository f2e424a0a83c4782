"""The table of `collm bench compress`, made from its raw figures: for the terminal and for a page.

The same raw figures give the same text, so a page with the table in it can be made anew and a test
can say whether it is what was measured.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from collm.errors import UsageError
from collm.tune.variants import BASELINE

LOSS = 0.02
"""Of exit agreement that a variant which counts may lose against the baseline."""
BEGIN, END = "<!-- compress: begin -->", "<!-- compress: end -->"
_MAX_BYTES = 16 * 2**20
COLUMNS = (
    "variant",
    "layers × FFN channels",
    "agreement %",
    "tuned %",
    "accepted of 8",
    "ms a token",
    "speed",
    "memory MB",
    "file MB",
    "points",
    "smaller, faster",
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One variant beside the int8 path of its cut."""

    cut: int
    label: str
    cells: tuple[str, ...]
    is_smaller: bool
    is_faster: bool
    loss: float
    """Of agreement, in shares: how much less than the baseline's; below 0 it is more."""

    @property
    def counts(self) -> bool:
        """Smaller and faster than int8 at a loss of no more than `LOSS`."""
        return self.is_smaller and self.is_faster and self.loss <= LOSS


def lines(raw: Mapping[str, Any]) -> list[Line]:
    """Every variant, in the order measured. Raises KeyError, TypeError or ValueError."""
    base = {v["cut"]: v for v in raw["variants"] if v["label"] == BASELINE}
    return [_line(v, base.get(v["cut"])) for v in raw["variants"]]


def _line(v: Mapping[str, Any], base: Mapping[str, Any] | None) -> Line:
    best, is_base = _best(v), v is base
    seconds = np.asarray(v["seconds"], dtype=np.float64)
    speed, is_faster, is_smaller, loss = "", False, False, 0.0
    if base is not None:
        ratios = np.asarray(base["seconds"], dtype=np.float64) / seconds
        low, middle, high = (float(q) for q in np.percentile(ratios, (25, 50, 75)))
        speed = "1" if is_base else f"{middle:.2f} ({low:.2f} to {high:.2f})"
        is_faster = low > 1
        is_smaller = (
            v["memory_bytes"] < base["memory_bytes"] and v["file_bytes"] < base["file_bytes"]
        )
        loss = _best(base) - best
    counts = not is_base and is_smaller and is_faster and loss <= LOSS
    channels = " to ".join(str(c) for c in sorted({min(v["channels"]), max(v["channels"])}))
    accepted = max(v["accepted_untuned"], v["accepted"] or 0.0)
    return Line(
        cut=v["cut"],
        label=v["label"],
        is_smaller=is_smaller,
        is_faster=is_faster and not is_base,
        loss=loss,
        cells=(
            v["label"] + (f" ({v['weights']})" if v["label"] == "as stored" else ""),
            f"{len(v['layers'])} × {channels}",
            f"{100 * v['agreement_untuned']:.1f}",
            "" if v["agreement"] is None else f"{100 * v['agreement']:.1f}",
            f"{accepted:.2f}",
            f"{1e3 * statistics.median(v['seconds']):.2f}",
            speed,
            f"{v['memory_bytes'] / 1e6:.0f}",
            f"{v['file_bytes'] / 1e6:.1f}",
            "int8" if is_base else f"{-100 * loss:+.1f}",
            "yes" if counts else "",
        ),
    )


def _best(v: Mapping[str, Any]) -> float:
    return float(max(v["agreement_untuned"], v["agreement"] or 0.0))


def answer(raw: Mapping[str, Any]) -> str:
    """Whether any variant is smaller and faster than int8 without losing much, in words."""
    made = [line for line in lines(raw) if line.counts]
    points = f"{100 * LOSS:.0f} points of exit agreement"
    if not made:
        return f"No variant is both smaller and faster than int8 and loses at most {points}."
    found = ", ".join(f"{line.label} up to {line.cut}" for line in made)
    return f"Smaller and faster than int8 at a loss of at most {points}: {found}."


def markdown(raw: Mapping[str, Any]) -> str:
    """The tables as a page has them, a cut each, with what was measured and how."""
    said, parts = raw["settings"], list[str]()
    parts.append(
        f"{raw['model']}, {raw['threads']} thread(s), {raw['held_out_rows']:,} held-out tokens, "
        f"exits tuned on {said.get('tune_tokens', 0):,} tokens each; machine: "
        f"{said.get('machine', 'unknown')}, load average {raw.get('load_average', 0.0):.1f}."
    )
    for cut in dict.fromkeys(v["cut"] for v in raw["variants"]):
        rows = [line.cells for line in lines(raw) if line.cut == cut]
        parts.append(f"**Up to layer {cut}**\n\n{_table(rows)}")
    parts.append(
        "Agreement: share of tokens where the path's exit chooses what the full model chooses, "
        "with the cut's own exit and with one tuned for the path. Accepted: of drafts of 8. "
        "Speed: against the int8 path in the same rounds, with quartiles. Memory: what a process "
        "grows by. Points: the better of the two agreements less int8's."
    )
    parts.append(answer(raw))
    return "\n\n".join(parts)


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = f"| {' | '.join(COLUMNS)} |\n|---|{'---:|' * (len(COLUMNS) - 2)}---|\n"
    return head + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def update_page(page: Path, raw: Mapping[str, Any]) -> None:
    """Put the tables between the marks `BEGIN` and `END` of a page. Raises UsageError."""
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{page}: cannot be read ({error}); expected a Markdown page") from None
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"{page}: lacks the lines {BEGIN} and {END}, between which tables go")
    page.write_text(f"{before}{BEGIN}\n\n{markdown(raw)}\n\n{END}{after}", encoding="utf-8")


def read_raw(path: Path) -> dict[str, Any]:
    """Raw figures from a file. Raises UsageError where it holds something else."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UsageError(f"{path}: over {_MAX_BYTES:,} bytes; expected raw figures")
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or found.get("format") != "collm-compress":
            raise ValueError("of another kind")
        lines(found)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; expected raw figures") from None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{path}: no figures of collm bench compress ({error}); give its --out"
        ) from None
    return found
