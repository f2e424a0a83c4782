"""What a way of answering costs: measured times, played through texts that were recorded.

A candidate is played as a small simulation of events: the edge computes, rows travel up while it
goes on, the cloud answers one question after another, verdicts travel back. The loops are those of
`collm.session` (`verified`, `threshold`, `standalone`, `cloud`), with times from a `DeviceProfile`,
a `LinkProfile` and a `CloudProfile` where these have calls, and with an `Acceptance` where these
have exits. `docs/planner.md` has the formulas and where they come from.

After a wrong guess the exits are taken to be as sure as they were at the same places of the
recorded text: only how long the edge works in vain hangs on it, never what is accepted.

Not covered: end-of-text tokens inside a text, lookups, deadlines, breaks of the link, a cloud that
drafts by itself (its own measured time a token tells of that).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from collm.policy.cost_talk import (
    PIECE,
    Candidate,
    FrameBytes,
    Says,
    Scene,
    Threshold,
    Told,
    Verified,
    first_cut,
    way,
)
from collm.policy.edge_clock import EdgeClock, Layers, padded_rows, plain_rows
from collm.policy.profiles import (
    F32,
    Acceptance,
    Bools,
    CloudProfile,
    DeviceProfile,
    LinkProfile,
    RowCost,
)

__all__ = [
    "Candidate",
    "FrameBytes",
    "Model",
    "Prediction",
    "World",
    "is_lossless",
    "memory_bytes",
    "predict",
]

LOSSLESS_WIRES: Final = frozenset({"ids", "f32"})
"""Formats in which the cloud sees what the edge has."""
_PATH: Final = 1
"""Where a draft path's exit is, while it is played: after its one chain of layers."""
_LONG_ROWS: Final = 128
"""Rows of one call, where a prompt is run in long ones."""


@dataclass(frozen=True, kw_only=True)
class World:
    """All that a prediction is made from."""

    device: DeviceProfile
    acceptance: Acceptance
    frames: FrameBytes = field(default_factory=FrameBytes)
    link: LinkProfile | None = None
    """None: there is no cloud."""
    cloud: CloudProfile | None = None
    context: int = 1024
    """Positions that have to fit into memory."""

    def first(self, tokens: int) -> World:
        """The same, with answers of at most so many tokens."""
        return replace(self, acceptance=self.acceptance.first(tokens))


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a candidate would do, over all recorded texts."""

    token_seconds: float
    """Wall time of a token, the prompt's and the connection's included."""
    first_token_seconds: float
    bytes_up: float
    """A token."""
    bytes_down: float
    cloud_seconds: float
    """Of computing in the cloud, a token."""
    edge_seconds: float
    """Of CPU time of the edge, a token."""
    joules: float | None
    """Of the edge's cores, a token; None: not known."""
    agreement: float
    """Share of tokens that are the full model's; 1: all, and certain."""
    memory_bytes: int
    """Of the edge's process."""
    rounds: float = 0.0
    """Waits for the cloud, a token."""

    @property
    def tokens_per_second(self) -> float:
        """Of whole answers."""
        return 1.0 / self.token_seconds if self.token_seconds else 0.0


def predict(candidate: Candidate, world: World) -> Prediction:
    """Play the candidate through every recorded text.

    Raises ValueError for a candidate that the profiles do not cover: layers that are no cut, exits
    without a record, a cloud where there is none.
    """
    return Model(world).predict(candidate)


