"""How often exits are right: recorded where the whole model fits, for devices where it does not.

The whole model answers prompts greedily, in exact mode, and every exit says what it would have
said at each position. The record goes into the artifact's folder, so that devices which fetch the
artifact have it; it is no part of the fingerprint, as it does not change a single token.

Formats that change the states (`f16`, `int8`, `int4`) are tried at every cut on the same texts: how
often the full model's word stays the same when its layers from there on see the cast states.

Draft paths whose files are here are tried on the same texts, one after the other. Each has a digest
of its own: a path that is added or made anew leaves what the exits said as good as it was.

Not covered: sampled text; prompts other than those it was recorded with, which is why a plan can
be given a user's own (`collm profile --prompts`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from collm.errors import ArtifactError, UsageError
from collm.limits import DEFAULT_LIMITS
from collm.model.artifact import Artifact
from collm.model.draft_entry import DraftEntry
from collm.model.drafts import draft_files
from collm.model.files import file_entry, write_tensors
from collm.model.manifest import ExitEntry
from collm.policy.profiles import Acceptance, PathSays
from collm.runtime.draft_stage import DraftStage
from collm.runtime.stage import F32, Stage
from collm.wire.codec import ROW_FORMATS, cast_rows

Progress = Callable[[str, int, int], None]

ACCEPTANCE = "acceptance.safetensors"
"""Its file in an artifact's folder."""
FORMAT, VERSION = "collm-acceptance", "1"


def exits_key(artifact: Artifact) -> str:
    """Digest of the exits: their files and temperatures, not their thresholds."""
    told = hashlib.sha256()
    for entry in artifact.manifest.exits:
        told.update(_spoken(artifact, entry))
    return told.hexdigest()


def path_digest(artifact: Artifact, entry: DraftEntry) -> str:
    """Of a draft path, as `exits_key` has it of exits."""
    return hashlib.sha256(_spoken(artifact, entry)).hexdigest()


def unrecorded_paths(artifact: Artifact, found: Acceptance) -> list[str]:
    """Names of the draft paths that are here, and of which the record says nothing."""
    return [entry.name for entry in _paths_here(artifact) if entry.name not in found.paths]


def _paths_here(artifact: Artifact) -> list[DraftEntry]:
    """Those that can be loaded; an artifact may be fetched in part."""
    manifest, folder = artifact.manifest, artifact.folder
    return [
        entry
        for entry in manifest.drafts
        if all((folder / name).is_file() for name in draft_files(manifest, entry.name))
    ]


def _spoken(artifact: Artifact, entry: ExitEntry | DraftEntry) -> bytes:
    """All that decides what an exit or a draft path says."""
    files, head = artifact.manifest.files, artifact.manifest.heads[entry.head]
    names = [entry.norm, head.graph, head.ids, entry.graph]
    names += [n.removesuffix(".onnx") + ".data" for n in (head.graph, entry.graph) if n]
    digests = [files[name].sha256 for name in names if name and name in files]
    return repr((entry.cut, entry.temperature, digests)).encode()


