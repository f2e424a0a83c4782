"""`manifest.json`: what an artifact is made of. Everything else is found through it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from collm.errors import ArtifactError, one_line
from collm.limits import DEFAULT_LIMITS
from collm.model.architecture import Architecture
from collm.model.draft_entry import DraftEntry, read_drafts

FORMAT, VERSION = "collm-artifact", 2
MANIFEST = "manifest.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A file of the artifact; the name is relative to its folder."""

    sha256: str
    """Hex, in small letters: the file's name where it is kept and fetched by content."""
    bytes: int

    def __post_init__(self) -> None:
        """Raises ValueError, TypeError."""
        if _SHA256.fullmatch(self.sha256) is None:  # TypeError where it is no text
            raise ValueError(f"sha256 {str(self.sha256)[:80]!r}: expected 64 hex digits")
        if type(self.bytes) is not int or self.bytes < 0:
            raise ValueError(f"bytes {str(self.bytes)[:80]!r}: expected a number of bytes")


@dataclass(frozen=True, kw_only=True)
class BlockEntry:
    """Layers [first, last) in one graph; its weights are in the `.data` file of the same stem."""

    first: int
    last: int
    graph: str


@dataclass(frozen=True, kw_only=True)
class HeadEntry:
    """An unembedding. `ids` is a file of int32 token ids where it covers only a shortlist."""

    graph: str
    vocabulary: int
    ids: str | None = None


@dataclass(frozen=True, kw_only=True)
class EmbeddingEntry:
    """The input embedding, read row by row: int8 rows with block scales, or float32 rows."""

    file: str
    bits: int
    q_offset: int
    scale_offset: int = 0


@dataclass(frozen=True, kw_only=True)
class ExitEntry:
    """An exit at a cut: optional adapter graph, norm, a head, and its calibration."""

    cut: int
    kind: str
    """`identity`, `linear`, `mlp` or `layer`."""
    norm: str
    head: str
    graph: str | None = None
    layers: int = 0
    window: int = 0
    feed: tuple[int, ...] = ()
    """Earlier cuts, ascending, whose states the graph takes beside its own; 0 is the embedding."""
    temperature: float = 1.0
    trained: bool = False
    training: str = ""
    threshold: float | None = None
    """Calibrated confidence in (0, 1] from which the exit may answer alone; None: not chosen."""
    calibration: str = ""
    """How the threshold was chosen, as JSON."""

    @property
    def agreement(self) -> float | None:
        """How often it says what the full model says, on text held out of its training."""
        record = json.loads(self.training) if self.training.startswith("{") else {}
        share = record.get("held_out_agreement")
        return share if isinstance(share, float) else None

    def __post_init__(self) -> None:
        """Raises ValueError: these do not show by themselves to be damaged."""
        check_feed(self.feed, self.cut)
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise ValueError(f"exit {self.cut}: threshold {self.threshold} is not in (0, 1]")