def memory_bytes(candidate: Candidate, world: World) -> int:
    """What the edge's process takes with a text of `world.context` positions."""
    device = world.device
    need = device.base_bytes
    if candidate.mode == "cloud":
        return need
    if candidate.draft_path:
        return need + _path_bytes(candidate.draft_path, world)
    blocks = device.bounds.index(candidate.placement)
    whole = blocks == len(device.block_bytes)
    need += device.stage_bytes + sum(device.block_bytes[:blocks])
    # Verified runs a prompt in short pieces, as its rows go up; where ids do, all at once.
    if candidate.mode != "verified" or whole or candidate.wire == "ids":
        rows = min(1.0, world.context / _LONG_ROWS)
        need += int(rows * sum(device.prefill_bytes[:blocks]))
    need += sum(device.exit_bytes[cut] for cut in candidate.exits)
    heads = {device.exit_heads[cut] for cut in candidate.exits} | ({"full"} if whole else set())
    need += sum(device.head_bytes[name] for name in heads)
    # An exit's adapter has a layer of keys and values of its own, as large as one of the model's.
    layer = max((kv // n for kv, n in zip(device.kv_bytes, _spans(device), strict=True)), default=0)
    kv = sum(device.kv_bytes[:blocks]) + len(candidate.exits) * layer
    states = (1 + len(candidate.exits)) * device.row_bytes
    return need + world.context * (kv + states)


def is_lossless(candidate: Candidate) -> bool:
    """Whether every token is the full model's, bit for bit."""
    if candidate.mode == "cloud":
        return True
    return candidate.mode == "verified" and candidate.wire in LOSSLESS_WIRES


def _path_bytes(name: str, world: World) -> int:
    """Its layers, its head, its cache, and the states before and after its layers."""
    device, path = world.device, world.device.paths[name]
    prefill = int(min(1.0, world.context / _LONG_ROWS) * path.prefill_bytes)
    a_position = path.kv_bytes + 2 * device.row_bytes
    return path.bytes + prefill + device.head_bytes[path.head] + world.context * a_position


def _spans(device: DeviceProfile) -> list[int]:
    return [b - a for a, b in zip(device.bounds, device.bounds[1:], strict=False)]


class Model:
    """Predictions in one world; keeps what candidates share."""

    def __init__(self, world: World) -> None:
        self.world = world
        found = world.acceptance
        self.spans = list(zip(found.starts[:-1].tolist(), found.starts[1:].tolist(), strict=True))
        self._most = int(found.prompts.max()) + max(b - a for a, b in self.spans) + 2
        self._says: dict[tuple[tuple[int, ...] | str, float], list[Says]] = {}
        self._paths: dict[tuple[str, int], tuple[list[float], list[float]]] = {}
        self._edge: dict[tuple[int, bool], tuple[list[list[float]], dict[int, list[float]]]] = {}
        self._cloud: dict[int, list[float]] = {}

    def predict(self, candidate: Candidate) -> Prediction:
        """See `predict`."""
        world = self.world
        self._check(candidate)
        texts = [self._play(candidate, number) for number in range(len(self.spans))]
        tokens = sum(text.tokens for text in texts)
        edge = sum(text.edge for text in texts) / tokens
        return Prediction(
            token_seconds=sum(text.seconds for text in texts) / tokens,
            first_token_seconds=sum(text.first for text in texts) / len(texts),
            bytes_up=sum(text.up for text in texts) / tokens,
            bytes_down=sum(text.down for text in texts) / tokens,
            cloud_seconds=sum(text.cloud for text in texts) / tokens,
            edge_seconds=edge,
            joules=edge * world.device.watts if world.device.watts else None,
            agreement=self.agreement(candidate),
            memory_bytes=memory_bytes(candidate, world),
            rounds=sum(text.rounds for text in texts) / tokens,
        )

    def agreement(self, candidate: Candidate) -> float:
        """Share of tokens that are the full model's, as far as recorded texts tell."""
        if is_lossless(candidate):
            return 1.0
        if candidate.mode == "standalone" and not candidate.exits:
            return 1.0
        wire = 1.0
        if candidate.wire not in LOSSLESS_WIRES:
            first = candidate.exits[0] if candidate.mode == "threshold" else candidate.placement
            wire = self.world.acceptance.wires.get(candidate.wire, {}).get(first, 0.0)
        if candidate.mode == "verified":
            return wire
        right = tokens = 0.0
        for says in self.says(candidate.exits, candidate.threshold):
            tokens += len(says.taken)
            for taken, is_right in zip(says.taken, says.right, strict=True):
                by_exit = taken or candidate.mode == "standalone"
                right += is_right if by_exit else wire
        return right / tokens

    def says(self, exits: tuple[int, ...], threshold: float) -> list[Says]:
        """Of every text."""
        made = self._says.get((exits, threshold))
        if made is None:
            found = self.world.acceptance
            columns = [found.cuts.index(cut) for cut in exits]
            sure, right = found.confidences[:, columns], found.right[:, columns]
            made = self._says[exits, threshold] = self._text_by_text(sure, right, threshold)
        return made

    def path_says(self, name: str, threshold: float) -> list[Says]:
        """What a draft path's exit says, of every text."""
        made = self._says.get((name, threshold))
        if made is None:
            found = self.world.acceptance.paths[name]
            sure, right = found.confidences[:, None], found.right[:, None]
            made = self._says[name, threshold] = self._text_by_text(sure, right, threshold)
        return made

    def _text_by_text(self, sure: F32, right: Bools, threshold: float) -> list[Says]:
        """sure, right: of the exits in use, from shallow to deep, [R, E]."""
        takes: Bools = sure >= np.float32(threshold)
        taken = np.any(takes, axis=1)
        last = np.where(taken, takes.argmax(axis=1), sure.shape[1] - 1)
        rows = np.arange(len(sure))
        lists = (
            (last + 1).tolist(),
            taken.tolist(),
            right[rows, last].tolist(),
            sure[rows, last].astype(float).tolist(),
        )
        return [Says(*(one[a:b] for one in lists)) for a, b in self.spans]

    def _check(self, candidate: Candidate) -> None:
        device, found = self.world.device, self.world.acceptance
        if candidate.mode not in ("cloud", "verified", "threshold", "standalone"):
            raise ValueError(f"mode {candidate.mode!r} cannot be predicted")
        whole = candidate.placement == device.bounds[-1]
        if candidate.placement not in device.bounds:
            raise ValueError(f"placement {candidate.placement} is no cut of this device's profile")
        if not set(candidate.exits) <= set(found.cuts) & device.exit_bytes.keys():
            raise ValueError(f"exits {candidate.exits} were not all recorded and measured")
        if any(cut > candidate.placement for cut in candidate.exits):
            raise ValueError(f"exits {candidate.exits} beyond a placement of {candidate.placement}")
        alone = candidate.mode == "standalone" or (candidate.mode == "verified" and whole)
        if not alone and (self.world.cloud is None or self.world.link is None):
            raise ValueError(f"mode {candidate.mode} needs a cloud")
        if candidate.mode in ("threshold", "standalone") and not (candidate.exits or whole):
            raise ValueError(f"mode {candidate.mode} needs an exit")
        if name := candidate.draft_path:
            if name not in found.paths or name not in device.paths:
                raise ValueError(f"draft path {name!r} was not recorded and measured")
            is_ids = candidate.mode == "verified" and candidate.wire == "ids"
            if not is_ids or candidate.placement or candidate.exits:
                raise ValueError("a draft path goes with mode verified, no layers, and ids")
        if candidate.wire not in self.world.frames.rows:
            raise ValueError(f"wire format {candidate.wire!r} has no known size")

    def _play(self, candidate: Candidate, number: int) -> Told:
        a, b = self.spans[number]
        prompt, tokens = int(self.world.acceptance.prompts[number]), b - a
        if candidate.mode == "cloud":
            return self._play_cloud(prompt, tokens)
        says = self.says(candidate.exits, candidate.threshold)[number] if candidate.exits else None
        if candidate.draft_path:
            says = self.path_says(candidate.draft_path, candidate.threshold)[number]
            edge = self._path_layers(candidate)
            candidate = replace(candidate, exits=(_PATH,))
        else:
            edge = self._layers(candidate)
        if candidate.mode == "standalone" or candidate.placement == self.world.device.bounds[-1]:
            return self._play_alone(candidate, edge, says, prompt, tokens)
        if says is None:
            says = Says([0] * tokens, [False] * tokens, [False] * tokens, [0.0] * tokens)
        link = self.world.link
        assert link is not None
        scene = Scene(
            how=candidate,
            edge=edge,
            says=says,
            prompt=prompt,
            tokens=tokens,
            link=link,
            frames=self.world.frames,
            rows=self.cloud_rows(first_cut(candidate)),
            head=self.cloud_head(),
            step_seconds=self.world.device.step_seconds,
        )
        if candidate.mode == "threshold":
            return Threshold(scene).play()
        return Verified(scene).play()

    def _layers(self, candidate: Candidate) -> Layers:
        """The edge's layers, with nothing run; the modes that are exact pad lone rows."""
        device, exact = self.world.device, candidate.mode == "verified"
        key = candidate.threads, exact
        if key not in self._edge:
            costs = device.with_threads(candidate.threads)
            table = padded_rows if exact else plain_rows
            blocks = [table(cost, self._most) for cost in costs.blocks]
            exits = {cut: plain_rows(cost, self._most) for cut, cost in costs.exits.items()}
            self._edge[key] = blocks, exits
        blocks, exits = self._edge[key]
        return Layers(device.bounds, blocks, exits, EdgeClock.of(device, candidate.threads))

    def _path_layers(self, candidate: Candidate) -> Layers:
        """A draft path as a device of one block and one exit, with nothing run.

        What it computes is never sent, so a lone row is not padded.
        """
        key = candidate.draft_path, candidate.threads
        if key not in self._paths:
            cost = self.world.device.with_threads(candidate.threads).paths[candidate.draft_path]
            self._paths[key] = plain_rows(cost.rows, self._most), [cost.head] * (self._most + 1)
        rows, head = self._paths[key]
        clock = EdgeClock.of(self.world.device, candidate.threads)
        return Layers((0, _PATH), [rows], {_PATH: head}, clock)

    def cloud_rows(self, cut: int) -> list[float]:
        """Seconds of the cloud for 0, 1, 2, … rows from `cut` on, without the head."""
        assert self.world.cloud is not None
        if cut not in self._cloud:
            cost = self.world.cloud.costs.get(cut)
            if cost is None:
                raise ValueError(f"the cloud's time from layer {cut} on is not known")
            self._cloud[cut] = padded_rows(cost, self._most, turn=PIECE)
        return self._cloud[cut]

    def cloud_head(self) -> RowCost:
        """Seconds of the cloud's head."""
        assert self.world.cloud is not None
        return self.world.cloud.costs[self.world.cloud.layers]

    def _play_cloud(self, prompt: int, tokens: int) -> Told:
        """Rows up, then a token after the other down."""
        link, cloud, frames = self.world.link, self.world.cloud, self.world.frames
        assert link is not None and cloud is not None
        clock = EdgeClock.of(self.world.device, 1)
        clock.wait_for(link.connect + link.round_trip)
        up = frames.append + frames.per_id * prompt
        row, head = self.cloud_rows(0), self.cloud_head().at(2)
        arrival = clock.now + way(link, up + 2 * frames.overhead, link.up_bits)
        first = row[prompt] + head
        each = cloud.token_seconds or row[1] + head
        down = way(link, frames.token + frames.overhead, link.down_bits)
        each = max(each, down - link.round_trip / 2)
        computed = first + (tokens - 1) * (row[1] + head)
        begun = arrival + first + down
        told = Told(tokens=tokens, rounds=1, right=tokens, first=begun, cloud=computed)
        for number in range(tokens):
            clock.wait_for(begun + number * each)
            clock.compute(self.world.device.step_seconds + link.trip_cpu / 2)
        told.seconds, told.edge = clock.now, clock.busy
        told.up, told.down = up + frames.session // 2, frames.token * tokens + frames.session // 2
        return told

    def _play_alone(
        self, candidate: Candidate, edge: Layers, says: Says | None, prompt: int, tokens: int
    ) -> Told:
        """Every token here: what an exit says, or the whole model."""
        whole = candidate.placement == self.world.device.bounds[-1]
        costs = self.world.device.with_threads(candidate.threads)
        head = costs.head.at(2 if candidate.mode == "verified" else 1)
        told = Told(tokens=tokens)
        for i in range(tokens):
            n, taken = prompt + i, False
            if says is not None:
                for cut in candidate.exits[: says.asked[i]]:
                    edge.ask(cut, n)
                taken = says.taken[i] or not whole
            if not taken:
                edge.run(candidate.placement, n)
                edge.clock.compute(head)
            edge.clock.compute(self.world.device.step_seconds)
            if not i:
                told.first = edge.clock.now
        told.seconds, told.edge = edge.clock.now, edge.clock.busy
        return told
