"""Training state on disk: weights, their moving average and AdamW's moments, written atomically."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from collm.errors import SourceError
from collm.model.files import write_tensors

_MOMENTS = ("exp_avg", "exp_avg_sq")
Parameters = Mapping[str, torch.nn.Parameter]


def save_checkpoint(
    path: Path,
    trained: Parameters,
    averaged: Mapping[str, Tensor],
    optimizer: torch.optim.AdamW,
    about: Mapping[str, str],
    extra: Mapping[str, Tensor],
) -> None:
    """Write the state of a run. `about` says where it stands; `extra` are tensors of its own."""
    tensors = {f"extra.{name}": value for name, value in extra.items()}
    for name, parameter in trained.items():
        tensors[f"weight.{name}"] = parameter.detach()
        tensors[f"average.{name}"] = averaged[name]
        for moment in _MOMENTS:
            if moment in optimizer.state[parameter]:
                tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    arrays = {name: value.detach().cpu().numpy() for name, value in tensors.items()}
    write_tensors(path, arrays, {"format": "collm-tune", **about})


def checkpoint_about(path: Path) -> dict[str, str]:
    """A checkpoint's metadata. Raises SourceError for a file that is none."""
    try:
        with safe_open(path, "pt") as file:
            about: dict[str, str] = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise SourceError(f"{path}: not a readable checkpoint ({error}); delete it") from None
    if about.get("format") != "collm-tune":
        raise SourceError(f"{path}: not a checkpoint of collm tune; delete it")
    return about


def load_checkpoint(
    path: Path,
    trained: Parameters,
    averaged: Mapping[str, Tensor],
    optimizer: torch.optim.AdamW,
    step: int,
) -> dict[str, Tensor]:
    """Fill in the state after `step` steps; returns the extra tensors."""
    extra = {}
    with safe_open(path, "pt") as file:
        for name, parameter in trained.items():
            parameter.data.copy_(file.get_tensor(f"weight.{name}"))
            averaged[name].copy_(file.get_tensor(f"average.{name}"))
            if step:
                state = {
                    moment: file.get_tensor(f"{moment}.{name}").to(parameter.device)
                    for moment in _MOMENTS
                }
                optimizer.state[parameter] = {"step": torch.tensor(float(step)), **state}
        for name in file.keys():  # noqa: SIM118 - safe_open is no dictionary
            if name.startswith("extra."):
                extra[name.removeprefix("extra.")] = file.get_tensor(name)
    return extra
