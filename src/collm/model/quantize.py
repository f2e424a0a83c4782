"""Weights in the form the kernels read: blockwise 4- or 8-bit, or plain float32.

`MatMulNBits` (ONNX Runtime) multiplies by w = scale · (q − 2^(bits−1)) with one float32 scale
per `BLOCK` inputs. GGUF's Q4_0 and Q8_0 *are* that. Q4_1 and Q4_K are w = d·q + m, which is
d·(q − 8) + (m + 8d): the same plus an offset per block, which the graph adds as a small
matrix product with the inputs' block sums. So all four come in without any loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

BLOCK = 32


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """A [outputs N, inputs K] matrix as w = scale · (q − 2^(bits−1)) + offset.

    q: uint8 [N, K/32, 32·bits/8], low nibble first; scale: float32 [N, K/32];
    offset: float32 [N, K/32] or None.
    """

    bits: int
    q: U8
    scale: F32
    offset: F32 | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.q.shape[0], self.q.shape[1] * BLOCK

    def rows(self, index: npt.NDArray[np.int64]) -> Quantised:
        """The same matrix with only (or reordered) outputs `index`."""
        offset = None if self.offset is None else self.offset[index]
        return Quantised(bits=self.bits, q=self.q[index], scale=self.scale[index], offset=offset)

    def floats(self) -> F32:
        """Dequantised, float32 [N, K]."""
        if self.bits == 4:
            q = np.stack([self.q & 15, self.q >> 4], axis=-1).reshape(*self.q.shape[:2], BLOCK)
            values = q.astype(np.float32) - 8.0
        else:
            values = self.q.astype(np.float32) - 128.0
        values *= self.scale[:, :, None]
        if self.offset is not None:
            values += self.offset[:, :, None]
        return values.reshape(self.shape)


def concatenate(parts: list[Quantised]) -> Quantised:
    """Stack matrices of the same inputs and bits along the outputs."""
    offset: F32 | None = None
    if any(part.offset is not None for part in parts):
        zeros = [np.zeros_like(p.scale) if p.offset is None else p.offset for p in parts]
        offset = np.concatenate(zeros)
    return Quantised(
        bits=parts[0].bits,
        q=np.concatenate([part.q for part in parts]),
        scale=np.concatenate([part.scale for part in parts]),
        offset=offset,
    )


def quantise_int8(weight: F32) -> Quantised:
    """Round to nearest, symmetric, 255 levels. weight: float32 [N, K], K a multiple of 32."""
    blocks = weight.reshape(weight.shape[0], -1, BLOCK)
    scale = np.abs(blocks).max(axis=-1) / np.float32(127)
    q = np.rint(blocks / np.where(scale == 0, 1, scale)[:, :, None]) + 128
    return Quantised(bits=8, q=q.astype(np.uint8), scale=scale.astype(np.float32))


def quantise_int4(weight: F32) -> Quantised:
    """Round to nearest between each block's minimum and maximum, 16 levels, with an offset."""
    blocks = weight.reshape(weight.shape[0], -1, BLOCK)
    low, high = blocks.min(axis=-1), blocks.max(axis=-1)
    scale = (high - low) / np.float32(15)
    q = np.rint((blocks - low[:, :, None]) / np.where(scale == 0, 1, scale)[:, :, None])
    return Quantised(
        bits=4,
        q=_pack_nibbles(q.astype(np.uint8)),
        scale=scale.astype(np.float32),
        offset=(low + 8 * scale).astype(np.float32),
    )


def from_gguf(kind: str, raw: U8) -> Quantised | None:
    """Lossless import of GGUF bytes uint8 [N, bytes per row]; None if `kind` has no such form.

    Block layouts: ggml `ggml-common.h` (`block_q4_0`, `block_q4_1`, `block_q8_0`, `block_q4_K`).
    """
    n = raw.shape[0]
    if kind == "Q8_0":
        block = raw.reshape(n, -1, 34)
        return Quantised(bits=8, q=block[:, :, 2:] + np.uint8(128), scale=_f16(block[:, :, :2]))
    if kind == "Q4_0":
        block = raw.reshape(n, -1, 18)
        q = _pack_nibbles(_gguf_nibbles(block[:, :, 2:]))
        return Quantised(bits=4, q=q, scale=_f16(block[:, :, :2]))
    if kind == "Q4_1":
        block = raw.reshape(n, -1, 20)
        scale, minimum = _f16(block[:, :, :2]), _f16(block[:, :, 2:4])
        q = _pack_nibbles(_gguf_nibbles(block[:, :, 4:]))
        return Quantised(bits=4, q=q, scale=scale, offset=minimum + 8 * scale)
    if kind == "Q4_K":
        return _from_q4_k(raw.reshape(n, -1, 144))
    return None


def _from_q4_k(block: U8) -> Quantised:
    """256 weights a block: eight sub-blocks of 32 with 6-bit scales and minima."""
    n, supers = block.shape[:2]
    d, d_min = _f16(block[:, :, :2]), _f16(block[:, :, 2:4])
    packed = block[:, :, 4:16]
    first, second, third = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=-1)
    minima = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=-1)
    scale = (d[..., None] * scales.astype(np.float32)).reshape(n, supers * 8)
    minimum = (d_min[..., None] * minima.astype(np.float32)).reshape(n, supers * 8)
    # 128 bytes in four runs of 32: low nibbles are one sub-block, high nibbles the next.
    runs = block[:, :, 16:].reshape(n, supers, 4, 32)
    nibbles = np.stack([runs & 15, runs >> 4], axis=3).reshape(n, supers * 8, 32)
    return Quantised(bits=4, q=_pack_nibbles(nibbles), scale=scale, offset=8 * scale - minimum)


def _f16(two_bytes: U8) -> F32:
    return np.ascontiguousarray(two_bytes).view(np.float16)[..., 0].astype(np.float32)


def _gguf_nibbles(packed: U8) -> U8:
    """[..., 16] bytes -> [..., 32]: ggml keeps elements 0-15 low, 16-31 high."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _pack_nibbles(values: U8) -> U8:
    """[..., 32] -> [..., 16]: MatMulNBits keeps neighbours in one byte, the first one low."""
    return values[..., 0::2] | (values[..., 1::2] << np.uint8(4))
