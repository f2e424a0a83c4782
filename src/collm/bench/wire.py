"""What each wire format costs and changes: bytes, the full model's choices, drafts that stand.

The same prompts are answered in mode `verified` with each format, by an edge and a cloud in this
process, so that all bytes are those of real frames. How often the full model's choice stays the
same is measured on the text that it writes itself: its hidden states at the cut are cast as the
format casts them, and the layers above run on.

Not covered: time (no link here is slow); `collm bench table` and `collm bench adapt` measure that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from collm.bench.machine import this_machine
from collm.bench.stats import Share
from collm.config import Generation
from collm.limits import DEFAULT_LIMITS
from collm.link.memory import MemoryCloud
from collm.model.artifact import Artifact
from collm.runtime.stage import Stage
from collm.session.cloud import CloudService
from collm.session.edge import Edge
from collm.wire.codec import WIRE_FORMATS, cast_rows, row_bytes

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class WireOptions:
    """What is run."""

    placements: tuple[int, ...]
    tokens: int
    threshold: float
    draft: int
    threads: int


@dataclass(frozen=True, kw_only=True)
class WireFigures:
    """One format at one cut. Bytes are those of frames, Hello and prompt included."""

    placement: int
    wire: str
    row_bytes: int
    bytes_up: float
    """A token of the answer."""
    bytes_down: float
    agreement: float
    """Of the full model's likeliest token with and without the cast."""
    margin: float
    """Half the 95 % interval of that."""
    accepted: float
    """Drafted tokens that stood, a round."""
    rounds: float
    """A token of the answer."""
    identical: int
    """Answers that are the full model's, token by token."""
    answers: int


@dataclass(frozen=True, kw_only=True)
class WireReport:
    """All figures, and where they come from."""

    options: WireOptions
    figures: tuple[WireFigures, ...]
    machine: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        return asdict(self)


def run_wire(
    artifact: Artifact, prompts: Sequence[list[int]], options: WireOptions, progress: Progress
) -> WireReport:
    """Answer every prompt with every format at every placement."""
    layers = artifact.architecture.layers
    whole = Stage(artifact, range(layers), threads=options.threads)
    made = Generation(
        max_tokens=options.tokens,
        threshold=options.threshold,
        draft=options.draft,
        ignore_eos=True,
    )
    texts = [_own_text(whole, ids, options.tokens) for ids in prompts]
    figures: list[WireFigures] = []
    total = len(options.placements) * len(WIRE_FORMATS)
    with MemoryCloud(CloudService(whole, DEFAULT_LIMITS)) as cloud:
        for placement in options.placements:
            lower = Stage(artifact, range(placement), threads=options.threads)
            for wire in WIRE_FORMATS:
                progress(f"{wire} at {placement}", len(figures), total)
                edge = Edge(
                    artifact,
                    mode="verified",
                    placement=placement,
                    threads=options.threads,
                    connect=cloud.connect,
                    wire=wire,
                )
                accounts = [edge.answer(ids, made).finish() for ids in prompts]
                tokens = sum(len(one.tokens) for one in accounts)
                rounds = sum(one.rounds for one in accounts)
                agreed = _agreed(lower, whole, prompts, texts, wire)
                same = [one.token_ids == text for one, text in zip(accounts, texts, strict=True)]
                figures.append(
                    WireFigures(
                        placement=placement,
                        wire=wire,
                        row_bytes=row_bytes(wire, artifact.architecture.hidden_size),
                        bytes_up=sum(one.bytes_up for one in accounts) / tokens,
                        bytes_down=sum(one.bytes_down for one in accounts) / tokens,
                        agreement=agreed.value,
                        margin=agreed.margin,
                        accepted=(tokens - rounds) / rounds,
                        rounds=rounds / tokens,
                        identical=sum(same),
                        answers=len(same),
                    )
                )
    progress("done", total, total)
    return WireReport(options=options, figures=tuple(figures), machine=asdict(this_machine()))


def _own_text(whole: Stage, ids: list[int], tokens: int) -> list[int]:
    """The full model's answer, greedily."""
    session, made = whole.open(), list[int]()
    session.append_ids(ids)
    while len(made) < tokens:
        made.append(int(session.logits(session.position - 1)[-1].argmax()))
        session.append_ids(made[-1:])
    session.close()
    return made


def _agreed(
    lower: Stage,
    whole: Stage,
    prompts: Sequence[list[int]],
    texts: Sequence[list[int]],
    wire: str,
) -> Share:
    """On its own texts, teacher-forced."""
    hits = total = 0
    cut = lower.layers.stop
    for ids, text in zip(prompts, texts, strict=True):
        below = lower.open()
        below.append_ids([*ids, *text])
        rows = below.hidden_at(cut, 0)
        above = whole.open(cut)
        above.append_hidden(rows if wire == "ids" else cast_rows(wire, rows))
        chosen = above.logits(len(ids) - 1).argmax(axis=1)[:-1]
        hits += int((chosen == np.array(text)).sum())
        total += len(text)
        below.close()
        above.close()
    return Share(hits=hits, total=total)


def markdown(report: dict[str, Any]) -> str:
    """The table of docs/transmission.md, from `WireReport.to_json`."""
    names: tuple[str, ...] = (
        "cut",
        "format",
        "bytes a row",
        "up, a token",
        "down, a token",
        "same choice",
    )
    names += ("accepted a round", "texts identical")
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for one in report["figures"]:
        same = "exactly" if one["wire"] in ("ids", "f32") and one["agreement"] == 1 else (
            f"{100 * one['agreement']:.1f} ± {100 * one['margin']:.1f} %"
        )  # fmt: skip
        lines.append(
            f"| {one['placement']} | `{one['wire']}` | {one['row_bytes']:,} | "
            f"{one['bytes_up']:,.1f} | {one['bytes_down']:,.1f} | {same} | "
            f"{one['accepted']:.2f} | {one['identical']} of {one['answers']} |"
        )
    return "\n".join(lines) + "\n"
