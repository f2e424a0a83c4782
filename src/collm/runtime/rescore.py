"""The likeliest few logits again, with float32 activations.

The fast kernels round activations to 8 bits. In the head that rounding alone turns about one
greedy choice in 200 against the dequantised model's, and only the tokens in the lead matter for
that: their rows of the unembedding, read through the memory map, times the float32 state.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from collm.model.artifact import Artifact
from collm.model.vocabulary import RowReader

F32 = npt.NDArray[np.float32]

_WITHIN = 1.0
"""Logits this close to the largest are computed again: far more than the kernels' error."""
_MOST = 32


class Rescorer:
    """Corrects a head's logits in place, each row for itself."""

    def __init__(self, artifact: Artifact, norm: F32) -> None:
        self._rows = RowReader.of_head(artifact.folder, artifact.manifest)
        self._norm = norm
        self._epsilon = artifact.architecture.norm_epsilon

    def correct(self, hidden_states: F32, logits: F32) -> None:
        """hidden_states: float32 [rows, d] before the norm; logits: float32 [rows, vocabulary]."""
        for state, row in zip(hidden_states, logits, strict=True):
            lead = np.flatnonzero(row >= row.max() - _WITHIN)
            if len(lead) == 1:
                continue
            if len(lead) > _MOST:
                lead = lead[np.argsort(-row[lead], kind="stable")[:_MOST]]
            wide = state.astype(np.float64)
            wide *= self._norm / np.sqrt(np.mean(wide * wide) + self._epsilon)
            # One product per token, whatever the company: the sum's order must not depend on it.
            weights = self._rows.floats(lead)
            row[lead] = [np.dot(weight.astype(np.float64), wide) for weight in weights]
