"""A traces file: what exits and full model said, row by row, for training and judging policies.

A safetensors file. A row is a position whose next token is predicted; rows of one text follow one
another. `Traces` documents the arrays. The file names the artifact's fingerprint, and the digest
of the exits, which the fingerprint leaves out: traces are good for these exits only.

Not covered: traces that do not fit into memory (a row with four exits takes 170 bytes).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from collm.errors import UsageError
from collm.model.artifact import Artifact
from collm.model.files import write_tensors
from collm.policy.observation import Coherence, Observation, Reading

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

FORMAT, VERSION = "collm-traces", 1
COHERENCE = tuple(field.name for field in fields(Coherence))
"""Columns of `Traces.coherence`."""


@dataclass(frozen=True, kw_only=True)
class StepCosts:
    """What a step takes on the machine that traced, medians in seconds."""

    layers: tuple[float, ...]
    """All layers from the first on up to each exit."""
    exits: tuple[float, ...]
    """Each exit itself."""
    cloud: float
    """The layers from the first exit's cut on, with the full head, for one row; no link."""

    def edge_seconds(self, exits_asked: int) -> float:
        """Layers and exits up to and with the exit asked last."""
        if not exits_asked:
            return 0.0
        return self.layers[exits_asked - 1] + sum(self.exits[:exits_asked])


@dataclass(frozen=True, kw_only=True)
class Traces:
    """Rows R of texts T, exits E from shallow to deep."""

    fingerprint: str
    exits_digest: str
    cuts: tuple[int, ...]
    costs: StepCosts
    corpus: str
    """Path of the corpus, for reports."""
    part: str
    """`held-out` or `training` part of it."""
    rolled_tokens: int
    """Tokens that a roll-out went on for."""
    domains: tuple[str, ...]
    """Of every text, [T]."""
    starts: I64
    """Row where each text begins, and the number of rows: [T + 1]."""
    tokens: I32
    """Each exit's token, [R, E]."""
    confidences: F32
    runner_up_confidences: F32
    entropies: F32
    model_tokens: I32
    """The full model's, [R]."""
    model_logprobs: F32
    """Of `model_tokens` under the full model, [R]."""
    exit_logprobs: F32
    """Of each exit's token under the full model, [R, E]."""
    coherence: F32
    """Of the text before the row's token, [R, 8]; columns `COHERENCE`."""
    drops: F32
    """What a wrong token costs later, mean nats per token, [R, E]; 0 where it is right."""
    rolled: Bools
    """Whether the drop was rolled out, [R, E]; else it is estimated."""
    rejoined: Bools
    """Whether the rolled-out text went on with the same tokens, [R, E]."""

    def __len__(self) -> int:
        return len(self.model_tokens)

    @property
    def texts(self) -> int:
        """Number of texts."""
        return len(self.starts) - 1

    @property
    def right(self) -> Bools:
        """Whether the exit's token is the full model's, [R, E]."""
        right: Bools = self.tokens == self.model_tokens[:, None]
        return right

    @property
    def gaps(self) -> F32:
        """How much less likely the exit's token is than the likeliest, in nats, [R, E]."""
        gaps: F32 = np.maximum(self.model_logprobs[:, None] - self.exit_logprobs, 0.0)
        return gaps

    @property
    def text_of(self) -> I64:
        """Each row's text, [R]."""
        return np.repeat(np.arange(self.texts), np.diff(self.starts))

    def with_cuts(self, cuts: Sequence[int]) -> Traces:
        """The same rows with these exits only. Raises UsageError where one was not traced."""
        missing = [str(cut) for cut in cuts if cut not in self.cuts]
        if missing:
            raise UsageError(
                f"exit {missing[0]}: the traces have the exits {_listed(self.cuts)}; trace it "
                "with: collm trace --exits"
            )
        if tuple(cuts) == self.cuts:
            return self
        kept = [self.cuts.index(cut) for cut in cuts]
        costs = replace(
            self.costs,
            layers=tuple(self.costs.layers[i] for i in kept),
            exits=tuple(self.costs.exits[i] for i in kept),
        )
        columns = {name: getattr(self, name)[:, kept] for name in _BY_EXIT}
        return replace(self, cuts=tuple(cuts), costs=costs, **columns)

    def of_texts(self, texts: Sequence[int]) -> Traces:
        """These texts only, in this order."""
        spans = [slice(int(self.starts[t]), int(self.starts[t + 1])) for t in texts]
        rows = np.concatenate([np.arange(span.start, span.stop) for span in spans])
        lengths = [span.stop - span.start for span in spans]
        return replace(
            self,
            domains=tuple(self.domains[t] for t in texts),
            starts=np.cumsum([0, *lengths]).astype(np.int64),
            **{name: getattr(self, name)[rows] for name in (*_BY_EXIT, *_BY_ROW)},
        )

    def observation(self, row: int, exits_asked: int) -> Observation:
        """What a criterion would have seen after so many exits; costs as measured, no deadline."""
        readings = tuple(
            Reading(
                self.cuts[i],
                int(self.tokens[row, i]),
                float(self.confidences[row, i]),
                float(self.runner_up_confidences[row, i]),
                float(self.entropies[row, i]),
            )
            for i in range(exits_asked)
        )
        values = dict(zip(COHERENCE, self.coherence[row].tolist(), strict=True))
        counts = {name: int(values[name]) for name in ("tokens", "since_boundary")}
        more = exits_asked < len(self.cuts)
        step = self.costs.edge_seconds(exits_asked + 1) if more else float("inf")
        return Observation(
            readings,
            Coherence(**(values | counts)),
            next_exit_seconds=step - self.costs.edge_seconds(exits_asked) if more else step,
            cloud_seconds=self.costs.cloud,
        )


