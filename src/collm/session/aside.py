"""Something that waits, done in a thread, for a generator that must not.

A session's turn at an edge server should end soon, whoever it waits for: others have theirs then.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class _Last(Generic[T]):
    """After the last item: what ended them, if it was an error."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def aside(items: Iterable[T], seconds: float) -> Iterator[T | None]:
    """The items, made in a thread; None every so many seconds that the next is not there yet.

    Raises what making them does. Where it is left before the end the thread goes on until `items`
    end: whoever leaves has to see to that.
    """
    made: queue.SimpleQueue[T | _Last[T]] = queue.SimpleQueue()

    def make() -> None:
        last: _Last[T] = _Last()
        try:
            for item in items:
                made.put(item)
        except BaseException as error:  # noqa: BLE001 - raised where the items are taken
            last = _Last(error)
        made.put(last)

    threading.Thread(target=make, name="collm-aside", daemon=True).start()
    while True:
        try:
            item = made.get(timeout=seconds)
        except queue.Empty:
            yield None
            continue
        if isinstance(item, _Last):
            if item.error is not None:
                raise item.error
            return
        yield item
