"""`collm bench plan`: is the plan the best way, and does it do what was predicted?

Devices are emulated with control groups, links with shapers in front of one cloud process. On every
device and link a sweep of sensible ways is measured, each in a process that may take no more than
the device has; the plan is made in such a process too, from what it measures there. Results go to a
file of JSON lines as they come; what is in it is not measured again.

Not covered: objectives other than latency; lossy ways.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from collm.bench.cgroups import DeviceSpec, Emulated, emulated
from collm.bench.cores import choose_cores, pin
from collm.errors import UsageError
from collm.limits import DEFAULT_LIMITS
from collm.link.shapes import LinkShape
from collm.model.artifact import Artifact
from collm.policy.cost_model import Candidate
from collm.serve.spawn import spawned_cloud, spawned_link

Progress = Callable[[str, int, int], None]

_SETTINGS: Sequence[tuple[float, int, float | None]] = (
    (0.4, 4, None),
    (0.6, 8, None),
    (0.4, 8, 0.0),
    (0.8, 4, 0.0),
)
"""Threshold, draft length and drafting ahead of the ways that verify."""
_LONGEST_SECONDS = 900.0
_PROFILE_SECONDS = 6.0


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What is measured."""

    devices: tuple[DeviceSpec, ...]
    links: tuple[LinkShape, ...]
    tokens: int
    prompts: tuple[tuple[int, ...], ...]
    out: Path


def sweep(artifact: Artifact, threads: int) -> list[Candidate]:
    """The ways that are measured everywhere: the cloud, everything here, cuts and draft paths."""
    layers = artifact.architecture.layers
    made = [
        Candidate(mode="cloud", threads=threads),
        Candidate(mode="verified", placement=layers, threads=threads),
    ]
    cuts = [entry.cut for entry in artifact.manifest.exits if entry.cut < layers]
    for cut, wire, (threshold, draft, ahead) in itertools.product(cuts, ("f32", "ids"), _SETTINGS):
        made.append(
            Candidate(
                mode="verified",
                placement=cut,
                exits=(cut,),
                wire=wire,
                threshold=threshold,
                draft=draft,
                ahead=ahead,
                threads=threads,
            )
        )
    for path, (threshold, draft, ahead) in itertools.product(artifact.manifest.drafts, _SETTINGS):
        made.append(
            Candidate(
                mode="verified",
                draft_path=path.name,
                threshold=threshold,
                draft=draft,
                ahead=ahead,
                threads=threads,
            )
        )
    return made


def measure(artifact: Artifact, options: PlanOptions, progress: Progress) -> dict[str, Any]:
    """Everything that is not in the file yet, then the report. Raises UsageError, LinkError."""
    log = _Log(options.out, artifact, options)
    cores = choose_cores(1)
    with ExitStack() as stack:
        cloud = stack.enter_context(
            spawned_cloud(artifact.folder, threads=1, limits=DEFAULT_LIMITS)
        )
        pin(cloud.pid, cores.cloud)
        addresses = {
            shape.name: stack.enter_context(spawned_link(shape, cloud.address)).address
            for shape in options.links
        }
        for number, spec in enumerate(options.devices):
            progress(f"device {spec.name}", number, len(options.devices))
            use = tuple(choose_cores(spec.cores).edge)
            with emulated(spec, use) as device:
                log.add(device=spec.name, kind="device", enforced=device.enforced, cores=use)
                _measure_device(artifact, options, device, addresses, log)
    progress("done", len(options.devices), len(options.devices))
    return report(log.lines)


def _measure_device(
    artifact: Artifact,
    options: PlanOptions,
    device: Emulated,
    addresses: Mapping[str, str],
    log: _Log,
) -> None:
    """Plans first, then the sweep, then what the plans chose beside it."""
    name = device.spec.name
    ways = sweep(artifact, device.spec.cores)
    job: dict[str, Any] = {
        "artifact": str(artifact.folder),
        "tokens": options.tokens,
        "prompts": [list(ids) for ids in options.prompts],
    }
    wanted = {link: to for link, to in addresses.items() if not log.has(name, link, "plan")}
    if wanted:
        with tempfile.TemporaryDirectory() as cache:
            plans = job | {
                "what": "plan",
                "links": wanted,
                "cache": cache,
                "budget": _PROFILE_SECONDS,
                "refresh": True,
                "memory_bytes": device.spec.memory_bytes,
                "context": max(map(len, options.prompts)) + options.tokens,
                "candidates": [asdict(way) for way in ways],
            }
            for line in _run(device, plans):
                log.add(device=name, kind="plan", **line)
    chosen = [
        log.get(name, link, "plan")["plan"] for link in addresses if log.has(name, link, "plan")
    ]
    own = [Candidate(**{**one, "exits": tuple(one["exits"])}) for one in chosen]
    everything = list(dict.fromkeys([*ways, *own]))
    by_load: dict[tuple[Any, ...], list[Candidate]] = {}
    for way in everything:
        loads = (way.mode, way.placement, way.exits, way.draft_path, way.threads)
        by_load.setdefault(loads, []).append(way)
    for group in by_load.values():
        # One job a link: what does not fit is found out once, what was measured is left out.
        for link, to in addresses.items():
            todo = [way for way in group if not log.has(name, link, _key(way))]
            if todo:
                _measure_group(device, job, todo, link, to, log)


