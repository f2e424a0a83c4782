"""Profiles as JSON, and back: every number and length bounded before it is believed.

A profile comes from a cache folder or from another machine, so it is read as a stranger's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from collm.errors import UsageError
from collm.limits import DEFAULT_LIMITS
from collm.policy.profiles import (
    CloudProfile,
    DeviceProfile,
    LinkProfile,
    PathCost,
    PathSize,
    RowCost,
    ThreadCosts,
)

T = TypeVar("T")

FORMAT, VERSION = "collm-profile", 1
_MOST_ITEMS = DEFAULT_LIMITS.max_layers + 1
_MOST_TEXT = DEFAULT_LIMITS.max_text_bytes
_MOST_NAME = 63
"""Characters of a draft path's name."""
_MOST_BYTES = 2**60


def device_to_json(device: DeviceProfile) -> str:
    """One line of JSON."""
    return json.dumps({"format": FORMAT, "version": VERSION, **asdict(device)}, sort_keys=True)


def device_from_json(text: str) -> DeviceProfile:
    """Raises UsageError, one line, for anything that `device_to_json` cannot have written."""
    return _guarded(text, _device)


def link_to_json(link: LinkProfile) -> dict[str, float]:
    """For `--json`."""
    return asdict(link)


def cloud_to_json(cloud: CloudProfile) -> dict[str, Any]:
    """For `--json`."""
    return asdict(cloud)


def _guarded(text: str, read: Callable[[Mapping[str, Any]], T]) -> T:
    if len(text) > DEFAULT_LIMITS.max_profile_bytes:
        raise UsageError(
            f"a profile of {len(text)} bytes; at most {DEFAULT_LIMITS.max_profile_bytes}"
        )
    try:
        data = json.loads(text)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError("it is none")
        if data.get("version") != VERSION:
            raise ValueError(f"version {data.get('version')!r}, this software reads {VERSION}")
        return read(data)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        told = str(error)[:200]
        raise UsageError(f"no sound profile ({told}); measure again: collm profile") from None


def _device(data: Mapping[str, Any]) -> DeviceProfile:
    bounds = tuple(_whole(one, DEFAULT_LIMITS.max_layers) for one in _list(data["bounds"]))
    blocks = len(bounds) - 1
    if blocks < 1 or list(bounds) != sorted(set(bounds)) or bounds[0] != 0:
        raise ValueError(f"blocks between {bounds[:8]}")
    costs = tuple(_thread_costs(one, blocks) for one in _list(data["costs"]))
    threads = [one.threads for one in costs]
    if not costs or threads != sorted(set(threads)):
        raise ValueError(f"costs of {threads[:8]} threads")
    made = DeviceProfile(
        artifact=_text(data["artifact"]),
        hardware=_text(data["hardware"]),
        software=_text(data["software"]),
        bounds=bounds,
        costs=costs,
        step_seconds=_number(data["step_seconds"], 1e6),
        cores=_whole(data["cores"], 2**16),
        cpu_quota=_number(data["cpu_quota"], 2**16),
        quota_period=_number(data["quota_period"], 100.0),
        memory_bytes=_whole(data["memory_bytes"], _MOST_BYTES),
        base_bytes=_whole(data["base_bytes"], _MOST_BYTES),
        stage_bytes=_whole(data["stage_bytes"], _MOST_BYTES),
        block_bytes=_sizes(data["block_bytes"], blocks),
        exit_bytes=_by_cut(data["exit_bytes"], lambda one: _whole(one, _MOST_BYTES)),
        exit_heads=_by_cut(data["exit_heads"], _text),
        head_bytes={
            _text(name): _whole(size, _MOST_BYTES)
            for name, size in _mapping(data["head_bytes"]).items()
        },
        prefill_bytes=_sizes(data["prefill_bytes"], blocks),
        kv_bytes=_sizes(data["kv_bytes"], blocks),
        row_bytes=_whole(data["row_bytes"], 4 * DEFAULT_LIMITS.max_hidden_size),
        paths=_by_name(data.get("paths", {}), _path_size),
        watts=_number(data["watts"], 1e5),
        battery=_maybe(data["battery"], 1.0),
        on_battery=data["on_battery"] is True,
        celsius=_maybe(data["celsius"], 1000.0),
        throttled=data["throttled"] is True,
        notes=tuple(_text(one) for one in _list(data["notes"])),
    )
    used = {"full", *made.exit_heads.values(), *(path.head for path in made.paths.values())}
    if not used <= made.head_bytes.keys():
        raise ValueError("an exit's head is not among the heads")
    for one in costs:
        if not made.exit_bytes.keys() == made.exit_heads.keys() == one.exits.keys():
            raise ValueError("its exits differ from place to place")
        if made.paths.keys() != one.paths.keys():
            raise ValueError("its draft paths differ from place to place")
    if made.cpu_quota and not made.quota_period:
        raise ValueError("a quota without a period")
    return made


