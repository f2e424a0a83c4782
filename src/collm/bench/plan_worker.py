"""The process on the emulated device: answers over several links, or plans; JSON lines out.

Started as `python -m collm.bench.plan_worker`, with one JSON object on standard input. A process
loads one set of layers, so that what it takes is that set's.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from collm.config import Generation
from collm.limits import DEFAULT_LIMITS
from collm.link.grpc_client import connect
from collm.model.artifact import Artifact
from collm.policy.cost_model import Candidate, Model, World
from collm.policy.planner import Wish, plan
from collm.runtime.acceptance import find_acceptance
from collm.session.edge import Edge
from collm.session.planning import device_profile, frame_bytes
from collm.session.probing import probe


def candidate_of(data: dict[str, Any]) -> Candidate:
    """From JSON."""
    return Candidate(**{**data, "exits": tuple(data["exits"])})


def main() -> None:
    """Do what standard input says."""
    job = json.loads(sys.stdin.read())
    artifact = Artifact(Path(job["artifact"]))
    if job["what"] == "plan":
        _plan(artifact, job)
    else:
        _answer(artifact, job)


def _say(**line: Any) -> None:
    print(json.dumps(line), flush=True)


def _answer(artifact: Artifact, job: dict[str, Any]) -> None:
    """Every candidate of the job, which load the same, over every link."""
    ways = [candidate_of(one) for one in job["candidates"]]
    first, address = ways[0], [""]
    edge = Edge(
        artifact,
        mode=first.mode,
        placement=first.placement,
        exits=first.exits,
        threads=first.threads,
        wire=first.wire,
        draft=first.draft_path or None,
        connect=lambda: connect(address[0], DEFAULT_LIMITS),
    )
    for link, to in job["links"].items():
        address[0] = to
        for way in ways:
            edge.wire = way.wire
            how = Generation(
                mode=way.mode,
                threshold=way.threshold,
                draft=way.draft,
                ahead=way.ahead,
                max_tokens=job["tokens"],
                ignore_eos=True,
            )
            accounts = [edge.answer(ids, how).finish() for ids in job["prompts"]]
            made = sum(len(one.tokens) for one in accounts)
            _say(
                link=link,
                candidate=asdict(way),
                token_seconds=sum(one.wall_seconds for one in accounts) / made,
                cloud_seconds=sum(one.cloud_seconds for one in accounts) / made,
                bytes=sum(one.bytes_up + one.bytes_down for one in accounts) / made,
                rounds=sum(one.rounds for one in accounts) / made,
                ids=[one.token_ids for one in accounts],
            )


def _plan(artifact: Artifact, job: dict[str, Any]) -> None:
    """The plan of every link, and what was predicted for the candidates of the sweep."""
    device = device_profile(
        artifact, folder=Path(job["cache"]), budget=job["budget"], refresh=job["refresh"]
    )
    said = find_acceptance(artifact, Path("/nowhere"))
    assert said is not None  # recorded before this device was emulated
    for link, to in job["links"].items():
        found = probe(partial(connect, to, DEFAULT_LIMITS), tokens=True)
        world = World(
            device=device,
            acceptance=said.first(job["tokens"]),
            frames=frame_bytes(artifact.architecture.hidden_size),
            link=found.link,
            cloud=found.cloud,
            context=job["context"],
        )
        made = plan(world, Wish(memory_bytes=job["memory_bytes"]))
        model = Model(world)
        predicted = [
            {"candidate": one, **asdict(model.predict(candidate_of(one)))}
            for one in job["candidates"]
        ]
        chosen = made.chosen.predicted
        assert chosen is not None
        _say(
            link=link,
            plan=asdict(made.chosen.candidate),
            predicted=asdict(chosen),
            sweep=predicted,
            probed=asdict(found.link),
        )


if __name__ == "__main__":
    main()
