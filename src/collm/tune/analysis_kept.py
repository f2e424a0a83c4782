"""Results of `collm analyze` so far, in a file that is written after every step."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from collm.errors import UsageError
from collm.tune.analysis import MAX_BYTES, LayerReport, Subset, layer_from, subset_from


class KnownResults:
    """Those of one analysis. A file with results of other settings is written anew.

    settings: all that decides the results. Raises UsageError for a file that holds something else.
    """

    def __init__(self, path: Path, settings: str) -> None:
        self._path, self._settings = path, settings
        self.layers: dict[int, LayerReport] = {}
        self.subsets: dict[int, Subset] = {}
        if not self._path.is_file():
            return
        try:
            if self._path.stat().st_size > MAX_BYTES:
                raise ValueError("too large")
            data: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
            if data["settings"] == self._settings:
                self.layers = {r["layer"]: layer_from(r) for r in data["layers"]}
                self.subsets = {len(r["layers"]): subset_from(r) for r in data["subsets"]}
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(
                f"{self._path}: no results of collm analyze ({error}); delete it"
            ) from None

    def keep_layer(self, made: LayerReport) -> None:
        self.layers[made.layer] = made
        self._write()

    def keep_subset(self, made: Subset) -> None:
        self.subsets[len(made.layers)] = made
        self._write()

    def _write(self) -> None:
        layers = [asdict(self.layers[key]) for key in sorted(self.layers)]
        subsets = [asdict(self.subsets[key]) for key in sorted(self.subsets)]
        data = {"settings": self._settings, "layers": layers, "subsets": subsets}
        scratch = self._path.with_suffix(f".{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            scratch.write_text(json.dumps(data), encoding="utf-8")
            os.replace(scratch, self._path)
        except OSError as error:
            raise UsageError(f"{self._path}: cannot be written: {error.strerror}") from None
