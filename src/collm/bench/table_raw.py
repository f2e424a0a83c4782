"""table.json: what a run of `collm bench table` measured, and on what."""

from __future__ import annotations

import datetime
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from collm.bench.machine import this_machine
from collm.bench.stats import summary
from collm.bench.table import Table
from collm.bench.table_answers import TableAnswer
from collm.link.shapes import LinkShape
from collm.model.artifact import Artifact


def to_json(
    artifact: Artifact,
    table: Table,
    answers: Sequence[TableAnswer],
    *,
    command: str,
    options: Mapping[str, Any],
    shapes: Sequence[LinkShape],
    measured: Mapping[str, Any],
    load: tuple[float, float],
) -> dict[str, Any]:
    """Everything that the report is made of. measured: calibrations by a link's name."""
    probe = summary(table.probes) if table.probes else None
    return {
        "format": "collm-table",
        "version": 1,
        "machine": asdict(this_machine()),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "artifact": {
            "model": artifact.manifest.name,
            "weights": artifact.manifest.weights,
            "layers": artifact.architecture.layers,
            "fingerprint": artifact.fingerprint,
        },
        "command": command,
        "options": dict(options),
        "noise": {
            "load_before": load[0],
            "load_after": load[1],
            "probe_median_seconds": probe.median if probe else None,
            "probe_variation": probe.variation if probe else None,
        },
        "links": [
            {
                "name": shape.name,
                "round_trip_seconds": shape.round_trip_seconds,
                "jitter_seconds": shape.jitter_seconds,
                "bits_per_second": shape.bits_per_second,
                "measured": measured.get(shape.name),
            }
            for shape in shapes
        ],
        "contenders": [
            {
                "name": one.name,
                "kind": one.kind,
                "note": one.note,
                "placement": table.answerers[one.name].placement,
                "cloud_first_layer": table.answerers[one.name].cloud_first_layer,
            }
            for one in table.contenders
        ],
        "answers": [answer.to_json() for answer in answers],
    }


def commit() -> str:
    """Of the source that runs, with a + where it was changed; empty outside a repository."""
    git = shutil.which("git")
    if git is None:
        return ""
    here = Path(__file__).parent
    words = [git, "-C", str(here), "describe", "--always", "--exclude=*", "--dirty=+"]
    said = subprocess.run(words, capture_output=True, text=True, check=False)
    return said.stdout.strip()
