"""`collm bench compress`: draft paths side by side, each in fewer bits, channels or layers.

::

    a copy of the artifact (linked files), so that the user's stays as it is
    for each cut, for each variant: choose, put in, score, tune its exit, score again
    what each takes in memory, in a process of its own
    time a drafted token: all variants in turns, round by round

Finished variants are kept in a file, and a run that was interrupted goes on after them. Not
covered: tuning the layers that stay.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from collm.errors import UsageError
from collm.model.artifact import Artifact
from collm.model.drafts import draft_bytes
from collm.runtime.draft_stage import DraftStage
from collm.tune.choosing import Wanted, choose
from collm.tune.compress import Judges, Tuner, make_draft
from collm.tune.corpus import Example
from collm.tune.draft_scores import decode_seconds, memory_bytes

Told = Callable[[str, int, int], None]

BASELINE = "int8"
_STATE_BYTES = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A way to make a path smaller."""

    label: str
    short: str
    """Part of the path's name."""
    drop: int = 0
    ffn: float = 1.0
    loose: bool = False
    weights: str = ""

    @property
    def is_thinned(self) -> bool:
        """Whether something is missing, which an exit has to be tuned for."""
        return self.drop > 0 or self.ffn < 1

    def wanted(self, cut: int) -> Wanted:
        """It, for the layers below `cut`."""
        return Wanted(
            name=f"c{cut}-{self.short}",
            cut=cut,
            drop=self.drop,
            ffn=self.ffn,
            loose=self.loose,
            weights=self.weights,
        )


VARIANTS = (
    Variant(label="int8", short="int8", weights="int8"),
    Variant(label="as stored", short="stored"),
    Variant(label="mixed", short="mixed", weights="mixed"),
    Variant(label="FFN 88 %, loose", short="ffn88-loose", ffn=0.875, loose=True),
    Variant(label="FFN 75 %, groups", short="ffn75", ffn=0.75),
    Variant(label="FFN 75 %, loose", short="ffn75-loose", ffn=0.75, loose=True),
    Variant(label="FFN 50 %, groups", short="ffn50", ffn=0.5),
    Variant(label="FFN 50 %, loose", short="ffn50-loose", ffn=0.5, loose=True),
    Variant(label="1 layer less", short="drop1", drop=1),
    Variant(label="2 layers less", short="drop2", drop=2),
    Variant(label="4 layers less", short="drop4", drop=4),
    Variant(label="6 layers less", short="drop6", drop=6),
    Variant(label="both: 2 layers, FFN 75 %", short="drop2-ffn75", drop=2, ffn=0.75, loose=True),
)
"""The first one is what the others are compared with."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant at one cut. Shares from 0 to 1; `None`: its exit was not tuned."""

    cut: int
    name: str
    label: str
    layers: tuple[int, ...]
    channels: tuple[int, ...]
    weights: str
    file_bytes: int
    agreement_untuned: float
    accepted_untuned: float
    agreement: float | None
    accepted: float | None
    tuning_seconds: float


@dataclass(frozen=True, kw_only=True)
class VariantsConfig:
    """What is to be compared, on what."""

    cuts: tuple[int, ...]
    variants: tuple[Variant, ...]
    seen: tuple[Example, ...]
    """To choose layers and channels by."""
    work: Path
    threads: int
    rounds: int
    budget_seconds: float
    """Of tuning, in all; a variant is not begun after it. 0: none is tuned."""
    settings: Mapping[str, Any]
    """What else decides the figures; kept with them."""


