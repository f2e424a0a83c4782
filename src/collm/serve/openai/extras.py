"""What CoLLM adds under the key `collm`: where a token was made, and what an answer took."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from collm.config import Way
from collm.serve.engine import Engine
from collm.serve.openai.live import Choice
from collm.session.events import Account, EmittedToken, Piece


@lru_cache(maxsize=256)
def exit_of(source: str) -> int | None:
    """The cut of the exit that made it, of the device or of an edge server."""
    _, _, cut = source.partition("@")
    return int(cut) if cut.isdecimal() else None


def token_extra(choice: Choice, token: EmittedToken) -> dict[str, Any]:
    """Of a chunk that carries the choice's next token."""
    account, index = choice.reply.account, choice.told
    seconds = account.token_seconds
    extra: dict[str, Any] = {
        "source": token.source,
        "exit": exit_of(token.source),
        "confidence": _share(token.confidence),
        "by": token.by,
        "provisional": token.provisional,
        "index": index,
        "ms": round(1e3 * seconds[index], 2) if index < len(seconds) else None,
    }
    while choice.changes < len(account.changes) and account.changes[choice.changes].index <= index:
        change = account.changes[choice.changes]
        extra["way"] = {**_way(change.way), "reason": change.reason}
        choice.changes += 1
    traffic = account.bytes_up, account.bytes_down
    if traffic != choice.traffic:  # once a round, not with every token that it brought
        choice.traffic = traffic
        extra["bytes_up"], extra["bytes_down"] = traffic
    return extra


def preview_extra(piece: Piece) -> dict[str, Any]:
    """Of a chunk that shows what may be taken back."""
    return {
        "source": piece.token.source,
        "exit": exit_of(piece.token.source),
        "confidence": _share(piece.token.confidence),
        "provisional": True,
        "preview": piece.text,
    }


def final_extra(engine: Engine, choice: Choice) -> dict[str, Any]:
    """Of an answer that is complete."""
    extra: dict[str, Any] = {"summary": summary(engine, choice.reply.account)}
    if choice.generation.sampling.temperature:
        extra["seed"] = choice.generation.sampling.seed
    return extra


def summary(engine: Engine, account: Account) -> dict[str, Any]:
    """An account, in milliseconds and bytes."""
    wall = account.wall_seconds
    return {
        "mode": account.mode,
        "placement": engine.settings.placement,
        "exits": list(engine.exits),
        "sources": account.sources,
        "rounds": account.rounds,
        "drafted": account.drafted,
        "cloud_rows": account.cloud_rows,
        "bytes_up": account.bytes_up,
        "bytes_down": account.bytes_down,
        "edge_ms": _ms(account.edge_seconds),
        "cloud_ms": _ms(account.cloud_seconds),
        "wall_ms": _ms(wall),
        "ttft_ms": _ms(account.first_token_seconds),
        "tokens_per_second": round(len(account.tokens) / wall, 2) if wall > 0 else None,
        "reconnects": account.reconnects,
        "replayed_bytes": account.replayed_bytes,
        "previewed": account.previewed,
        "withdrawn": account.withdrawn,
        "provisional": account.provisional,
        "degraded": account.degraded,
        "reused_tokens": account.reused_tokens,
        "changes": [
            {"index": one.index, **_way(one.way), "reason": one.reason} for one in account.changes
        ],
    }


def _way(way: Way) -> dict[str, Any]:
    return {"mode": way.mode, "placement": way.placement, "wire": way.wire}


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 3)


def _share(confidence: float | None) -> float | None:
    """JSON has no NaN."""
    if confidence is None or not math.isfinite(confidence):
        return None
    return round(confidence, 4)
