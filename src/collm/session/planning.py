"""What a plan needs, brought together: profiles from the cache or measured, exits' records, frames.

Everything that is kept between runs lies in one folder (`profiles_folder`), a file a device and
artifact. Files are written beside their place and moved there, so that two processes never see a
half of one.

Not covered: profiles of other machines; copy their file, or plan there.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import platformdirs

from collm.config import Sampling
from collm.errors import ArtifactError, UsageError
from collm.limits import DEFAULT_LIMITS
from collm.model.artifact import Artifact
from collm.policy.coherence import CoherenceTracker
from collm.policy.cost_model import Candidate, FrameBytes
from collm.policy.criteria import Confidence
from collm.policy.profile_json import device_from_json, device_to_json
from collm.policy.profiles import Acceptance, CloudProfile, DeviceProfile, RowCost
from collm.runtime.acceptance import (
    find_acceptance,
    keep_acceptance,
    record_acceptance,
    unrecorded_paths,
)
from collm.runtime.draft_stage import DraftStage
from collm.runtime.hardware import held_memory, usable_memory
from collm.runtime.profiling import measure_device, profile_key, usual_threads
from collm.runtime.stage import Stage
from collm.session.costs import Costs
from collm.session.drafter import Drafter
from collm.wire.codec import WIRE_FORMATS, row_bytes
from collm.wire.encoding import encode, encode_append
from collm.wire.handshake import hello_of
from collm.wire.messages import Ask, Bye, Generate, Token, Verdict, Welcome

Progress = Callable[[str, int, int], None]

_STEPS = 24
_START_SECONDS = 60.0
_SECOND_PROCESS_BYTES = 2**28
_EMPTY_EDGE = """
import sys
import collm.cli.main
from collm.model.artifact import Artifact
from collm.runtime.hardware import held_memory
tokenizer = Artifact(sys.argv[1]).tokenizer()
print(held_memory())
"""
_WHOLE_SHARE = 0.8
"""Of the usable memory: a model that would take more is not loaded whole to record its exits."""


def profiles_folder() -> Path:
    """Where profiles are kept."""
    return platformdirs.user_cache_path("collm") / "profiles"


def known_profile(artifact: Artifact, folder: Path | None = None) -> DeviceProfile | None:
    """This device's profile of the artifact, if it was measured before.

    A damaged one is none, and one from before draft paths were measured.
    """
    path = (folder or profiles_folder()) / f"{profile_key(artifact)}.json"
    try:
        if path.stat().st_size > DEFAULT_LIMITS.max_profile_bytes:
            return None
        found = device_from_json(path.read_text(encoding="utf-8"))
    except (OSError, UsageError, UnicodeDecodeError):
        return None
    if found.paths.keys() != {entry.name for entry in artifact.manifest.drafts}:
        return None
    # What is free may have changed; what the hardware is has not, or the key would be another.
    return replace(found, memory_bytes=usable_memory())


def device_profile(
    artifact: Artifact,
    *,
    budget: float = 10.0,
    threads: Sequence[int] | None = None,
    refresh: bool = False,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> DeviceProfile:
    """Known, or measured now and kept. Raises ArtifactError for files that are damaged."""
    known = None if refresh else known_profile(artifact, folder)
    if known is not None and (found := _with_threads(known, threads)) is not None:
        return found
    usual = known is None and set(threads or ()) <= set(usual_threads())
    tried = None if usual else threads
    base = base_bytes(artifact)
    made = measure_device(
        artifact, budget=budget, threads=tried, base_bytes=base, progress=progress
    )
    made = replace(made, step_seconds=_step_seconds(artifact, made))
    if tried is None:  # others are an experiment's
        kept = folder or profiles_folder()
        _write(kept / f"{profile_key(artifact)}.json", device_to_json(made))
    return _with_threads(made, threads) or device_profile(
        artifact, budget=budget, threads=threads, folder=folder, progress=progress
    )


def _with_threads(device: DeviceProfile, threads: Sequence[int] | None) -> DeviceProfile | None:
    """With these numbers of threads only, where they were all measured."""
    if threads is None:
        return device
    costs = tuple(one for one in device.costs if one.threads in threads)
    return replace(device, costs=costs) if len(costs) == len(set(threads)) else None


def base_bytes(artifact: Artifact) -> int:
    """What an edge's process takes before it has loaded a layer, its tokenizer included.

    Found in a process of its own: this one may hold anything.
    """
    command = [sys.executable, "-c", _EMPTY_EDGE, str(artifact.folder)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=_START_SECONDS,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        return int(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        tokenizer = artifact.tokenizer()
        held = held_memory()
        del tokenizer
        return held


def acceptance(
    artifact: Artifact,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int = 48,
    threads: int = 1,
    refresh: bool = False,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Acceptance:
    """Recorded before, or now and kept with the artifact.

    A record without a draft path that is here is made anew where the whole model fits, and does
    where it does not: no plan then has that path. Raises UsageError where there is none and the
    whole model is not here, or does not fit.
    """
    elsewhere = (folder or profiles_folder()) / f"{profile_key(artifact)}.acceptance.safetensors"
    found = None if refresh else find_acceptance(artifact, elsewhere)
    if found is not None and not unrecorded_paths(artifact, found):
        return found
    manifest = artifact.manifest
    need = sum(entry.bytes for name, entry in manifest.files.items() if name.endswith(".data"))
    missing = [
        block.graph for block in manifest.blocks if not (artifact.folder / block.graph).is_file()
    ]
    if missing or need > _WHOLE_SHARE * (usable_memory() - held_memory()):
        if found is not None:
            return found
        why = f"{missing[0]} is not here" if missing else f"it takes {need / 1e6:.0f} MB"
        raise UsageError(
            f"{artifact.folder}: how often its exits are right was not recorded, and takes the "
            f"whole model ({why}); run collm profile --exits on a larger machine, and copy "
            "acceptance.safetensors and manifest.json from its artifact here"
        )
    made = record_acceptance(artifact, prompts, tokens=tokens, threads=threads, progress=progress)
    keep_acceptance(artifact, made, elsewhere)
    return made


def cloud_like(device: DeviceProfile, artifact: Artifact) -> CloudProfile:
    """A cloud that is as fast as this device: for plans without one to ask."""
    costs, bounds = device.with_threads(device.best_threads), device.bounds
    made: dict[int, RowCost] = {bounds[-1]: costs.head}
    rows = costs.blocks[0].rows
    for index, cut in enumerate(bounds[:-1]):
        seconds = [sum(block.at(n) for block in costs.blocks[index:]) for n in rows]
        made[cut] = RowCost(rows=rows, seconds=tuple(seconds))
    return CloudProfile(fingerprint=artifact.fingerprint, layers=bounds[-1], costs=made)


def frame_bytes(hidden: int) -> FrameBytes:
    """Sizes of real frames, in the midst of an answer."""
    greedy, at = Sampling(), 500
    append = encode_append([1], b"", epoch=3, base=at, settled=False)
    ask = Ask(epoch=3, drafted=3)
    verdict = Verdict(
        epoch=3,
        base=at,
        accepted=2,
        next_token=9_000,
        logprob=-0.5,
        cloud_seconds=0.01,
        logprobs_accepted=(-0.5, -0.5),
    )
    token = Token(epoch=0, position=at, token_id=9_000, logprob=-0.5, cloud_seconds=0.01)
    welcome = Welcome(
        protocol_minor=4,
        position=0,
        software="collm 0.0",
        session_id="0" * 32,
        max_positions=8192,
        model_layers=30,
    )
    generate = Generate(epoch=0, base=at, max_tokens=128, stop_ids=(0, 2), sampling=greedy)
    hello = hello_of("collm 0.0", "0" * 64, 15, "f32")
    session = sum(len(encode(one)) for one in (hello, welcome, generate, Bye()))
    return FrameBytes(
        append=len(append) - 4,
        ask=len(encode(ask)),
        verdict=len(encode(verdict)),
        token=len(encode(token)),
        session=session,
        rows={name: row_bytes(name, hidden) for name in WIRE_FORMATS},
    )


def way_words(candidate: Candidate, layers: int) -> list[str]:
    """The options of `collm run` that make it answer so."""
    words = ["--mode", candidate.mode]
    if candidate.mode == "cloud":
        return words
    if candidate.draft_path:
        words += ["--draft-path", candidate.draft_path]
    else:
        words += ["--placement", str(candidate.placement)]
    words += ["--threads", str(candidate.threads)]
    if candidate.mode == "verified" and candidate.placement == layers:
        return words
    if candidate.exits:
        words += ["--exits", ",".join(map(str, candidate.exits))]
    words += ["--threshold", f"{candidate.threshold:g}"]
    if candidate.mode != "standalone":
        words += ["--wire", candidate.wire]
    if candidate.mode == "verified":
        words += ["--draft", str(candidate.draft)]
        if candidate.ahead is not None:
            words += ["--ahead", f"{candidate.ahead:g}"]
    return words


class _Noted(Costs):
    """Keeps what the last exit took, layers included."""

    last = 0.0

    def exit_took(self, cut: int, seconds: float, rows: int) -> None:
        self.last = seconds


def _step_seconds(artifact: Artifact, device: DeviceProfile) -> float:
    """What a token costs beside its layers and its exit: a loop of drafts with the first exit.

    Of a draft path where there is no exit, or its blocks are not all here; 0 without either.
    """
    stage = _drafting_stage(artifact, device.bounds[-1])
    if stage is None:
        return 0.0
    (cut,) = stage.exits
    noted, session = _Noted(), stage.open()
    drafter = Drafter(
        session,
        (cut,),
        Confidence(1.0),
        Sampling(),
        tracker=CoherenceTracker(is_boundary=lambda _: False),
        costs=noted,
    )
    ids = [1] * 8
    session.append_ids(ids)
    drafter.read_prompt(ids)
    beside: list[float] = []
    for _ in range(_STEPS):
        session.run(cut)  # the layers are not what is measured
        started = time.perf_counter()
        guess = drafter.guess(ids)
        drafter.write(1, 0.5, 1.0)
        drafter.learn(guess, 1)
        ids.append(1)
        session.append_ids([1])
        beside.append(time.perf_counter() - started - noted.last)
    session.close()
    return max(0.0, statistics.median(beside))


def _drafting_stage(artifact: Artifact, layers: int) -> Stage | None:
    """The smallest that has an exit, of those whose files are here."""
    manifest = artifact.manifest
    cut = next((e.cut for e in manifest.exits if e.cut < layers), None)
    if cut is not None:
        try:
            return Stage(artifact, range(cut), exits=(cut,))
        except ArtifactError:
            pass  # fetched in part
    for entry in manifest.drafts:
        try:
            return DraftStage(artifact, entry.name)
        except ArtifactError:
            continue
    return None


def _write(path: Path, text: str) -> None:
    """Whole or not at all; a cache that cannot be written is only slower."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, path)
    except OSError:
        scratch.unlink(missing_ok=True)
