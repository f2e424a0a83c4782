"""`collm bench peers`: other people's ways of running the same model, over the same link.

::

    for each round:
        for each prompt:
            for each peer, in turning order:
                answer        # timed; nothing else runs

Peers differ in weights (llama.cpp reads the GGUF file, Transformers its values as float32), so
their texts part from ours at some token; all make as many. Not covered: several users, GPUs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Protocol

from collm.bench.contender import Contender, Surroundings
from collm.bench.cores import settled_cpu_seconds
from collm.bench.quality import Progress, Prompt
from collm.bench.quality_measure import same_prefix
from collm.bench.stats import rotated
from collm.bench.table_world import Connector, World
from collm.link.shapes import LinkShape

PLAIN = "plain cloud"
"""What all are compared with, and the text that theirs is held against."""
_WARM_UP_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class PeerReply:
    """One answer as its user saw it. Seconds since the question."""

    token_ids: list[int]
    arrivals: list[float]
    near_cpu: float
    """CPU seconds on the device's side."""
    far_cpu: float
    """CPU seconds on the cloud's side."""


class Peer(Protocol):
    """A way of running the model, loaded."""

    name: str
    note: str

    def answer(self, prompt: Sequence[int], tokens: int) -> PeerReply:
        """`tokens` greedy tokens from nothing, ends of text ignored."""
        ...


class Ours:
    """A contender of `collm bench table` as a peer."""

    def __init__(
        self, contender: Contender, around: Surroundings, world: World, link: LinkShape
    ) -> None:
        self.name, self.note = contender.name, contender.note
        assert isinstance(around.connect, Connector)
        self._connector, self._world, self._link = around.connect, world, link
        self._arguments = contender.cloud_arguments(around)
        self._answerer = contender.start(around)

    def answer(self, prompt: Sequence[int], tokens: int) -> PeerReply:
        """As the table times it: the connection stands, the session does not."""
        self._connector.aim(self._link, self._arguments)
        pid = self._world.cloud_pid(self._arguments)
        far, near = settled_cpu_seconds(pid), time.process_time()
        try:
            reply = self._answerer.answer(prompt, tokens, ())
            near = time.process_time() - near
        finally:
            self._connector.drop()
        return PeerReply(
            token_ids=reply.token_ids,
            arrivals=reply.arrivals,
            near_cpu=near,
            far_cpu=settled_cpu_seconds(pid) - far,
        )


@dataclass(frozen=True, kw_only=True)
class PeerAnswer:
    """What is kept of an answer. Seconds."""

    peer: str
    prompt: str
    prompt_tokens: int
    round: int
    tokens: int
    wall_seconds: float
    first_token_seconds: float
    near_cpu_seconds: float
    far_cpu_seconds: float
    same_prefix: int
    """Tokens until its text parts from plain cloud's."""

    def to_json(self) -> dict[str, Any]:
        """For the raw file."""
        return asdict(self)


def run_peers(
    peers: Sequence[Peer],
    prompts: Sequence[Prompt],
    *,
    tokens: int,
    rounds: int,
    progress: Progress = lambda what, done, total: None,
) -> list[PeerAnswer]:
    """Every peer's answers, the plain cloud among them. Raises BaselineFailed."""
    answers: list[PeerAnswer] = []
    done, total = 0, rounds * len(prompts) * len(peers)
    for peer in peers:
        progress(f"warming up {peer.name}", done, total)
        peer.answer(prompts[0].ids, _WARM_UP_TOKENS)
    for number in range(rounds):
        for index, prompt in enumerate(prompts):
            made: dict[str, PeerReply] = {}
            for peer in rotated(peers, number * len(prompts) + index):
                progress(peer.name, done, total)
                made[peer.name] = peer.answer(prompt.ids, tokens)
                done += 1
            own = made[PLAIN].token_ids
            for peer in peers:
                reply = made[peer.name]
                answers.append(
                    PeerAnswer(
                        peer=peer.name,
                        prompt=prompt.digest,
                        prompt_tokens=len(prompt.ids),
                        round=number,
                        tokens=len(reply.token_ids),
                        wall_seconds=reply.arrivals[-1],
                        first_token_seconds=reply.arrivals[0],
                        near_cpu_seconds=reply.near_cpu,
                        far_cpu_seconds=reply.far_cpu,
                        same_prefix=same_prefix(reply.token_ids, own),
                    )
                )
    progress("done", total, total)
    return answers


@dataclass(frozen=True, kw_only=True)
class PeerRow:
    """Medians over answers. Seconds."""

    name: str
    against_plain: float
    """Of ratios to plain cloud's time for the same prompt in the same round."""
    per_token: float
    first_token: float
    decode: float
    """A token after the first."""
    near_cpu: float
    far_cpu: float
    """Both a token, prompt included."""
    same_prefix: float


def peer_rows(raw: Mapping[str, Any]) -> list[PeerRow]:
    """The figures of the raw file, in the order of its peers."""
    plain = {(a["prompt"], a["round"]): a for a in raw["answers"] if a["peer"] == PLAIN}
    rows = []
    for peer in raw["peers"]:
        some = [a for a in raw["answers"] if a["peer"] == peer["name"]]

        def middle(
            figure: Callable[[Any], float], some: Sequence[Mapping[str, Any]] = some
        ) -> float:
            return float(median(map(figure, some)))

        rows.append(
            PeerRow(
                name=peer["name"],
                against_plain=middle(
                    lambda a: a["wall_seconds"] / plain[a["prompt"], a["round"]]["wall_seconds"]
                ),
                per_token=middle(lambda a: a["wall_seconds"] / a["tokens"]),
                first_token=middle(lambda a: a["first_token_seconds"]),
                decode=middle(
                    lambda a: (
                        (a["wall_seconds"] - a["first_token_seconds"]) / max(1, a["tokens"] - 1)
                    )
                ),
                near_cpu=middle(lambda a: a["near_cpu_seconds"] / a["tokens"]),
                far_cpu=middle(lambda a: a["far_cpu_seconds"] / a["tokens"]),
                same_prefix=middle(lambda a: a["same_prefix"]),
            )
        )
    return rows


def peers_markdown(raw: Mapping[str, Any]) -> str:
    """The table of docs/benchmarks.md."""
    head = [
        "peer",
        "against plain cloud",
        "ms a token",
        "first token, ms",
        "ms a later token",
        "edge / cloud CPU, ms a token",
        "tokens as plain cloud's",
    ]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
    for row in peer_rows(raw):
        cells = [
            row.name,
            f"{row.against_plain:.2f} ×",
            f"{1e3 * row.per_token:.1f}",
            f"{1e3 * row.first_token:.0f}",
            f"{1e3 * row.decode:.1f}",
            f"{1e3 * row.near_cpu:.1f} / {1e3 * row.far_cpu:.1f}",
            f"{row.same_prefix:.0f} of {raw['options']['tokens']}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