def record_acceptance(
    artifact: Artifact,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int = 48,
    threads: int = 1,
    progress: Progress | None = None,
) -> Acceptance:
    """Answer every prompt with up to `tokens` tokens and note what the exits say meanwhile.

    Raises ArtifactError where a part of the model is missing.
    """
    arch = artifact.architecture
    cuts = tuple(e.cut for e in artifact.manifest.exits if e.cut < arch.layers)
    eos = artifact.tokenizer().eos_ids
    stage = Stage(artifact, range(arch.layers), exits=cuts, threads=threads)
    lossy = [name for name in ROW_FORMATS if name != "f32"]
    same = {name: dict.fromkeys(artifact.manifest.cuts, 0) for name in lossy}
    confidences, right, lengths = [], [], []
    texts: list[tuple[list[int], int, list[int]]] = []
    for number, prompt in enumerate(prompts):
        if progress is not None:
            progress("recording what exits say", number, len(prompts))
        ids = list(prompt)[: arch.context_length - tokens - 1]
        said = _answer(stage, ids, tokens, eos)
        first = len(ids) - 1
        text = [*ids, *said[:-1]]
        session = stage.open()
        session.append_ids(text)
        rows = [session.exit_rows(cut, first) for cut in cuts]
        session.close()
        texts.append((text, first, said))
        own = np.asarray(said, dtype=np.int32)
        confidences.append(_columns([one.confidences for one in rows], len(own)))
        right.append(_columns([one.token_ids == own for one in rows], len(own)).astype(np.bool_))
        lengths.append((len(ids), len(own)))
        for cut, states in _states(stage, text, artifact.manifest.cuts):
            for name in lossy:
                same[name][cut] += int((_words(stage, cut, states, name, first) == own).sum())
    if progress is not None:
        progress("recorded", len(prompts), len(prompts))
    del stage
    total = sum(length for _, length in lengths)
    return Acceptance(
        fingerprint=artifact.fingerprint,
        exits_key=exits_key(artifact),
        cuts=cuts,
        starts=np.cumsum([0, *(length for _, length in lengths)]).astype(np.int64),
        prompts=np.array([positions for positions, _ in lengths], dtype=np.int64),
        confidences=np.minimum(np.concatenate(confidences), np.float32(1)),
        right=np.concatenate(right),
        wires={name: {cut: n / total for cut, n in at.items()} for name, at in same.items()},
        paths={
            entry.name: _path_says(artifact, entry, texts, threads)
            for entry in _paths_here(artifact)
        },
    )


def _path_says(
    artifact: Artifact,
    entry: DraftEntry,
    texts: Sequence[tuple[list[int], int, list[int]]],
    threads: int,
) -> PathSays:
    """texts: their ids, the first position whose guess counts, and the full model's words."""
    stage = DraftStage(artifact, entry.name, threads=threads)
    confidences, right = [], []
    for text, first, said in texts:
        session = stage.open()
        session.append_ids(text)
        rows = session.exit_rows(stage.cut, first)
        session.close()
        confidences.append(rows.confidences)
        right.append(rows.token_ids == np.asarray(said, dtype=np.int32))
    return PathSays(
        digest=path_digest(artifact, entry),
        confidences=np.minimum(np.concatenate(confidences), np.float32(1)),
        right=np.concatenate(right),
    )


def keep_acceptance(artifact: Artifact, found: Acceptance, elsewhere: Path) -> Path:
    """Put the record into the artifact; where that cannot be written, at the path `elsewhere`."""
    if not os.access(artifact.folder, os.W_OK):
        _write(elsewhere, found)
        return elsewhere
    path = artifact.folder / ACCEPTANCE
    _write(path, found)
    # Read anew: another process may have changed it since.
    manifest = Artifact(artifact.folder).manifest
    files = {**manifest.files, ACCEPTANCE: file_entry(path)}
    replace(manifest, files=files).write(artifact.folder)
    return path


def find_acceptance(artifact: Artifact, elsewhere: Path) -> Acceptance | None:
    """The record of this artifact and its exits, if there is one.

    It has the draft paths that are still as they were recorded.
    Raises UsageError for a file that is damaged.
    """
    is_listed = ACCEPTANCE in artifact.manifest.files
    fresh = artifact if is_listed else Artifact(artifact.folder)  # recorded since, perhaps
    candidates = [elsewhere]
    if ACCEPTANCE in fresh.manifest.files:
        try:
            candidates.insert(0, fresh.path(ACCEPTANCE))
        except ArtifactError:
            pass  # not to be had, or one that an interrupted recording left
    for path in candidates:
        if not path.is_file():
            continue
        found = read_acceptance(path)
        if (found.fingerprint, found.exits_key) == (fresh.fingerprint, exits_key(fresh)):
            entries = fresh.manifest.drafts
            digests = {entry.name: path_digest(fresh, entry) for entry in entries}
            sound = {n: one for n, one in found.paths.items() if digests.get(n) == one.digest}
            return replace(found, paths=sound)
    return None