def compare(
    artifact: Artifact,
    config: VariantsConfig,
    judges: Judges,
    tuner: Tuner | None,
    told: Told = lambda what, done, total: None,
    said: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """The raw figures, JSON-ready. Raises UsageError and its kin."""
    for cut in config.cuts:  # what cannot be made is refused before any work
        for variant in config.variants:
            variant.wanted(cut).check(artifact)
    copy = linked_copy(artifact, config.work / "artifact")
    rows = _rows(artifact, copy.folder, config, judges, tuner, told, said)
    opened = Artifact(copy.folder)
    memory = {}
    for number, row in enumerate(rows):
        told("memory", number, len(rows))
        memory[row.name] = memory_bytes(opened, row.name)
    stages = {row.name: DraftStage(opened, row.name, threads=config.threads) for row in rows}
    times = decode_seconds(stages, config.rounds, told)
    return {
        "format": "collm-compress",
        "version": 1,
        "model": artifact.manifest.name,
        "stored": artifact.manifest.weights,
        "fingerprint": artifact.fingerprint,
        "threads": config.threads,
        "settings": dict(config.settings),
        "held_out_rows": sum(len(choices) for choices in judges.choices),
        "variants": [
            {**asdict(row), "memory_bytes": memory[row.name], "seconds": times[row.name]}
            for row in rows
        ],
    }


def variants_named(names: Sequence[str] | None) -> tuple[Variant, ...]:
    """Those of the names, and the baseline; None: all. Raises UsageError for unknown names."""
    known = {variant.short: variant for variant in VARIANTS}
    for name in names or ():
        if name not in known:
            raise UsageError(f"variant {name[:60]!r}: expected some of {', '.join(known)}")
    return tuple(v for v in VARIANTS if names is None or v.short in (*names, VARIANTS[0].short))


def linked_copy(artifact: Artifact, folder: Path) -> Artifact:
    """The artifact in another folder, its files linked where that works; an earlier copy stays."""
    if (folder / "manifest.json").is_file():
        found = Artifact(folder)
        if found.fingerprint == artifact.fingerprint and (
            found.manifest.exits == artifact.manifest.exits
        ):
            return found
        shutil.rmtree(folder)
    for name in artifact.manifest.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(artifact.folder / name, folder / name)
        except FileExistsError:
            continue
        except OSError:
            shutil.copy2(artifact.folder / name, folder / name)
    artifact.manifest.write(folder)
    return Artifact(folder)


def _rows(
    artifact: Artifact,
    copy: Path,
    config: VariantsConfig,
    judges: Judges,
    tuner: Tuner | None,
    told: Told,
    said: Callable[[str], None],
) -> list[Row]:
    state = config.work / "variants.json"
    identity = json.dumps([artifact.fingerprint, dict(config.settings), len(judges.choices)])
    known = _read_state(state, identity)
    total, rows = len(config.cuts) * len(config.variants), list[Row]()
    spent = sum(row.tuning_seconds for row in known.values())
    # Those that need tuning come first: the budget may not be enough for all.
    in_turn = sorted(config.variants, key=lambda variant: not variant.is_thinned)
    for cut in config.cuts:
        for variant in in_turn:
            wanted = variant.wanted(cut)
            has_it = Artifact(copy).manifest.draft_named(wanted.name) is not None
            row = known.get(wanted.name) if has_it else None
            may_tune = tuner is not None and spent < config.budget_seconds
            if row is None or (row.agreement is None and may_tune):
                told(f"cut {cut}: {variant.label}", len(rows), total)
                plan = choose(
                    artifact, wanted, list(config.seen), config.work, threads=config.threads
                )
                started = time.perf_counter()
                made = make_draft(copy, plan, judges, tuner if may_tune else None)
                seconds = time.perf_counter() - started if may_tune else 0.0
                spent += seconds
                row = Row(
                    cut=cut,
                    name=wanted.name,
                    label=variant.label,
                    layers=made.entry.layers,
                    channels=made.entry.channels,
                    weights=made.entry.weights,
                    file_bytes=draft_bytes(made.manifest, made.entry),
                    agreement_untuned=made.untuned.agreement,
                    accepted_untuned=made.untuned.accepted,
                    agreement=made.tuned.agreement if made.tuned else None,
                    accepted=made.tuned.accepted if made.tuned else None,
                    tuning_seconds=seconds,
                )
                known[row.name] = row
                _write_state(state, identity, known)
                tuned = "" if row.agreement is None else f", tuned {row.agreement:.1%}"
                said(f"{row.name}: agreement {row.agreement_untuned:.1%}{tuned}")
            rows.append(row)
    order = [variant.wanted(cut).name for cut in config.cuts for variant in config.variants]
    return sorted(rows, key=lambda row: order.index(row.name))


def _read_state(path: Path, identity: str) -> dict[str, Row]:
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > _STATE_BYTES:
            raise ValueError("too large")
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["identity"] != identity:
            return {}
        rows = [
            Row(**{**r, "layers": tuple(r["layers"]), "channels": tuple(r["channels"])})
            for r in data["rows"]
        ]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path}: no results of collm bench compress ({error}); delete it"
        ) from None
    return {row.name: row for row in rows}


def _write_state(path: Path, identity: str, rows: Mapping[str, Row]) -> None:
    scratch = path.with_suffix(f".{os.getpid()}")
    data = {"identity": identity, "rows": [asdict(row) for row in rows.values()]}
    scratch.write_text(json.dumps(data), encoding="utf-8")
    os.replace(scratch, path)
