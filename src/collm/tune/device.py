"""Where PyTorch computes, and with how many threads.

Not covered: several GPUs, other accelerators than CUDA's.
"""

from __future__ import annotations

import torch

from collm.errors import UsageError


def pick_device(name: str) -> str:
    """`auto` is a CUDA GPU where there is one, else the CPU. Raises UsageError for others."""
    has_gpu = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if has_gpu else "cpu"
    if name not in ("cpu", "cuda"):
        raise UsageError(f"device {name!r}: expected auto, cpu or cuda")
    if name == "cuda" and not has_gpu:
        raise UsageError("device cuda: PyTorch finds no CUDA GPU here; use --device cpu or auto")
    return name


def set_threads(count: int) -> None:
    """Let the CPU compute with so many threads."""
    torch.set_num_threads(count)
