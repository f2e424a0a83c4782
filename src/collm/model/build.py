"""From a checkpoint to an artifact: one pass over the layers, one block in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from collm.errors import ArtifactError, PlacementError
from collm.model.architecture import Architecture
from collm.model.delta import Adaptation
from collm.model.exits import ExitFile, add_exit, identity_exit
from collm.model.files import atomic_folder, file_entry
from collm.model.graph import DataFile, GraphBuilder
from collm.model.layers import LayerWeights, layer_chain
from collm.model.manifest import (
    MANIFEST,
    BlockEntry,
    EmbeddingEntry,
    FileEntry,
    HeadEntry,
    Manifest,
)
from collm.model.pack import Packer
from collm.model.sources import Checkpoint
from collm.model.vocabulary import write_confidence, write_embedding, write_head

Progress = Callable[[str, int, int], None]
"""Called with (what, steps done, steps in all)."""


def default_cuts(layers: int) -> tuple[int, ...]:
    """Sixths of the depth up to two thirds: 5, 10, 15, 20 of SmolLM2's 30 layers."""
    return tuple(sorted({round(layers * sixth / 6) for sixth in (1, 2, 3, 4)} - {0, layers}))


def check_output(out: Path, force: bool) -> None:
    """Refuse to replace anything but an artifact, and that only when told to."""
    if not out.exists():
        return
    is_artifact = (out / MANIFEST).is_file()
    if not is_artifact and (not out.is_dir() or any(out.iterdir())):
        raise ArtifactError(f"{out}: exists and is not an artifact; choose another name")
    if is_artifact and not force:
        raise ArtifactError(f"{out}: an artifact is there already; add --force to replace it")


def build(
    checkpoint: Checkpoint,
    out: Path,
    *,
    cuts: Sequence[int] | None = None,
    weights: str = "int4",
    force: bool = False,
    exits: Callable[[str], Sequence[Path]] = lambda source_sha256: (),
    adaptation: Adaptation | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Manifest:
    """Write the artifact of `checkpoint` to the folder `out`, atomically.

    Every cut gets an untrained exit (the final norm and head). exits: given the checkpoint's
    digest, the exit files to take in at once, as far as they were made for the same adaptation;
    more can be added by `collm.model.exits.add_exit`. adaptation: a delta to merge into the
    weights, and exits, all of which have to fit it.
    Raises SourceError, PlacementError or ArtifactError.
    """
    arch = checkpoint.architecture
    chosen = _check_cuts(default_cuts(arch.layers) if cuts is None else cuts, arch.layers)
    check_output(out, force)
    delta = None if adaptation is None else adaptation.delta
    packer = Packer(checkpoint, weights, delta)
    tokenizer = checkpoint.tokenizer()
    bounds = [0, *chosen, arch.layers]
    total = arch.layers + 2
    try:
        with atomic_folder(out) as folder:
            (folder / "tokenizer.json").write_text(tokenizer.tokenizer_json, encoding="utf-8")
            blocks = []
            for first, last in pairwise(bounds):
                progress(f"layers {first} to {last - 1}", first, total)
                blocks.append(_write_block(folder, arch, packer, first, last, progress, total))
            progress("embedding and head", arch.layers, total)
            embedding = _write_embedding_and_head(folder, arch, packer)
            packer.norm("model.norm.weight").tofile(folder / "final_norm.f32")
            progress("hashing", arch.layers + 1, total)
            manifest = Manifest(
                name=checkpoint.name,
                architecture=arch,
                weights=weights,
                cuts=chosen,
                blocks=tuple(blocks),
                heads={"full": HeadEntry(graph="heads/full.onnx", vocabulary=arch.vocab_size)},
                embedding=embedding,
                final_norm="final_norm.f32",
                chat_template=tokenizer.chat_template,
                bos_token=tokenizer.bos_token,
                eos_token=tokenizer.eos_token,
                bos_id=tokenizer.bos_id,
                eos_ids=tokenizer.eos_ids,
                source_sha256=checkpoint.sha256(),
                adaptation="" if delta is None else delta.record(packer.adapted_weights),
                files=_hash_files(folder),
            )
            for cut in chosen:
                manifest = manifest.with_exit(identity_exit(manifest, cut))
            manifest.write(folder)
            for path in _wanted_exits(exits(manifest.source_sha256), adaptation):
                if ExitFile(path).fits(chosen):
                    manifest = add_exit(folder, path)
            progress("done", total, total)
    except OSError as error:
        raise ArtifactError(f"{out}: cannot be written: {error.strerror or error}") from None
    return manifest


def _wanted_exits(offered: Sequence[Path], adaptation: Adaptation | None) -> list[Path]:
    """Of the exits on offer those for this adaptation, then the adaptation's own."""
    if adaptation is None:
        return [path for path in offered if not ExitFile(path).metadata.get("adaptation")]
    digest = adaptation.delta.sha256
    fitting = [path for path in offered if ExitFile(path).metadata.get("adaptation") == digest]
    return [*fitting, *adaptation.exits]


def _check_cuts(cuts: Sequence[int], layers: int) -> tuple[int, ...]:
    if list(cuts) != sorted(set(cuts)) or any(not 0 < cut < layers for cut in cuts):
        raise PlacementError(
            f"cuts {','.join(map(str, cuts))}: expected ascending layer numbers from 1 to "
            f"{layers - 1}"
        )
    return tuple(cuts)


def _write_block(
    folder: Path,
    arch: Architecture,
    packer: Packer,
    first: int,
    last: int,
    progress: Progress,
    total: int,
) -> BlockEntry:
    stem = f"blocks/{first:03d}-{last:03d}"
    (folder / "blocks").mkdir(exist_ok=True)
    windows = arch.layer_window[first:last]
    done = 0

    def read(layer: int) -> LayerWeights:
        nonlocal done
        done += 1
        progress(f"layers {first} to {last - 1}", first + done - 1, total)
        return packer.layer(layer)

    with DataFile(folder / f"{stem}.data") as data:
        graph = GraphBuilder(f"layers {first} to {last - 1}", data)
        layer_chain(graph, arch, range(first, last), read, windows)
        graph.save(folder / f"{stem}.onnx")
    return BlockEntry(first=first, last=last, graph=f"{stem}.onnx")


def _write_embedding_and_head(folder: Path, arch: Architecture, packer: Packer) -> EmbeddingEntry:
    unembedding = packer.unembedding()
    write_head(folder, arch, "full", unembedding)
    write_confidence(folder)
    embedding = unembedding if arch.tied else packer.embedding()
    return write_embedding(folder, embedding, tied_to="heads/full.data" if arch.tied else None)


def _hash_files(folder: Path) -> dict[str, FileEntry]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_entry(path) for path in paths}