_BY_EXIT = (
    "tokens", "confidences", "runner_up_confidences", "entropies", "exit_logprobs", "drops",
    "rolled", "rejoined",
)  # fmt: skip
_BY_ROW = ("model_tokens", "model_logprobs", "coherence")
_TYPES = {"tokens": np.int32, "model_tokens": np.int32, "rolled": np.uint8, "rejoined": np.uint8}


def exits_digest(artifact: Artifact, cuts: Sequence[int]) -> str:
    """Digest of the exits at `cuts`: their files and temperatures, not their thresholds."""
    told = hashlib.sha256()
    files = artifact.manifest.files
    for entry in artifact.exits(tuple(cuts), artifact.architecture.layers):
        head = artifact.manifest.heads[entry.head]
        names = [entry.norm, head.graph, head.ids, entry.graph]
        names += [n.removesuffix(".onnx") + ".data" for n in (head.graph, entry.graph) if n]
        digests = [files[name].sha256 for name in names if name and name in files]
        told.update(repr((entry.cut, entry.temperature, digests)).encode())
    return told.hexdigest()


def write_traces(path: Path, traces: Traces) -> None:
    """Write a traces file. Raises UsageError where the disk does not take it."""
    arrays = {
        name: getattr(traces, name).astype(_TYPES.get(name, np.float32))
        for name in (*_BY_EXIT, *_BY_ROW)
    }
    about = {
        "fingerprint": traces.fingerprint,
        "exits_digest": traces.exits_digest,
        "cuts": list(traces.cuts),
        "costs": asdict(traces.costs),
        "corpus": traces.corpus,
        "part": traces.part,
        "rolled_tokens": traces.rolled_tokens,
        "domains": list(traces.domains),
    }
    tags = {"format": FORMAT, "version": str(VERSION), "about": json.dumps(about)}
    write_tensors(path, arrays | {"starts": traces.starts.astype(np.int64)}, tags)


def read_traces(path: Path, artifact: Artifact | None = None) -> Traces:
    """Read a traces file, made with `artifact` and its exits where that is given.

    Raises UsageError: another artifact's, damaged, or no traces at all.
    """
    try:
        path.stat()  # safetensors' own error says less
        with safe_open(path, framework="numpy") as reader:
            tags = reader.metadata() or {}
            if tags.get("format") != FORMAT:
                raise UsageError(f"{path}: no traces; expected a file made by collm trace")
            if tags.get("version") != str(VERSION):
                raise UsageError(
                    f"{path}: traces of version {tags.get('version')}, this software reads "
                    f"{VERSION}; run collm trace again"
                )
            found = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118
        traces = _traces(json.loads(tags["about"]), found)
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror or 'cannot be read'}; expected a file made by collm trace"
        ) from None
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path}: no sound traces ({error}); make them with: collm trace"
        ) from None
    if artifact is not None:
        _check_artifact(path, traces, artifact)
    return traces


