"""How the server is: for probes, for Prometheus, for the chat page and for `collm ps`."""

from __future__ import annotations

from typing import Any

import psutil

from collm import __version__
from collm.serve.openai.errors import ApiError
from collm.serve.openai.serving import Serving


def check_ready(serving: Serving) -> None:
    """Raises ApiError (503) with the reason where an answer could not be begun."""
    settings, status = serving.engine.settings, serving.engine.status()
    if status.active + status.waiting >= settings.most_active + settings.most_waiting:
        raise ApiError(
            503,
            f"{status.active} answers are under way and {status.waiting} requests wait",
            kind="server_error",
            code="busy",
            retry_seconds=serving.limits.retry_seconds,
        )
    cloud = status.cloud
    can_begin_alone = serving.defaults.mode == "standalone" or (
        settings.begin_offline and bool(serving.engine.exits)
    )
    if cloud is not None and not cloud.ok and not can_begin_alone:
        raise ApiError(
            503,
            cloud.fault,
            kind="server_error",
            code="cloud_unavailable",
            retry_seconds=serving.limits.retry_seconds,
        )


def status_json(serving: Serving) -> dict[str, Any]:
    """GET /collm/status."""
    engine = serving.engine
    settings, artifact, status = engine.settings, engine.artifact, engine.status()
    layers = artifact.architecture.layers
    return {
        "model": serving.name,
        "version": __version__,
        "mode": serving.defaults.mode,
        "modes": list(engine.modes),
        "placement": settings.placement,
        "layers": layers,
        "exits": list(engine.exits),
        "cuts": list(artifact.manifest.cuts),
        "wire": settings.wire,
        "fingerprint": artifact.fingerprint,
        "weights": artifact.manifest.weights,
        "context_length": artifact.architecture.context_length,
        "active": status.active,
        "waiting": status.waiting,
        "most_active": settings.most_active,
        "kept": status.kept,
        "kept_bytes": status.kept_bytes,
        "answers": status.answers,
        "tokens": status.tokens,
        "uptime_seconds": round(status.uptime_seconds, 3),
        "rss_bytes": psutil.Process().memory_info().rss,
        "tiers": _tiers(serving),
    }


def _tiers(serving: Serving) -> list[dict[str, Any]]:
    engine = serving.engine
    layers, placed = engine.artifact.architecture.layers, engine.settings.placement
    tiers: list[dict[str, Any]] = [
        {"role": "device", "first": 0, "last": placed, "ok": True, "address": "this device"}
    ]
    cloud = engine.status().cloud
    end = placed
    for one in cloud.tiers if cloud is not None else ():
        last = one.last or layers
        first = min(max(end, one.first), last)  # it has more, perhaps, that the one below runs
        trip = one.round_trip
        tiers.append(
            {
                "role": one.role,
                "first": first,
                "last": last,
                "ok": one.ok,
                "address": one.address,
                "rtt_ms": None if trip is None else round(1e3 * trip, 3),
                "sessions": one.sessions,
                "error": one.error,
            }
        )
        end = last
    return tiers
