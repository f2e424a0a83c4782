"""What edge servers take turns and wait with."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from collm.session.aside import aside
from collm.session.turnstile import Turnstile


def test_who_came_first_goes_first() -> None:
    turnstile, order = Turnstile(), list[int]()

    def pass_through(number: int) -> None:
        with turnstile:
            order.append(number)

    threads = [threading.Thread(target=pass_through, args=(number,)) for number in range(20)]
    with turnstile:
        for number, thread in enumerate(threads):
            thread.start()
            while len(turnstile._waiting) <= number:
                time.sleep(0.001)
        order.append(-1)
    for thread in threads:
        thread.join()
    assert order == list(range(-1, 20))
    with turnstile:
        pass  # and it is free again


def test_one_at_a_time_whatever_happens_inside() -> None:
    turnstile, inside, most = Turnstile(), [0], [0]

    def work() -> None:
        for _ in range(200):
            try:
                with turnstile:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    inside[0] -= 1
                    raise ValueError
            except ValueError:
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (inside, most) == ([0], [1])


def test_aside_gives_turns_while_nothing_comes_and_errors_where_they_are_due() -> None:
    go = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        go.wait(5.0)
        yield 2
        raise KeyError("over")

    running = aside(items(), 0.01)
    assert next(running) == 1
    assert [next(running) for _ in range(3)] == [None, None, None]
    go.set()
    assert next(item for item in running if item is not None) == 2
    with pytest.raises(KeyError, match="over"):
        list(running)
