"""A layer's weights made smaller: fewer feed-forward channels, fewer bits.

Channels are rows of gate and up, which can be left out of any form exactly, and columns of down.
There a block of `BLOCK` neighbours shares a scale: channels that go and stay in whole such groups
leave the rest's values as they are; any others mean that what stays is rounded again, to 8 bits.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from collm.errors import UsageError
from collm.model.draft_entry import FORMS
from collm.model.layers import LayerWeights, Matrix
from collm.model.quantize import BLOCK, Quantised, quantise_int4, quantise_int8

I64 = npt.NDArray[np.int64]


def in_groups(channels: I64) -> bool:
    """Whether these ascending channels are whole groups of `BLOCK` neighbours."""
    if len(channels) % BLOCK:
        return False
    groups = channels.reshape(-1, BLOCK)
    wanted = groups[:, :1] + np.arange(BLOCK)
    return bool((groups[:, 0] % BLOCK == 0).all() and (groups == wanted).all())


def keep_channels(w: LayerWeights, channels: I64) -> LayerWeights:
    """The layer with only these feed-forward channels, ascending; a multiple of `BLOCK` of them.

    Raises UsageError for other numbers of channels.
    """
    ffn = w.down.shape[1]
    if not len(channels) or len(channels) % BLOCK or channels[-1] >= ffn:
        raise UsageError(
            f"{len(channels)} feed-forward channels of {ffn}: expected a multiple of {BLOCK}"
        )
    both = np.concatenate([channels, channels + ffn])
    gate_up = w.gate_up.rows(both) if isinstance(w.gate_up, Quantised) else w.gate_up[both]
    return replace(w, gate_up=gate_up, down=_columns(w.down, channels))


def _columns(matrix: Matrix, channels: I64) -> Matrix:
    if not isinstance(matrix, Quantised):
        return np.ascontiguousarray(matrix[:, channels])
    if not in_groups(channels):
        return quantise_int8(np.ascontiguousarray(matrix.floats()[:, channels]))
    blocks = channels[::BLOCK] // BLOCK
    return Quantised(
        bits=matrix.bits,
        q=matrix.q[:, blocks],
        scale=matrix.scale[:, blocks],
        offset=None if matrix.offset is None else matrix.offset[:, blocks],
    )


def in_form(w: LayerWeights, form: str) -> LayerWeights:
    """The layer in one of `FORMS`.

    int4 rounds float matrices only: those that are quantised stay as they are, so that none is
    rounded to 4 bits a second time. Raises UsageError for an unknown form.
    """
    if form not in FORMS:
        raise UsageError(f"weights {form!r}: expected one of {', '.join(FORMS)}")
    attention = "int8" if form == "mixed" else form
    feed_forward = "int4" if form == "mixed" else form
    return replace(
        w,
        qkv=_in_form(w.qkv, attention),
        o=_in_form(w.o, attention),
        gate_up=_in_form(w.gate_up, feed_forward),
        down=_in_form(w.down, feed_forward),
    )


def _in_form(matrix: Matrix, form: str) -> Matrix:
    if form == "fp32":
        return matrix.floats() if isinstance(matrix, Quantised) else matrix
    if isinstance(matrix, Quantised):
        return quantise_int8(matrix.floats()) if form == "int8" and matrix.bits != 8 else matrix
    if matrix.shape[1] % BLOCK:
        raise UsageError(
            f"a matrix of {matrix.shape[1]} inputs, no multiple of {BLOCK} as quantised weights "
            "need; use --weights fp32"
        )
    return quantise_int8(matrix) if form == "int8" else quantise_int4(matrix)
