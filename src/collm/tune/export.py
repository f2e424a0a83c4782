"""Exit files, written and read back: int8 adapter, f32 norms, shortlist.

What is measured and calibrated is the exit as stored, after quantisation. The format is
described in `collm.model.exit_file`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from collm.errors import UsageError
from collm.model.exit_file import ExitFile
from collm.model.files import write_tensors
from collm.tune.backbone import Backbone
from collm.tune.distill import Trained
from collm.tune.heads import ExitHead, ExitSpec
from collm.tune.measure import Measured, fit_temperature, measure
from collm.tune.quantize import BLOCK, dequantize, quantize
from collm.tune.teacher import Lesson


@dataclass(frozen=True, kw_only=True)
class ExportedExit:
    """One exit file, and how good the exit is on held-out text."""

    cut: int
    path: Path
    before: Measured
    """Untrained."""
    measured: Measured
    """As stored."""
    temperature: float


def pack(head: ExitHead) -> dict[str, Tensor]:
    """A head's tensors as stored. `head` then holds what they stand for, rounding included."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in head.named_parameters():
        values = parameter.detach().float()
        if values.dim() == 1 or values.shape[1] % BLOCK:
            tensors[name] = values.clone().cpu()
            continue
        q_NK, scale = quantize(values)
        tensors[name], tensors[f"{name}.scale"] = q_NK.cpu(), scale.cpu()
        parameter.data = dequantize(q_NK, scale)
    return tensors


def export(
    backbone: Backbone,
    trained: Trained,
    held_out: list[Lesson],
    cuts: tuple[int, ...],
    folder: Path,
    *,
    base: str,
    about: dict[str, object],
    adaptation: str = "",
) -> list[ExportedExit]:
    """Quantise, calibrate, measure and write every exit into `folder`.

    about: what the files say of their training. Files appear under their names when complete.
    """
    exported = []
    for head, before in zip(trained.heads, trained.before, strict=True):
        spec = head.spec
        tensors = pack(head)
        where = (backbone, head, held_out, cuts, trained.shortlist_S)
        measured, temperature = measure(*where), fit_temperature(*where)
        training = {
            **about,
            "steps": trained.steps,
            "rows_seen": trained.tokens,
            "held_out_agreement": round(measured.agreement, 4),
        }
        metadata = {
            "format": "collm-exit",
            "version": "1",
            "cut": str(spec.cut),
            "kind": spec.kind,
            "layers": str(spec.layers if spec.kind == "layer" else 0),
            "window": str(spec.window),
            "feed": json.dumps(spec.feed),
            "temperature": f"{temperature:.3f}",
            "base": base,
            "source_sha256": backbone.source_sha256,
            "adaptation": adaptation,
            "training": json.dumps(training),
        }
        path = folder / f"exit-{spec.cut:02d}.safetensors"
        tensors["shortlist"] = trained.shortlist_S.to(torch.int32).cpu()
        write_tensors(path, {name: value.numpy() for name, value in tensors.items()}, metadata)
        exported.append(
            ExportedExit(
                cut=spec.cut, path=path, before=before, measured=measured, temperature=temperature
            )
        )
    return exported


def load_exits(backbone: Backbone, paths: list[Path], specs: list[ExitSpec]) -> Trained:
    """Exits from their files, to train on from. `paths` in any order, one for every spec.

    Raises UsageError where one is missing or of another make, ArtifactError for damaged files.
    """
    heads, shortlist_S = [], None
    files = {file.cut: file for file in map(ExitFile, paths)}
    for spec in specs:
        file = files.get(spec.cut)
        if file is None:
            raise UsageError(f"no exit file for cut {spec.cut} to start from")
        made = ExitSpec(
            cut=file.cut,
            kind=file.kind,
            layers=file.layers or 1,
            window=file.window,
            feed=file.feed,
        )
        if made != spec:
            raise UsageError(f"{file.path}: made as {made}, wanted is {spec}")
        head = ExitHead(backbone, spec)
        for name, parameter in head.named_parameters():
            shape = tuple(parameter.shape)
            stored = torch.from_numpy(file.tensor(name, shape))
            if file.has(f"{name}.scale"):
                scale = file.tensor(f"{name}.scale", (shape[0], shape[1] // BLOCK))
                stored = dequantize(stored, torch.from_numpy(scale))
            parameter.data.copy_(stored)
        ids = file.shortlist(backbone.architecture.vocab_size)
        known = (
            torch.arange(backbone.architecture.vocab_size) if ids is None else torch.from_numpy(ids)
        )
        if shortlist_S is not None and not torch.equal(known, shortlist_S):
            raise UsageError(f"{file.path}: another shortlist than the other exits'")
        shortlist_S = known
        heads.append(head)
    assert shortlist_S is not None, "at least one spec"
    return Trained(
        heads=heads,
        shortlist_S=shortlist_S.to(backbone.device),
        before=[],
        history=[],
        steps=0,
        tokens=0,
    )
