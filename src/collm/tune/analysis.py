"""What `collm analyze` finds out about an artifact's layers, as figures and as JSON.

Not covered: how they are measured (`collm.tune.analyze`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from collm.errors import UsageError
from collm.model.artifact import Artifact

FORMAT, VERSION = "collm-analysis", 1
MAX_BYTES = 64 * 2**20
GROUP = 32
"""Neighbouring channels that share a quantisation scale."""


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """One layer: what it costs, and what leaving it out costs. Shares from 0 to 1."""

    layer: int
    decode_seconds: float
    """Of one call with two rows."""
    weight_bytes: int
    kv_bytes: int
    """A position."""
    change: float
    """1 − cosine between its input and its output, mean over positions (block influence, Men et
    al., arXiv 2403.03853)."""
    full_agreement: float
    """Share of tokens that the full model chooses without this layer as with it."""
    full_divergence: float
    """KL(full model || full model without this layer) in nats, over the 32 likeliest tokens."""
    exit_agreement: Mapping[int, float]
    """Agreement of each exit above this layer, untuned, without it; by cut."""
    channels: tuple[float, ...]
    """Importance of each feed-forward channel, with a mean of 1 unless all are 0."""

    def kept_importance(self, share: float) -> float:
        """How much of the channels' importance the most important `share` of groups hold."""
        groups = np.add.reduceat(self.channels, np.arange(0, len(self.channels), GROUP))
        count = max(1, round(share * len(groups)))
        total = float(groups.sum())
        return float(np.sort(groups)[::-1][:count].sum()) / total if total else 1.0


@dataclass(frozen=True, kw_only=True)
class Subset:
    """The best path that was found of so many layers below the analysis's cut."""

    layers: tuple[int, ...]
    agreement: float
    """Of the cut's exit with the full model; the exit is not tuned for the path."""
    log_likelihood: float
    """That the exit gives the full model's choices it knows, mean, in nats: what was maximised."""
    decode_seconds: float
    """Of the layers, with two rows."""
    weight_bytes: int


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """All figures for one artifact and one text."""

    model: str
    fingerprint: str
    weights: str
    text: str
    """Where the text came from."""
    rows: int
    """Tokens that agreement was counted over."""
    cut: int
    """Where the paths end."""
    exits: Mapping[int, float]
    """Agreement of every exit with all layers, by cut."""
    layers: tuple[LayerReport, ...]
    subsets: tuple[Subset, ...]
    """From all layers below `cut` down to one; greedy: each but one layer less than the last."""

    def ranking(self) -> list[LayerReport]:
        """The layers by what leaving them out costs the full model, the dearest first."""
        return sorted(self.layers, key=lambda one: (-one.full_divergence, one.layer))

    def subset_of(self, count: int) -> Subset:
        """The best of so many layers. Raises UsageError where there is none."""
        for subset in self.subsets:
            if len(subset.layers) == count:
                return subset
        raise UsageError(
            f"a path of {count} layers: expected 1 to {len(self.subsets)}, as many as lie below "
            f"the cut {self.cut}"
        )

    def within(self, weight_bytes: int) -> Subset:
        """The best subset whose layers fit. Raises UsageError where not even one layer does."""
        fitting = [one for one in self.subsets if one.weight_bytes <= weight_bytes]
        if not fitting:
            least = min(one.weight_bytes for one in self.subsets)
            raise UsageError(
                f"{weight_bytes:,} bytes for layers: one alone takes {least:,}; give more memory"
            )
        return max(fitting, key=lambda one: one.log_likelihood)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; `read_analysis` reads it back."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}


def analysis_from(data: Mapping[str, Any]) -> Analysis:
    """What `to_json` made. Raises KeyError, TypeError or ValueError for anything else."""
    fields = {k: v for k, v in data.items() if k not in ("format", "version")}
    fields["exits"] = {int(cut): float(share) for cut, share in data["exits"].items()}
    fields["layers"] = tuple(layer_from(record) for record in data["layers"])
    fields["subsets"] = tuple(subset_from(record) for record in data["subsets"])
    made = Analysis(**fields)
    if not made.layers or not made.subsets:
        raise ValueError("no layers")
    return made


def layer_from(record: Mapping[str, Any]) -> LayerReport:
    """A layer's record; raises as `analysis_from`."""
    shares = {int(cut): float(share) for cut, share in record["exit_agreement"].items()}
    channels = tuple(float(value) for value in record["channels"])
    return LayerReport(**{**record, "exit_agreement": shares, "channels": channels})


def subset_from(record: Mapping[str, Any]) -> Subset:
    """A subset's record; raises as `analysis_from`."""
    return Subset(**{**record, "layers": tuple(int(layer) for layer in record["layers"])})


def read_analysis(path: Path, artifact: Artifact) -> Analysis:
    """Read what `collm analyze --out` wrote of this artifact. Raises UsageError."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path}: over {MAX_BYTES:,} bytes; expected an analysis")
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.get("format") != FORMAT or data.get("version") != VERSION:
            raise ValueError("of another kind")
        made = analysis_from(data)
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}; expected what collm analyze --out wrote"
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{path}: no sound analysis ({error}); expected what collm analyze --out wrote"
        ) from None
    if made.fingerprint != artifact.fingerprint:
        raise UsageError(
            f"{path}: an analysis of another artifact; make one with: collm analyze "
            f"{artifact.folder}"
        )
    return made


def important_channels(importance: Sequence[float], share: float, *, loose: bool) -> list[int]:
    """About `share` of the channels, ascending: the most important ones, a multiple of `GROUP`.

    loose: any channels, and not only whole groups of neighbours. Raises UsageError where there is
    no multiple of `GROUP`.
    """
    values = np.asarray(importance)
    if len(values) % GROUP:
        raise UsageError(f"{len(values)} channels: no multiple of {GROUP}, they cannot be pruned")
    groups = max(1, round(share * len(values) / GROUP))
    if loose:
        return sorted(np.argsort(-values, kind="stable")[: groups * GROUP].tolist())
    sums = values.reshape(-1, GROUP).sum(1)
    best = np.sort(np.argsort(-sums, kind="stable")[:groups])
    kept: list[int] = (best[:, None] * GROUP + np.arange(GROUP)).reshape(-1).tolist()
    return kept
