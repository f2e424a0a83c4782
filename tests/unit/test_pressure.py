"""Blocks go when memory runs short, and come back when there has been room for a while."""

from __future__ import annotations

from pathlib import Path

from tests.support import random_artifact

from collm.session.pressure import Pressure, memory_left


class World:
    def __init__(self) -> None:
        self.now = 0.0
        self.left = 10**10

    def clock(self) -> float:
        return self.now

    def memory(self) -> int:
        return self.left


def pressure(tmp_path: Path, world: World) -> Pressure:
    manifest = random_artifact(tmp_path / "a", cuts=(1, 2, 3)).manifest
    return Pressure(manifest, (1, 2, 3), left=world.memory, clock=world.clock)


def test_blocks_go_one_by_one_and_come_back_one_by_one(tmp_path: Path) -> None:
    world = World()
    made = pressure(tmp_path, world)
    assert made() == 3
    seen = []
    world.left = 1
    for _ in range(4):
        world.now += 1
        seen.append(made())
    assert seen == [2, 1, 1, 1]
    world.left = 10**10
    seen = []
    for _ in range(30):
        world.now += 1
        seen.append(made())
    assert seen == [1] * 9 + [2] * 10 + [3] * 11


def test_between_the_bounds_nothing_changes(tmp_path: Path) -> None:
    world = World()
    made = pressure(tmp_path, world)
    made()
    world.now, world.left = 1.0, 1
    assert made() == 2
    world.left = made.reserve + made.reserve // 2
    for _ in range(100):
        world.now += 1
        assert made() == 2


def test_the_system_is_not_asked_at_every_token(tmp_path: Path) -> None:
    world = World()
    made = pressure(tmp_path, world)
    made()
    world.left, world.now = 1, 0.1
    assert made() == 3


def test_there_is_memory_here() -> None:
    assert memory_left() > 2**20