def check_feed(feed: Sequence[object], cut: int) -> None:
    """Raise ValueError unless an exit at `cut` can be fed with the states at these cuts."""
    layers = [layer for layer in feed if type(layer) is int and 0 <= layer < cut]
    if len(layers) != len(feed) or layers != sorted(set(layers)):
        raise ValueError(f"feed {list(feed)}: expected ascending cuts from 0 to {cut - 1}")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The whole artifact. `heads["full"]` is the model's own unembedding."""

    name: str
    architecture: Architecture
    weights: str
    cuts: tuple[int, ...]
    blocks: tuple[BlockEntry, ...]
    heads: Mapping[str, HeadEntry]
    embedding: EmbeddingEntry
    final_norm: str
    chat_template: str | None
    bos_token: str
    eos_token: str
    bos_id: int | None
    eos_ids: tuple[int, ...]
    source_sha256: str
    adaptation: str = ""
    """The low-rank delta merged into the weights, as JSON; empty: the untouched model."""
    exits: tuple[ExitEntry, ...] = ()
    drafts: tuple[DraftEntry, ...] = ()
    """Draft paths for devices too small for the layers up to a cut."""
    files: Mapping[str, FileEntry] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Digest of all that decides the text. Exits and drafts decide the speed only: left out."""
        data = self.to_json()
        kept = {"blocks", "heads/full", "embedding", "final_norm", "tokenizer.json"}
        files = {
            name: entry["sha256"]
            for name, entry in data["files"].items()
            if any(name == k or name.startswith((f"{k}/", f"{k}.")) for k in kept)
        }
        shape = ("architecture", "weights", "cuts", "blocks", "embedding", "final_norm")
        text_ends = ("chat_template", "bos_token", "eos_token", "bos_id", "eos_ids")
        chosen = {k: data[k] for k in (*shape, *text_ends)} | {"head": data["heads"].get("full")}
        if self.adaptation:  # so that artifacts from before there were any keep theirs
            chosen["adaptation"] = self.adaptation
        text = json.dumps([chosen, files], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def exit_at(self, cut: int) -> ExitEntry | None:
        """The exit at `cut`, if there is one."""
        return next((entry for entry in self.exits if entry.cut == cut), None)

    def draft_named(self, name: str) -> DraftEntry | None:
        """The draft path of that name, if there is one."""
        return next((entry for entry in self.drafts if entry.name == name), None)

    def with_exit(self, entry: ExitEntry) -> Manifest:
        """The same artifact with `entry` in place of whatever its cut had."""
        others = [old for old in self.exits if old.cut != entry.cut]
        return replace(self, exits=tuple(sorted([*others, entry], key=lambda e: e.cut)))

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary, without the fingerprint."""
        data = asdict(self)
        if not self.drafts:  # so that software from before there were any reads it
            del data["drafts"]
        return data

    def write(self, folder: Path) -> None:
        """Write `manifest.json` atomically; it is what makes a folder an artifact."""
        data = {"format": FORMAT, "version": VERSION, "fingerprint": self.fingerprint}
        scratch = folder / f".{MANIFEST}.{os.getpid()}"
        scratch.write_text(json.dumps(data | self.to_json(), indent=1) + "\n", encoding="utf-8")
        os.replace(scratch, folder / MANIFEST)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check `manifest.json`. Raises ArtifactError with one clear line."""
        return cls.parse(_read_file(folder), folder)

    @classmethod
    def parse(cls, text: bytes, where: object) -> Manifest:
        """Check the bytes of a `manifest.json` from `where`, a folder or an address.

        Raises ArtifactError with one clear line that begins with `where`.
        """
        data = _parse_json(text, where)
        if data.get("format") != FORMAT:
            raise ArtifactError(f"{where}: {MANIFEST} is not a CoLLM artifact's")
        if data.get("version") != VERSION:
            version = one_line(repr(data.get("version")), 20)
            raise ArtifactError(
                f"{where}: artifact version {version}, this software reads {VERSION}; "
                "build it again"
            )
        try:
            made = cls._from(data)
            if not made.name.isprintable():
                raise ValueError(f"name {made.name!r}")
            fingerprint = made.fingerprint
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"{where}: {MANIFEST} is damaged ({one_line(error)})") from None
        for name in made.files:
            if not _is_inside(name):
                raise ArtifactError(f"{where}: {MANIFEST} names a file outside ({name!r:.80})")
        if fingerprint != data.get("fingerprint"):
            raise ArtifactError(
                f"{where}: {MANIFEST} does not match its own fingerprint; it was edited or "
                "damaged, build it again"
            )
        return made

    @classmethod
    def _from(cls, data: Mapping[str, Any]) -> Manifest:
        fields = {k: v for k, v in data.items() if k not in ("format", "version", "fingerprint")}
        fields["architecture"] = Architecture.from_json(data["architecture"])
        fields["cuts"] = tuple(int(cut) for cut in data["cuts"])
        fields["blocks"] = tuple(BlockEntry(**b) for b in data["blocks"])
        fields["heads"] = {k: HeadEntry(**h) for k, h in data["heads"].items()}
        fields["embedding"] = EmbeddingEntry(**data["embedding"])
        fields["eos_ids"] = tuple(int(i) for i in data["eos_ids"])
        fields["exits"] = tuple(_exit(e, fields["cuts"]) for e in data["exits"])
        fields["files"] = {k: FileEntry(**f) for k, f in data["files"].items()}
        fields["drafts"] = read_drafts(
            data.get("drafts", []),
            cuts=fields["cuts"],
            heads=fields["heads"],
            files=fields["files"],
            ffn_size=fields["architecture"].ffn_size,
        )
        return cls(**fields)


def _exit(data: Mapping[str, Any], cuts: tuple[int, ...]) -> ExitEntry:
    feed = tuple(data.get("feed", ()))
    if not {0, *cuts}.issuperset(feed):
        raise ValueError(f"exit {data['cut']}: feed {list(feed)} is not of the cuts")
    return ExitEntry(**{**data, "feed": feed})


def _is_inside(name: str) -> bool:
    """Whether a file of that name lies in the artifact's folder, and is not the manifest."""
    path = PurePosixPath(name)
    plain = name.isprintable() and "\\" not in name and str(path) == name
    return (
        plain
        and not path.is_absolute()
        and not {"..", "."} & {*path.parts, name}
        and (name != MANIFEST)
    )


def _read_file(folder: Path) -> bytes:
    path = folder / MANIFEST
    if not folder.exists():
        raise ArtifactError(f"{folder}: no such folder; make an artifact with: collm build")
    if not path.is_file():
        raise ArtifactError(f"{folder}: not an artifact (no {MANIFEST}); make one: collm build")
    try:
        with path.open("rb") as file:
            return file.read(DEFAULT_LIMITS.max_manifest_bytes + 1)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from None


def _parse_json(text: bytes, where: object) -> dict[str, Any]:
    if len(text) > DEFAULT_LIMITS.max_manifest_bytes:
        raise ArtifactError(
            f"{where}: {MANIFEST} is larger than {DEFAULT_LIMITS.max_manifest_bytes} bytes"
        )
    try:
        data = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where}: {MANIFEST} is not readable as JSON: {error}") from None
    if not isinstance(data, dict):
        raise ArtifactError(f"{where}: {MANIFEST}: expected a JSON object")
    return data
