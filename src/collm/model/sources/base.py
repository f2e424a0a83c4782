"""What the builder asks of a checkpoint, whatever its file format."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from collm.model.architecture import Architecture
from collm.model.quantize import Quantised
from collm.model.tokenizer import TokenizerFiles

F32 = npt.NDArray[np.float32]


class Checkpoint(Protocol):
    """One model's weights under Hugging Face names, read tensor by tensor."""

    name: str
    architecture: Architecture
    norm_offset: float

    def has(self, name: str) -> bool:
        """Whether the checkpoint holds tensor `name`."""
        ...

    def floats(self, name: str) -> F32:
        """The tensor, dequantised to float32. Raises SourceError."""
        ...

    def quantised(self, name: str) -> Quantised | None:
        """The matrix exactly as the file quantised it; None where it holds no such form."""
        ...

    def is_quantised(self, name: str) -> bool:
        """Whether the file holds fewer than 16 bits a weight for it."""
        ...

    def tokenizer(self) -> TokenizerFiles:
        """Tokenizer, chat template and special ids."""
        ...

    def sha256(self) -> str:
        """Digest of the weight files."""
        ...
