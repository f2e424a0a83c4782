"""Self-generated chat on disk: shards of token ids with the full model's states.

A shard is one safetensors file; its sequences lie end to end (`lengths` cuts them):

- `ids` i32 `[N]`, `lengths` i32 `[sequences]`, `answers` i32 `[sequences]` (index of the first
  token of the assistant's answer), `greedy` u8 `[sequences]`
- `argmax` i32 `[N]`: the full model's likeliest next token, over the full vocabulary
- `states` f16 `[N, cuts + 1, D]`: residual stream at every cut, then before the final norm
- `mass` f32 `[V]`: the full model's probability, summed over the answers' positions

The states come free with generation; computing them again would take half as long as generating.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from collm.errors import SourceError

HELD_OUT_SHARE = 0.05
_TENSORS = ("ids", "argmax", "states", "lengths", "answers", "greedy", "mass")


@dataclass(frozen=True, kw_only=True)
class Chat:
    """One user turn with its answer, as the model wrote them.

    `user` and `answer` are the indices of their first tokens.
    """

    ids_T: NDArray[np.int32]
    argmax_T: NDArray[np.int32]
    states_TCD: NDArray[np.float16]
    user: int
    answer: int
    greedy: bool
    user_digest: bytes

    @property
    def held_out(self) -> bool:
        """Whether the chat belongs to the held-out split: decided by its user turn alone."""
        return int.from_bytes(self.user_digest[:4], "big") < HELD_OUT_SHARE * 2**32


def digest_user_turn(ids: Iterable[int]) -> bytes:
    """Hash of a user turn's token ids, for deduplication and the split."""
    return hashlib.blake2b(np.asarray(list(ids), np.int32).tobytes(), digest_size=16).digest()


def shard_paths(folder: Path) -> list[Path]:
    """The finished shards in a folder, in the order they were written."""
    return sorted(folder.glob("chat-*.safetensors"))


def write_shard(
    folder: Path,
    number: int,
    chats: list[Chat],
    mass_V: NDArray[np.float32],
    *,
    cuts: tuple[int, ...],
    source_sha256: str,
    prefix: int,
    suffix: int,
) -> Path:
    """Write one shard; it appears under its final name only when complete.

    `prefix` tokens come before the user turn, `suffix` tokens between it and the answer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"chat-{number:05d}.safetensors"
    partial = path.with_suffix(".partial")
    tensors = {
        "ids": np.concatenate([chat.ids_T for chat in chats]),
        "argmax": np.concatenate([chat.argmax_T for chat in chats]),
        "states": np.concatenate([chat.states_TCD for chat in chats]),
        "lengths": np.array([len(chat.ids_T) for chat in chats], np.int32),
        "answers": np.array([chat.answer for chat in chats], np.int32),
        "greedy": np.array([chat.greedy for chat in chats], np.uint8),
        "mass": mass_V,
    }
    about = {
        "format": "collm-chat",
        "cuts": json.dumps(cuts),
        "source_sha256": source_sha256,
        "prefix": str(prefix),
        "suffix": str(suffix),
    }
    save_file(tensors, partial, about)
    os.replace(partial, path)
    return path


def shard_about(path: Path) -> dict[str, str]:
    """A shard's metadata. Raises `SourceError` when the file is not a shard."""
    with safe_open(path, "np") as shard:
        about: dict[str, str] = shard.metadata() or {}
    if about.get("format") != "collm-chat":
        raise SourceError(
            f"{path} is not a chat shard of collm.tune; delete it and run synthesize again"
        )
    return about


def read_shard(path: Path) -> tuple[list[Chat], NDArray[np.float32]]:
    """The chats of one shard, and its summed probabilities f32 `[V]`."""
    about = shard_about(path)
    prefix, suffix = int(about["prefix"]), int(about["suffix"])
    with safe_open(path, "np") as shard:
        t = {name: shard.get_tensor(name) for name in _TENSORS}
    ends = np.cumsum(t["lengths"])
    chats = []
    for end, length, answer, greedy in zip(
        ends, t["lengths"], t["answers"], t["greedy"], strict=True
    ):
        span = slice(int(end - length), int(end))
        chats.append(
            Chat(
                ids_T=t["ids"][span],
                argmax_T=t["argmax"][span],
                states_TCD=t["states"][span],
                user=prefix,
                answer=int(answer),
                greedy=bool(greedy),
                user_digest=digest_user_turn(t["ids"][span][prefix : int(answer) - suffix]),
            )
        )
    return chats, t["mass"]


def read_corpus(folder: Path) -> Iterator[Chat]:
    """Every chat of a folder once: a user turn seen in an earlier shard is skipped."""
    seen: set[bytes] = set()
    for path in shard_paths(folder):
        for chat in read_shard(path)[0]:
            if chat.user_digest not in seen:
                seen.add(chat.user_digest)
                yield chat


def summed_mass(folder: Path) -> NDArray[np.float64]:
    """The full model's probability per token, summed over all answers of a folder, f64 `[V]`."""
    masses = []
    for path in shard_paths(folder):
        with safe_open(path, "np") as shard:
            masses.append(shard.get_tensor("mass"))
    if not masses:
        raise SourceError(
            f"no chat shards in {folder}; run `python -m collm.tune synthesize` first"
        )
    total: NDArray[np.float64] = np.sum(masses, axis=0, dtype=np.float64)
    return total