def _measure_group(
    device: Emulated,
    job: Mapping[str, Any],
    todo: Sequence[Candidate],
    link: str,
    to: str,
    log: _Log,
) -> None:
    device.reset_peak()
    given = {**job, "what": "answer", "links": {link: to}, "candidates": [asdict(w) for w in todo]}
    measured = list(_run(device, given))
    for line in measured:
        way = Candidate(**{**line["candidate"], "exits": tuple(line["candidate"]["exits"])})
        log.add(device=device.spec.name, kind=_key(way), peak=device.peak, fits=True, **line)
    for way in todo[len(measured) :]:  # killed for its memory
        log.add(
            device=device.spec.name,
            kind=_key(way),
            link=link,
            candidate=asdict(way),
            peak=device.peak,
            fits=False,
        )


def _run(device: Emulated, job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The lines of a worker on the device; those before it was killed, if it was.

    Raises UsageError where it failed for another reason.
    """
    command = [sys.executable, "-m", "collm.bench.plan_worker"]
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=told,
            preexec_fn=device.join,
            start_new_session=True,
        )
        try:
            out, _ = process.communicate(json.dumps(job).encode(), timeout=_LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
        if process.returncode not in (0, -9):
            told.seek(0)
            last = told.read(65_536).decode(errors="replace").strip().splitlines()
            raise UsageError(f"the device's process failed: {last[-1] if last else 'no word'}")
    for line in out.decode().splitlines():
        yield json.loads(line)


class _Log:
    """Lines of JSON, kept as they come and found again."""

    def __init__(self, path: Path, artifact: Artifact, options: PlanOptions) -> None:
        self._path = path
        self.lines: list[dict[str, Any]] = []
        head = {
            "kind": "run",
            "fingerprint": artifact.fingerprint,
            "tokens": options.tokens,
            "prompts": [list(ids) for ids in options.prompts],
        }
        if path.is_file():
            self.lines = [json.loads(line) for line in path.read_text().splitlines()]
            if self.lines and self.lines[0] != head:
                raise UsageError(f"{path}: of another run; name another --out, or remove it")
        if not self.lines:
            self.lines = [head]
            path.write_text(json.dumps(head) + "\n")

    def add(self, **line: Any) -> None:
        """One more."""
        text = json.dumps({**line, "at": round(time.time(), 1)})
        self.lines.append(json.loads(text))
        with self._path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def has(self, device: str, link: str, kind: str) -> bool:
        """Whether it was measured."""
        return self._find(device, link, kind) is not None

    def get(self, device: str, link: str, kind: str) -> dict[str, Any]:
        """What was measured."""
        found = self._find(device, link, kind)
        assert found is not None
        return found

    def _find(self, device: str, link: str, kind: str) -> dict[str, Any] | None:
        wanted = device, link, kind
        for line in self.lines[1:]:
            if (line["device"], line.get("link"), line["kind"]) == wanted:
                return line
        return None


def _key(way: Candidate) -> str:
    data = asdict(way)
    if not way.draft_path:  # as in files from before there were any
        del data["draft_path"]
    return json.dumps(data)


def report(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A cell for every device and link: the plan beside the best that was measured."""
    enforced = {one["device"]: one["enforced"] for one in lines if one["kind"] == "device"}
    cells = []
    for planned in (one for one in lines if one["kind"] == "plan"):
        here = (planned["device"], planned["link"])
        measured = [
            one
            for one in lines[1:]
            if (one["device"], one.get("link")) == here and one["kind"] not in ("plan", "device")
        ]
        own = next((one for one in measured if one["candidate"] == planned["plan"]), None)
        fitting = [one for one in measured if one["fits"]]
        if own is None or not fitting:
            continue
        best = min(fitting, key=lambda one: float(one["token_seconds"]))
        seconds = float(own["token_seconds"]) if own["fits"] else float("inf")
        cells.append(
            {
                "device": here[0],
                "link": here[1],
                "enforced": enforced.get(here[0], []),
                "plan": planned["plan"],
                "fits": own["fits"],
                "peak_bytes": own["peak"],
                "predicted_bytes": planned["predicted"]["memory_bytes"],
                "predicted_tokens_per_second": 1 / planned["predicted"]["token_seconds"],
                "measured_tokens_per_second": 1 / seconds,
                "best": best["candidate"],
                "best_tokens_per_second": 1 / float(best["token_seconds"]),
                "of_best": float(best["token_seconds"]) / seconds,
                "errors": _errors(planned, measured),
                "measured": len(measured),
                "did_not_fit": len(measured) - len(fitting),
            }
        )
    near = sum(cell["of_best"] >= 1 / 1.1 for cell in cells)
    return {"cells": cells, "within_10_percent": near, "all_fit": all(c["fits"] for c in cells)}


def _errors(planned: Mapping[str, Any], measured: Sequence[Mapping[str, Any]]) -> list[float]:
    """Predicted by measured seconds a token, of all ways of the sweep that fitted, ascending."""
    seconds = {
        _name(one["candidate"]): float(one["token_seconds"]) for one in measured if one["fits"]
    }
    predicted = {_name(one["candidate"]): float(one["token_seconds"]) for one in planned["sweep"]}
    return sorted(predicted[name] / took for name, took in seconds.items() if name in predicted)


def _name(candidate: Mapping[str, Any]) -> str:
    return json.dumps(candidate, sort_keys=True)
