"""A draft path as the manifest lists it: some of the model's layers, thinned out, and an exit.

It is for devices that have no room for the layers up to a cut, or no time. One graph holds the
layers, the exit's adapter and nothing else, so such a device loads no block. Its states are not
the model's: only the token ids that it guesses are of use to anybody.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

FORMS = ("fp32", "int8", "int4", "mixed")
"""Of the weights. `mixed` is int8 in attention and int4 in the feed-forward part."""
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_KINDS = ("identity", "linear", "mlp", "layer")


@dataclass(frozen=True, kw_only=True)
class DraftEntry:
    """Ascending layers below `cut`, then the adapter of an exit at `cut`, a norm and a head."""

    name: str
    layers: tuple[int, ...]
    channels: tuple[int, ...]
    """Feed-forward channels that each of the layers has kept."""
    weights: str
    """One of `FORMS`."""
    cut: int
    """The model's cut that the exit stands in for; guesses are named after it."""
    kind: str
    """Of the exit: `identity`, `linear`, `mlp` or `layer`."""
    graph: str
    norm: str
    head: str
    exit_layers: int = 0
    """Decoder layers of the exit's adapter; they have caches, too."""
    temperature: float = 1.0
    training: str = ""
    """How it was made and how good it was, as JSON."""

    def __post_init__(self) -> None:
        """Raises ValueError: a damaged entry has to be refused before it is run."""
        what = f"draft {str(self.name)[:80]!r}"
        texts = (self.name, self.graph, self.norm, self.head, self.training)
        if not all(isinstance(text, str) for text in texts) or not NAME.fullmatch(self.name):
            raise ValueError(f"{what}: its name or a file's is not a fitting string")
        if self.weights not in FORMS or self.kind not in _KINDS:
            raise ValueError(f"{what}: weights {self.weights!r} or kind {self.kind!r} unknown")
        if type(self.cut) is not int or not all(
            type(layer) is int and 0 <= layer < self.cut for layer in self.layers
        ):
            raise ValueError(f"{what}: layers {list(self.layers)[:8]} are not all below its cut")
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"{what}: layers {list(self.layers)[:8]} do not ascend")
        counts = [count for count in self.channels if type(count) is int and count > 0]
        if len(counts) != len(self.layers) or len(self.channels) != len(self.layers):
            raise ValueError(f"{what}: channels are not one positive number a layer")
        if type(self.exit_layers) is not int or not 0 <= self.exit_layers <= 4:
            raise ValueError(f"{what}: {self.exit_layers!r} layers in its exit")
        if not self.layers and self.kind == "identity":
            raise ValueError(f"{what}: neither layers nor an exit that computes anything")
        is_number = isinstance(self.temperature, float | int)
        if not is_number or not math.isfinite(self.temperature) or not 0 < self.temperature < 100:
            raise ValueError(f"{what}: temperature {self.temperature!r}")

    @property
    def data(self) -> str:
        """The file of the weights."""
        return self.graph.removesuffix(".onnx") + ".data"


def read_drafts(
    records: object,
    *,
    cuts: tuple[int, ...],
    heads: Mapping[str, object],
    files: Mapping[str, object],
    ffn_size: int,
) -> tuple[DraftEntry, ...]:
    """The entries of a manifest. Raises ValueError, TypeError or KeyError where one is damaged."""
    if not isinstance(records, list):
        raise TypeError("drafts are no list")
    made = []
    for record in records:
        fields = {**record, "layers": tuple(record["layers"])}
        entry = DraftEntry(**{**fields, "channels": tuple(record["channels"])})
        if entry.cut not in cuts or entry.head not in heads or max((0, *entry.channels)) > ffn_size:
            raise ValueError(f"draft {entry.name}: a cut, a head or channels that are not there")
        for name in (entry.graph, entry.data, entry.norm):
            if name not in files:
                raise ValueError(f"draft {entry.name}: its file {name[:80]!r} is not listed")
        made.append(entry)
    if len({entry.name for entry in made}) < len(made):
        raise ValueError("two drafts of one name")
    return tuple(made)
