"""Write trained exits as `exit-<cut>.safetensors`: int8 adapter, f32 norms, shortlist.

Metadata: format, version, cut, kind, layers, window (0: the whole context), temperature, base,
source_sha256 and a short JSON `training`. What is measured and calibrated is the exit as stored,
after quantisation.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from collm.errors import SourceError
from collm.tune.backbone import Backbone
from collm.tune.batches import load_split
from collm.tune.checkpoint import checkpoint_about, load_checkpoint
from collm.tune.heads import ExitHead, fresh_heads
from collm.tune.measure import read_out
from collm.tune.quantize import dequantize, quantize

CONFIDENCES = (0.6, 0.8)
BYTES_AT_MOST = 16_000_000


@dataclass(frozen=True, kw_only=True)
class ExitReport:
    """One exported exit on held-out chat; shares from 0 to 1, `sure` as (precision, coverage)."""

    cut: int
    agreement_f32: float
    agreement: float
    temperature: float
    shortlist_coverage: float
    rows: int
    sure: dict[float, tuple[float, float]]
    path: Path


def pack(head: ExitHead) -> dict[str, Tensor]:
    """A head's tensors as stored. `head` then holds what they stand for, rounding included."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in head.named_parameters():
        if parameter.dim() == 1:
            tensors[name] = parameter.detach().float().clone()
            continue
        q_NK, scale = quantize(parameter.detach())
        tensors[name], tensors[f"{name}.scale"] = q_NK, scale
        parameter.data = dequantize(q_NK, scale)
    return tensors


def export(
    backbone: Backbone,
    *,
    corpus: Path,
    checkpoint: Path,
    cuts: tuple[int, ...],
    folder: Path,
    base: str,
) -> list[ExitReport]:
    """Quantise, calibrate, measure and write every exit of a checkpoint into `folder`.

    Files appear under their names only when complete. Raises `SourceError` when the checkpoint or
    the corpus is missing, or the checkpoint is for other cuts.
    """
    about = checkpoint_about(checkpoint)
    trained = tuple(json.loads(about["settings"])["cuts"])
    if trained != cuts:
        raise SourceError(f"{checkpoint} holds exits at {trained}, asked for {cuts}")
    heads = fresh_heads(backbone, cuts)
    shortlist_S = load_checkpoint(checkpoint, heads)
    unembedding_SD = backbone.unembedding_VD[shortlist_S].contiguous()
    split = load_split(corpus)
    folder.mkdir(parents=True, exist_ok=True)
    reports = []
    for place, (cut, head) in enumerate(heads.items()):
        where = (place, split.held_out, backbone.shape, unembedding_SD, shortlist_S)
        before = read_out(head, *where).agreement
        tensors = pack(head)
        readout = read_out(head, *where)
        temperature = readout.calibrated_temperature()
        training = {
            "corpus_tokens": split.training_tokens,
            "rows_seen": int(about["rows"]),
            "steps": int(about["step"]),
            "held_out_agreement": round(readout.agreement, 4),
        }
        metadata = {
            "format": "collm-exit",
            "version": "1",
            "cut": str(cut),
            "kind": "layer",
            "layers": str(len(head.layers)),
            "window": "0",
            "temperature": f"{temperature:.2f}",
            "base": base,
            "source_sha256": backbone.sha256,
            "training": json.dumps(training),
        }
        path = folder / f"exit-{cut:02d}.safetensors"
        partial = path.with_suffix(".partial")
        save_file({**tensors, "shortlist": shortlist_S.to(torch.int32)}, partial, metadata)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
        reports.append(
            ExitReport(
                cut=cut,
                agreement_f32=before,
                agreement=readout.agreement,
                temperature=temperature,
                shortlist_coverage=readout.shortlist_coverage,
                rows=len(readout.argmax_N),
                sure={level: readout.at_confidence(level, temperature) for level in CONFIDENCES},
                path=path,
            )
        )
    total = sum(report.path.stat().st_size for report in reports)
    assert total < BYTES_AT_MOST, (
        f"exits come to {total} bytes; the package has room for {BYTES_AT_MOST}"
    )
    return reports