def read_acceptance(path: Path) -> Acceptance:
    """Raises UsageError, one line, for a file that is no such record."""
    try:
        if path.stat().st_size > DEFAULT_LIMITS.max_acceptance_bytes:
            raise ValueError(f"it is larger than {DEFAULT_LIMITS.max_acceptance_bytes} bytes")
        with safe_open(path, framework="numpy") as reader:
            tags = reader.metadata() or {}
            if (tags.get("format"), tags.get("version")) != (FORMAT, VERSION):
                raise ValueError("it is none, or of another version")
            about = json.loads(tags["about"])
            found = {
                name: reader.get_tensor(name)
                for name in ("starts", "prompts", "confidences", "right")
            }
            paths = {
                str(name): PathSays(
                    digest=str(digest),
                    confidences=reader.get_tensor(f"path.{name}.confidences").astype(np.float32),
                    right=reader.get_tensor(f"path.{name}.right").astype(np.bool_),
                )
                for name, digest in about.get("paths", {}).items()  # none in older ones
            }
        cuts = tuple(int(cut) for cut in about["cuts"])
        return Acceptance(
            fingerprint=str(about["fingerprint"]),
            exits_key=str(about["exits_key"]),
            cuts=cuts,
            starts=found["starts"].astype(np.int64),
            prompts=found["prompts"].astype(np.int64),
            confidences=found["confidences"].astype(np.float32),
            right=found["right"].astype(np.bool_),
            wires={
                str(name): {int(cut): _share(value) for cut, value in at.items()}
                for name, at in about["wires"].items()
            },
            paths=paths,
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{path}: no sound record of exits ({str(error)[:200]}); make it again with: "
            "collm profile --exits"
        ) from None


def _write(path: Path, found: Acceptance) -> None:
    about = {
        "fingerprint": found.fingerprint,
        "exits_key": found.exits_key,
        "cuts": list(found.cuts),
        "wires": {name: dict(at) for name, at in found.wires.items()},
        "paths": {name: one.digest for name, one in found.paths.items()},
    }
    tensors: dict[str, npt.NDArray[Any]] = {
        "starts": found.starts,
        "prompts": found.prompts,
        "confidences": found.confidences,
        "right": found.right.astype(np.uint8),
    }
    for name, one in found.paths.items():
        tensors[f"path.{name}.confidences"] = one.confidences
        tensors[f"path.{name}.right"] = one.right.astype(np.uint8)
    tags = {"format": FORMAT, "version": VERSION, "about": json.dumps(about)}
    write_tensors(path, tensors, tags)


def _answer(stage: Stage, ids: Sequence[int], tokens: int, eos: frozenset[int]) -> list[int]:
    """What the full model says, without the end of the text unless it says nothing else."""
    session = stage.open()
    session.append_ids(ids)
    said: list[int] = []
    while len(said) < tokens:
        token = int(session.logits(session.position - 1)[-1].argmax())
        if token in eos and said:
            break
        said.append(token)
        session.append_ids([token])
    session.close()
    return said


def _states(stage: Stage, text: Sequence[int], cuts: Sequence[int]) -> list[tuple[int, F32]]:
    """States of the whole text at every cut."""
    session = stage.open()
    session.append_ids(text)
    made = [(cut, session.hidden_at(cut, 0)) for cut in cuts]
    session.close()
    return made


def _words(stage: Stage, cut: int, states: F32, wire: str, first: int) -> F32:
    """The full model's tokens from position `first` on, int [n], on states that travelled."""
    session = stage.open(cut)
    session.append_hidden(cast_rows(wire, states))
    logits = session.logits(first)
    session.close()
    words: F32 = logits.argmax(axis=1)
    return words


def _columns(columns: Sequence[F32], rows: int) -> F32:
    """Side by side; no column at all is [rows, 0]."""
    made: F32 = np.stack(columns, axis=1) if columns else np.zeros((rows, 0), dtype=np.float32)
    return made


def _share(value: float) -> float:
    made = float(value)
    if not 0 <= made <= 1:
        raise ValueError(f"a share of {made:g}")
    return made
