"""Which configuration of llama.cpp is its best here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from collm.bench.llama_cpp import Completion, LlamaConfig, LlamaCpp
from collm.bench.stats import rotated

TRIAL_ROUNDS = 3
_PREFILL, _DECODE = 256, 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """The least time a token that one configuration needed, of a few rounds."""

    config: LlamaConfig
    decode_seconds: float
    prefill_seconds: float


def try_configurations(
    servers: Sequence[LlamaCpp],
    prompt: Sequence[int],
    long_prompt: Sequence[int],
    step: Callable[[], None],
) -> list[Trial]:
    """Measure every server in turn. `step` is called after each measurement.

    The least time, not the median: noise only ever adds, and a few rounds have to do.
    """
    decode: dict[LlamaConfig, list[float]] = {s.config: [] for s in servers}
    prefill: dict[LlamaConfig, list[float]] = {s.config: [] for s in servers}
    given = long_prompt[:_PREFILL]
    for number in range(TRIAL_ROUNDS):
        for server in rotated(servers, number):
            made: Completion = server.complete(prompt, _DECODE + 1)
            decode[server.config].append(made.decode_seconds / _DECODE)
            made = server.complete(given, 1)
            prefill[server.config].append(made.prefill_seconds / len(given))
            step()
    return [
        Trial(config=c, decode_seconds=min(decode[c]), prefill_seconds=min(prefill[c]))
        for c in decode
    ]


def best(trials: Sequence[Trial]) -> tuple[LlamaConfig, LlamaConfig]:
    """The fastest configuration for decode and, possibly another, for prefill."""
    decode = min(trials, key=lambda trial: trial.decode_seconds)
    prefill = min(trials, key=lambda trial: trial.prefill_seconds)
    return decode.config, prefill.config