def _thread_costs(data: Any, blocks: int) -> ThreadCosts:
    given = _mapping(data)
    costs = tuple(_row_cost(one) for one in _list(given["blocks"]))
    if len(costs) != blocks:
        raise ValueError(f"costs of {len(costs)} blocks, expected {blocks}")
    threads = _whole(given["threads"], 2**16)
    if not threads:
        raise ValueError("costs of 0 threads")
    return ThreadCosts(
        threads=threads,
        blocks=costs,
        exits=_by_cut(given["exits"], _row_cost),
        head=_row_cost(given["head"]),
        paths=_by_name(given.get("paths", {}), _path_cost),
    )


def _path_cost(data: Any) -> PathCost:
    given = _mapping(data)
    return PathCost(rows=_row_cost(given["rows"]), head=_number(given["head"], 1e6))


def _path_size(data: Any) -> PathSize:
    given = _mapping(data)
    return PathSize(
        bytes=_whole(given["bytes"], _MOST_BYTES),
        prefill_bytes=_whole(given["prefill_bytes"], _MOST_BYTES),
        kv_bytes=_whole(given["kv_bytes"], _MOST_BYTES),
        head=_text(given["head"]),
    )


def _row_cost(data: Any) -> RowCost:
    given = _mapping(data)
    return RowCost(
        rows=tuple(_whole(one, 2**24) for one in _list(given["rows"])),
        seconds=tuple(_number(one, 1e6) for one in _list(given["seconds"])),
    )


def _by_cut(data: Any, read: Callable[[Any], T]) -> dict[int, T]:
    """JSON has words for keys."""
    given = {int(cut): read(value) for cut, value in _mapping(data).items()}
    if not all(1 <= cut <= DEFAULT_LIMITS.max_layers for cut in given):
        raise ValueError("an exit is at no layer")
    return given


def _by_name(data: Any, read: Callable[[Any], T]) -> dict[str, T]:
    """Draft paths. Those from before there were any have none."""
    given = {_text(name): read(value) for name, value in _mapping(data).items()}
    if not all(0 < len(name) <= _MOST_NAME for name in given):
        raise ValueError(f"a draft path's name is not 1 to {_MOST_NAME} characters")
    return given


def _sizes(data: Any, count: int) -> tuple[int, ...]:
    sizes = tuple(_whole(one, _MOST_BYTES) for one in _list(data))
    if len(sizes) != count:
        raise ValueError(f"sizes of {len(sizes)} blocks, expected {count}")
    return sizes


def _list(data: Any) -> list[Any]:
    if not isinstance(data, list) or len(data) > _MOST_ITEMS:
        raise ValueError(f"expected a list of at most {_MOST_ITEMS}")
    return data


def _mapping(data: Any) -> dict[str, Any]:
    if not isinstance(data, dict) or len(data) > _MOST_ITEMS:
        raise ValueError(f"expected an object of at most {_MOST_ITEMS} members")
    return data


def _text(data: Any) -> str:
    if not isinstance(data, str) or len(data) > _MOST_TEXT or not data.isprintable():
        raise ValueError(f"expected printable text of at most {_MOST_TEXT} characters")
    return data


def _whole(data: Any, most: int) -> int:
    if type(data) is not int or not 0 <= data <= most:
        raise ValueError(f"{str(data)[:40]}: expected a whole number from 0 to {most}")
    return data


def _number(data: Any, most: float) -> float:
    if type(data) not in (int, float) or not math.isfinite(data) or not 0 <= data <= most:
        raise ValueError(f"{str(data)[:40]}: expected a number from 0 to {most:g}")
    return float(data)


def _maybe(data: Any, most: float) -> float | None:
    return None if data is None else _number(data, most)