def join_traces(parts: Sequence[Traces]) -> Traces:
    """Several traces of the same exits as one; costs are the first one's. Raises UsageError."""
    first = parts[0]
    if len(parts) == 1:
        return first
    for other in parts[1:]:
        if (first.fingerprint, first.cuts, first.exits_digest) != (
            other.fingerprint,
            other.cuts,
            other.exits_digest,
        ):
            raise UsageError(
                f"traces of exits {_listed(first.cuts)} and of {_listed(other.cuts)}, or of "
                "different ones, cannot be joined; trace both with the same --exits"
            )
    lengths = np.concatenate([np.diff(part.starts) for part in parts])
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in (*_BY_EXIT, *_BY_ROW)
    }
    return replace(
        first,
        corpus=", ".join(part.corpus for part in parts),
        part=", ".join(dict.fromkeys(part.part for part in parts)),
        domains=tuple(domain for part in parts for domain in part.domains),
        starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        **arrays,
    )


def _traces(about: dict[str, Any], found: dict[str, npt.NDArray[Any]]) -> Traces:
    """Checked; raises KeyError, TypeError or ValueError."""
    cuts, domains = tuple(int(c) for c in about["cuts"]), tuple(map(str, about["domains"]))
    starts = found["starts"].astype(np.int64)
    rows = len(found["model_tokens"])
    if not cuts or list(cuts) != sorted(set(cuts)) or cuts[0] < 1:
        raise ValueError(f"exits {list(cuts)}")
    bounds_fit = starts.ndim == 1 and len(starts) >= 2 and starts[0] == 0 and starts[-1] == rows
    if not bounds_fit or (np.diff(starts) < 1).any() or len(domains) != len(starts) - 1:
        raise ValueError("its texts do not fit its rows")
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(_BY_EXIT, (rows, len(cuts)))
    shapes |= dict.fromkeys(_BY_ROW, (rows,)) | {"coherence": (rows, len(COHERENCE))}
    for name, shape in shapes.items():
        if found[name].shape != shape:
            raise ValueError(f"{name} has shape {found[name].shape}, expected {shape}")
        if not np.isfinite(found[name]).all():
            raise ValueError(f"{name} has values that are not finite")
    costs = StepCosts(
        layers=tuple(map(float, about["costs"]["layers"])),
        exits=tuple(map(float, about["costs"]["exits"])),
        cloud=float(about["costs"]["cloud"]),
    )
    if len(costs.layers) != len(cuts) or len(costs.exits) != len(cuts):
        raise ValueError("its costs are not those of its exits")
    arrays = {name: found[name] for name in (*_BY_EXIT, *_BY_ROW)}
    arrays |= {name: found[name].astype(np.bool_) for name in ("rolled", "rejoined")}
    return Traces(
        fingerprint=str(about["fingerprint"]),
        exits_digest=str(about["exits_digest"]),
        cuts=cuts,
        costs=costs,
        corpus=str(about["corpus"]),
        part=str(about["part"]),
        rolled_tokens=int(about["rolled_tokens"]),
        domains=domains,
        starts=starts,
        **arrays,
    )


def _check_artifact(path: Path, traces: Traces, artifact: Artifact) -> None:
    if traces.fingerprint != artifact.fingerprint:
        raise UsageError(
            f"{path}: traces of another artifact ({traces.fingerprint[:12]}…, not "
            f"{artifact.fingerprint[:12]}…); make them with: collm trace {artifact.folder}"
        )
    offered = {entry.cut for entry in artifact.manifest.exits}
    if not offered.issuperset(traces.cuts) or traces.exits_digest != exits_digest(
        artifact, traces.cuts
    ):
        raise UsageError(
            f"{path}: traces of other exits than those of {artifact.folder}; make them again "
            "with: collm trace"
        )


def _listed(cuts: Sequence[int]) -> str:
    return ", ".join(map(str, cuts))
