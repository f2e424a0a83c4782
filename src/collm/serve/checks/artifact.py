"""Is the artifact whole, and does it compute?"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from collm.errors import ArtifactError, CollmError
from collm.model.artifact import Artifact
from collm.model.files import sha256_of
from collm.model.manifest import ExitEntry, Manifest
from collm.serve.checks.finding import Findings, fault, ok, warning
from collm.session.placed import default_placement, placed_files

_MOST_NAMED = 4


def check_artifact(
    artifact: Artifact, *, deep: bool, mode: str, placement: int | None, is_pulled: bool
) -> Findings:
    """Files, cuts, exits, and the two-row rule on the first block.

    deep: hash every byte. is_pulled: files that the placement does not need may be missing.
    """
    manifest = artifact.manifest
    arch = manifest.architecture
    yield ok(
        "artifact",
        f"{manifest.name}: {arch.family}, {arch.layers} layers, cuts "
        f"{', '.join(map(str, manifest.cuts)) or 'none'}, weights {manifest.weights}, fingerprint "
        f"{artifact.fingerprint[:12]}",
    )
    missing, damaged = _files(artifact, deep=deep)
    yield from _missing(artifact, missing, mode, placement, is_pulled=is_pulled)
    again = "build it again, or pull it again (what is sound is not fetched twice)"
    if damaged:
        yield fault("files", f"damaged: {_named(damaged)}", again)
    elif not missing:
        how = "sha256 right" if deep else "sizes right; --deep hashes them"
        yield ok("files", f"{len(manifest.files)} files, {how}")
    yield from _exits(artifact, {*missing, *damaged})
    first = {name for name in manifest.files if name.startswith(manifest.blocks[0].graph[:-5])}
    if not first & {*missing, *damaged}:
        yield from check_rows(artifact)


def _files(artifact: Artifact, *, deep: bool) -> tuple[list[str], list[str]]:
    missing, damaged = [], []
    for name, entry in artifact.manifest.files.items():
        path = artifact.folder / name
        try:
            size = path.stat().st_size
        except OSError:
            missing.append(name)
            continue
        if size != entry.bytes or (deep and sha256_of(path) != entry.sha256):
            damaged.append(name)
    return missing, damaged


def _missing(
    artifact: Artifact, missing: list[str], mode: str, placement: int | None, *, is_pulled: bool
) -> Findings:
    if not missing:
        return
    manifest, folder = artifact.manifest, artifact.folder
    placed = default_placement(manifest) if placement is None else placement
    if not is_pulled and placement is None:
        yield fault("files", f"missing: {_named(missing)}", f"build or pull {folder} again")
        return
    try:
        needed = placed_files(manifest, mode, placed, None)
    except CollmError as error:
        yield fault("placement", str(error), "name another --placement")
        return
    lacking = [name for name in missing if name in needed]
    if lacking:
        yield fault(
            "files",
            f"placement {placed} in mode {mode} needs {_named(lacking)}, which are missing",
            f"collm pull ADDRESS {folder} --placement {placed} --mode {mode}",
        )
    else:
        yield ok(
            "files",
            f"all that placement {placed} in mode {mode} needs; {len(missing)} that a cloud would "
            "need are not here",
        )


def _exits(artifact: Artifact, unusable: set[str]) -> Findings:
    manifest = artifact.manifest
    if not manifest.exits:
        yield warning("exits", "there are none: every token waits for the cloud", "collm tune")
        return
    sound = []
    for entry in manifest.exits:
        if _names_of(manifest, entry) & unusable:
            continue  # told above
        try:
            _check_exit(artifact, entry)
        except (ArtifactError, OSError) as error:
            yield fault(
                "exits",
                f"exit {entry.cut}: {error}",
                f"collm tune --exits {entry.cut}, or collm add-exit with one made for this model",
            )
        else:
            sound.append(entry)
    raw = [str(entry.cut) for entry in sound if not entry.trained]
    if raw:
        yield warning("exits", f"untrained: {', '.join(raw)}", "collm tune trains them")
    elif sound:
        yield ok("exits", f"at {', '.join(str(entry.cut) for entry in sound)}")


def _names_of(manifest: Manifest, entry: ExitEntry) -> set[str]:
    graphs = [one for one in (entry.graph, manifest.heads[entry.head].graph) if one is not None]
    data = [graph.removesuffix(".onnx") + ".data" for graph in graphs]
    return {entry.norm, *graphs, *(name for name in data if name in manifest.files)}


def _check_exit(artifact: Artifact, entry: ExitEntry) -> None:
    """Raise ArtifactError for an exit that is another model's."""
    import onnx

    manifest, arch = artifact.manifest, artifact.architecture
    size = (artifact.folder / entry.norm).stat().st_size
    if size != 4 * arch.hidden_size:
        raise ArtifactError(
            f"{entry.norm}: made for a hidden size of {size // 4}, the model's is "
            f"{arch.hidden_size}; it is another model's"
        )
    if entry.graph is not None:
        try:
            graph = onnx.load(artifact.folder / entry.graph, load_external_data=False).graph
        except Exception as error:  # noqa: BLE001 - protobuf raises bare ones
            raise ArtifactError(f"{entry.graph}: no ONNX graph ({error})") from None
        wanted = arch.hidden_size * (1 + len(entry.feed))
        width = graph.input[0].type.tensor_type.shape.dim[-1].dim_value if graph.input else 0
        if width and width not in (wanted, arch.hidden_size):
            raise ArtifactError(
                f"{entry.graph}: takes {width} numbers a position, the model has {wanted}; it is "
                "another model's"
            )
    head = manifest.heads[entry.head]
    if head.ids is not None and (artifact.folder / head.ids).is_file():
        ids = np.fromfile(artifact.folder / head.ids, dtype=np.int32)
        if len(ids) != head.vocabulary or not ids.size or ids.max() >= arch.vocab_size:
            raise ArtifactError(
                f"{head.ids}: tokens beyond the model's {arch.vocab_size}; it is another model's"
            )


def check_rows(artifact: Artifact) -> Findings:
    """The two-row rule, on the first block."""
    from collm.runtime.self_check import block_difference

    try:
        layers, differs = block_difference(artifact)
    except CollmError as error:
        yield fault("two rows", str(error), "build or pull the artifact again")
        return
    except Exception as error:  # noqa: BLE001 - whatever ONNX Runtime says of a graph it cannot run
        said = " ".join(str(error).split())[:120]
        yield fault("two rows", f"the first block does not run: {said}", "build it again")
        return
    told = f"layers {layers.start} to {layers.stop - 1}"
    if differs:
        yield fault(
            "two rows",
            f"{told}: twelve rows at once and two at a time differ by {differs:g}",
            "verified text is not the full model's here; report it with collm doctor --json",
        )
    else:
        yield ok("two rows", f"{told}: the same to the last bit, however rows are taken together")


def _named(names: Iterable[str]) -> str:
    listed = sorted(names)
    told = ", ".join(listed[:_MOST_NAMED])
    return told + (f" and {len(listed) - _MOST_NAMED} more" if listed[_MOST_NAMED:] else "")
