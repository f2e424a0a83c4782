"""An artifact on disk, opened: what is asked of it is verified first, the rest never touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from collm.errors import ArtifactError, PlacementError
from collm.model.files import sha256_of
from collm.model.manifest import BlockEntry, ExitEntry, HeadEntry, Manifest
from collm.model.tokenizer import Tokenizer, TokenizerFiles
from collm.model.vocabulary import RowReader

F32 = npt.NDArray[np.float32]


class Artifact:
    """A folder made by `collm build`.

    Opening reads the manifest only. Every file is hashed the first time it is asked for;
    a file that differs from the manifest raises ArtifactError naming it.
    fetch: called with the name of a file that is asked for and not here; it puts it into the folder
    or raises. Without it a missing file raises ArtifactError.
    """

    def __init__(self, folder: Path | str, *, fetch: Callable[[str], None] | None = None) -> None:
        self.folder = Path(folder)
        self._fetch = fetch
        self.manifest = Manifest.read(self.folder)
        self.architecture = self.manifest.architecture
        self.fingerprint = self.manifest.fingerprint
        self._verified: set[str] = set()

    def path(self, name: str) -> Path:
        """The verified path of a file that the manifest names."""
        entry = self.manifest.files.get(name)
        path = self.folder / name
        if entry is None:
            raise ArtifactError(f"{self.folder}: the manifest lists no file {name}")
        if name not in self._verified:
            if self._fetch is not None and not path.is_file():
                self._fetch(name)
            if not path.is_file():
                raise ArtifactError(f"{path}: missing; build or fetch the artifact again")
            if path.stat().st_size != entry.bytes or sha256_of(path) != entry.sha256:
                raise ArtifactError(
                    f"{path}: damaged (its sha256 is not the manifest's); build or fetch it again"
                )
            self._verified.add(name)
        return path

    def graph(self, name: str) -> Path:
        """The verified path of a graph whose weights are verified too."""
        data = name.removesuffix(".onnx") + ".data"
        if data in self.manifest.files:
            self.path(data)
        return self.path(name)

    def blocks(self, layers: range) -> tuple[BlockEntry, ...]:
        """The blocks that make up `layers`. Raises PlacementError unless both ends are cuts."""
        check_placement(self.manifest, layers.start)
        check_placement(self.manifest, layers.stop)
        return tuple(b for b in self.manifest.blocks if b.first in layers)

    def floats(self, name: str) -> F32:
        """A small vector file (a norm's weight)."""
        return np.fromfile(self.path(name), dtype=np.float32)

    def head_ids(self, head: HeadEntry) -> npt.NDArray[np.int32] | None:
        """The token ids of a shortlist head, None for the full one."""
        return None if head.ids is None else np.fromfile(self.path(head.ids), dtype=np.int32)

    def embedding(self) -> RowReader:
        """The input embedding."""
        self.path(self.manifest.embedding.file)
        return RowReader(self.folder, self.manifest.embedding, self.architecture)

    def exits(self, cuts: tuple[int, ...] | None, upto: int) -> tuple[ExitEntry, ...]:
        """The exits at `cuts`, or all at or below layer `upto`, shallowest first."""
        return exits_at(self.manifest, cuts, upto)

    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer and chat template."""
        m = self.manifest
        return Tokenizer(
            TokenizerFiles(
                tokenizer_json=self.path("tokenizer.json").read_text(encoding="utf-8"),
                chat_template=m.chat_template,
                bos_token=m.bos_token,
                eos_token=m.eos_token,
                bos_id=m.bos_id,
                eos_ids=m.eos_ids,
            )
        )


def check_placement(manifest: Manifest, layer: int) -> None:
    """Raise PlacementError unless the model may be split before `layer`."""
    last = manifest.architecture.layers
    if layer not in (0, *manifest.cuts, last):
        raise PlacementError(
            f"placement {layer}: expected one of 0, {', '.join(map(str, manifest.cuts))}, {last}"
        )


def exits_at(manifest: Manifest, cuts: tuple[int, ...] | None, upto: int) -> tuple[ExitEntry, ...]:
    """The exits at `cuts`, or all at or below layer `upto`, shallowest first.

    Raises PlacementError for one that the artifact does not have there.
    """
    if cuts is None:
        return tuple(e for e in manifest.exits if e.cut <= upto)
    found = []
    for cut in sorted(set(cuts)):
        entry = manifest.exit_at(cut)
        if entry is None or cut > upto:
            offered = [str(e.cut) for e in manifest.exits if e.cut <= upto]
            raise PlacementError(
                f"exit {cut}: with {upto} layers on the edge the artifact offers exits at "
                f"{', '.join(offered) or 'none'}"
            )
        found.append(entry)
    return tuple(found)
