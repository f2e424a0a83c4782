"""Exits that see a window: their memory is bounded by it, and what they say is unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.exit_files import exit_file
from tests.support import F32, random_artifact

from collm.limits import Limits
from collm.model.artifact import Artifact
from collm.model.exits import add_exit
from collm.runtime.stage import Stage, StageSession

CUT, WIDTH, CONTEXT, WINDOW = 1, 64, 4096, 16
TEXT = 400
BOUNDED = Limits(kv_step=16, max_draft_tokens=40)
UNBOUNDED = Limits(kv_step=16, max_draft_tokens=CONTEXT)
"""With this much room for rejected drafts nothing is ever forgotten."""


def stage_of(folder: Path, limits: Limits, weights: str = "fp32", **exit_: Any) -> Stage:
    artifact = random_artifact(folder / "a", weights=weights, max_position_embeddings=CONTEXT)
    x = exit_file(folder / "x", artifact.architecture, CUT, "layer", **exit_)
    add_exit(artifact.folder, x)
    return Stage(Artifact(artifact.folder), range(CUT), exits=(CUT,), limits=limits)


def states(rows: int, seed: int = 0) -> F32:
    return np.random.default_rng(seed).normal(0, 1, (rows, WIDTH)).astype(np.float32)


def pair(folder: Path, **options: Any) -> tuple[StageSession, StageSession]:
    """The same exit, forgetting and not."""
    (folder / "b").mkdir()
    bounded = stage_of(folder, BOUNDED, **options)
    return bounded.open(CUT), stage_of(folder / "b", UNBOUNDED, **options).open(CUT)


def cache_bytes(session: StageSession) -> int:
    return session._exits[CUT].cache.bytes


def check_same(one: StageSession, other: StageSession, largest: float = 2e-5) -> None:
    """Not bit for bit: attention sums over other tiles when older positions are gone."""
    a, b = one.exit_logits(CUT), other.exit_logits(CUT)
    assert np.abs(a - b).max() < largest
    if largest < 1e-3:
        assert a.argmax() == b.argmax()


@pytest.mark.parametrize("layers", [1, 2])
def test_memory_is_bounded_by_the_window_and_the_guesses_stay(tmp_path: Path, layers: int) -> None:
    one, other = pair(tmp_path, window=WINDOW, layers=layers)
    row = 2 * layers * 2 * 16 * 4  # keys and values: layers, heads, head size, bytes
    bound = WINDOW - 1 + BOUNDED.max_draft_tokens + 128 + BOUNDED.kv_step
    hidden, held = states(TEXT), 0
    for i in range(TEXT):
        for session in (one, other):
            session.append_hidden(hidden[i : i + 1])
        check_same(one, other)
        held = max(held, cache_bytes(one))
    assert held <= row * bound
    assert cache_bytes(other) >= row * TEXT


def test_memory_of_a_short_text_stays_small(tmp_path: Path) -> None:
    session = stage_of(tmp_path, Limits(kv_step=16), window=WINDOW).open(CUT)
    session.append_hidden(states(20))
    session.exit_at(CUT)
    assert cache_bytes(session) == 32 * 2 * 2 * 16 * 4


@pytest.mark.parametrize(
    ("weights", "window"),
    [("fp32", 1), ("fp32", 3), ("fp32", WINDOW), ("fp32", 200), ("int4", WINDOW)],
)
def test_a_long_prompt_runs_through_bounded_memory(
    tmp_path: Path, weights: str, window: int
) -> None:
    one, other = pair(tmp_path, window=window, layers=2, weights=weights, packed=True)
    hidden = states(TEXT)
    for session in (one, other):
        session.append_hidden(hidden)
    largest = 2e-5 if weights == "fp32" else 0.1  # a rounding of inputs to 8 bits may turn
    # Every row of the prompt, then further on token by token.
    assert np.abs(one.exit_row_logits(CUT, 0) - other.exit_row_logits(CUT, 0)).max() < largest
    for row in states(120, seed=1):
        for session in (one, other):
            session.append_hidden(row[None])
        check_same(one, other, largest)
    room = window - 1 + BOUNDED.max_draft_tokens + max(window, 128) + BOUNDED.kv_step
    assert cache_bytes(one) <= 2 * 2 * 2 * 16 * 4 * room


def test_drafts_are_taken_back_at_any_time(tmp_path: Path) -> None:
    one, other = pair(tmp_path, window=WINDOW, layers=2)
    random = np.random.default_rng(7)
    position, depths = 0, set()
    for seed in range(50):
        draft = int(random.integers(1, 41)) if seed % 5 else BOUNDED.max_draft_tokens
        for row in np.array_split(states(draft, seed), random.integers(1, draft + 1)):
            for session in (one, other):
                session.append_hidden(row)
            check_same(one, other)
        depth = int(random.integers(0, draft)) if seed % 5 else draft
        position += draft - depth
        depths.add(depth)
        for session in (one, other):
            session.crop(position)
        assert one.position == position
    assert position > 10 * WINDOW and {0, BOUNDED.max_draft_tokens} <= depths


def test_after_going_further_back_the_window_fills_again(tmp_path: Path) -> None:
    one, other = pair(tmp_path, window=WINDOW)
    hidden = states(TEXT)
    for target in (TEXT // 2, 5, 0):
        for session in (one, other):
            session.append_hidden(hidden[session.position :])
            session.exit_at(CUT)
            session.crop(target)
            session.append_hidden(hidden[target : target + 2])
        guess = one.exit_logits(CUT)  # of a shorter past
        assert np.isfinite(guess).all()
        for i in range(target + 2, target + 3 * WINDOW):
            for session in (one, other):
                session.append_hidden(hidden[i : i + 1])
                session.exit_at(CUT)
            if i >= target + WINDOW - 1:
                check_same(one, other)


def test_exits_with_and_without_a_window_share_a_stage(tmp_path: Path) -> None:
    """The rotary tables are shared, and looked at from different positions."""
    artifact = random_artifact(tmp_path / "a", max_position_embeddings=CONTEXT, cuts=(1, 2))
    for cut, window in ((1, 0), (2, WINDOW)):
        x = exit_file(tmp_path / "x", artifact.architecture, cut, "layer", window=window)
        add_exit(artifact.folder, x)
    artifact = Artifact(artifact.folder)
    together = Stage(artifact, range(2), exits=(1, 2), limits=BOUNDED)
    sessions = [together.open(), together.open()]
    ids = np.random.default_rng(3).integers(3, 300, (2, 400)).tolist()
    for i in range(0, 400, 2):
        for session, text in zip(sessions, ids, strict=True):
            session.append_ids(text[i : i + 2])
            session.exit_at(1)
            session.exit_at(2)
    for session, text in zip(sessions, ids, strict=True):
        for cut in (1, 2):
            alone = Stage(artifact, range(2), exits=(cut,), limits=UNBOUNDED).open()
            alone.append_ids(text)
            assert np.abs(session.exit_logits(cut) - alone.exit_logits(cut)).max() < 1e-4
