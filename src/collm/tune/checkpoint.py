"""Training state on disk: weights and AdamW moments as safetensors, written atomically."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from collm.errors import SourceError
from collm.tune.heads import ExitHead

_MOMENTS = ("exp_avg", "exp_avg_sq")


def named_parameters(heads: dict[int, ExitHead]) -> dict[str, torch.nn.Parameter]:
    """Every trained tensor, named `cut.tensor`."""
    return {
        f"{cut}.{name}": p for cut, head in heads.items() for name, p in head.named_parameters()
    }


def save_checkpoint(
    path: Path,
    heads: dict[int, ExitHead],
    optimizer: torch.optim.AdamW,
    shortlist_S: Tensor,
    *,
    step: int,
    rows: int,
    settings: str,
) -> None:
    """Write the state after `step` steps over `rows` target rows.

    `settings` must be equal to be resumed.
    """
    tensors: dict[str, Tensor] = {"shortlist": shortlist_S}
    for name, parameter in named_parameters(heads).items():
        tensors[f"weight.{name}"] = parameter.detach()
        for moment in _MOMENTS:
            if moment in optimizer.state[parameter]:
                tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    about = {
        "format": "collm-distill",
        "step": str(step),
        "rows": str(rows),
        "settings": settings,
    }
    save_file(tensors, partial, about)
    os.replace(partial, path)


def checkpoint_about(path: Path) -> dict[str, str]:
    """A checkpoint's metadata. Raises `SourceError` when there is none at `path`."""
    if not path.is_file():
        raise SourceError(f"no checkpoint at {path}; run `python -m collm.tune distill` first")
    with safe_open(path, "pt") as file:
        about: dict[str, str] = file.metadata() or {}
    if about.get("format") != "collm-distill":
        raise SourceError(f"{path} is not a checkpoint of collm.tune; delete it")
    return about


def load_checkpoint(
    path: Path, heads: dict[int, ExitHead], optimizer: torch.optim.AdamW | None = None
) -> Tensor:
    """Fill `heads` (and the optimizer's moments); returns the shortlist, i64 `[S]`."""
    step = int(checkpoint_about(path)["step"])
    with safe_open(path, "pt") as file:
        for name, parameter in named_parameters(heads).items():
            parameter.data.copy_(file.get_tensor(f"weight.{name}"))
            if optimizer and step:
                state = {moment: file.get_tensor(f"{moment}.{name}") for moment in _MOMENTS}
                optimizer.state[parameter] = {"step": torch.tensor(float(step)), **state}
        shortlist_S: Tensor = file.get_tensor("shortlist")
    return shortlist_S
