"""Self-generated chat: the instruct model writes the user's turn, then answers it.

Needs no data set (the idea of Magpie, Xu et al., arXiv 2406.08464). User turns are sampled at
temperature 1; of the answers every second one is greedy, the others sampled at 0.8. Work
already on disk is kept: run it again to continue.

Not covered: several turns, other system prompts.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from collm.errors import PlacementError, SourceError, UsageError
from collm.model.tokenizer import Tokenizer
from collm.tune.backbone import Backbone
from collm.tune.corpus import (
    Chat,
    digest_user_turn,
    read_shard,
    shard_about,
    shard_paths,
    write_shard,
)
from collm.tune.decode import SlotDecoder, sample
from collm.tune.progress import progress_bar

PREFIX = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n<|im_start|>user\n"
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
F16_MAX = 65504.0


@dataclass(frozen=True, kw_only=True)
class SynthesisConfig:
    """How much text to write, and how. Lengths are in tokens."""

    folder: Path
    tokens: int = 146_000
    cuts: tuple[int, ...] = (5, 10, 15, 20)
    slots: int = 192
    max_length: int = 288
    max_user: int = 64
    shard_chats: int = 64
    user_temperature: float = 1.0
    answer_temperature: float = 0.8
    seed: int = 0


@dataclass(kw_only=True)
class _Slot:
    """One chat being written. `position` is where the token `ids[-1]` goes."""

    ids: list[int]
    greedy: bool
    forced: deque[int] = field(default_factory=deque)
    answer: int = 0
    argmax: list[int] = field(default_factory=list)

    @property
    def position(self) -> int:
        return len(self.ids) - 1


class Synthesizer:
    """Keeps every slot busy with a chat; a finished one is collected, its slot starts anew."""

    def __init__(self, backbone: Backbone, config: SynthesisConfig) -> None:
        self.config = config
        self.specials = set(backbone.special_ids)
        tokenizer = Tokenizer(backbone.tokenizer)
        self.prefix = tokenizer.encode(PREFIX)
        self.suffix = tokenizer.encode(SUFFIX)
        needed = len(self.prefix) + config.max_user + len(self.suffix)
        if needed >= config.max_length:
            raise UsageError(
                f"chats of {config.max_length} tokens leave no room for an answer: the template "
                f"and a user turn of {config.max_user} take {needed}"
            )
        self.decoder = SlotDecoder(
            backbone, slots=config.slots, length=config.max_length, cuts=config.cuts
        )
        hidden = backbone.shape.hidden
        self.states_BTCD = torch.zeros(
            config.slots, config.max_length, len(config.cuts) + 1, hidden, dtype=torch.float16
        )
        self.mass_V = torch.zeros(len(backbone.unembedding_VD))
        self.seen: set[bytes] = set()
        self.started = 0
        self.generator = torch.Generator()
        self.slots: list[_Slot] = []

    def begin(self, seed: int) -> None:
        """Fill the slots; the prefix is the same everywhere, so it is run once and stays cached."""
        self.generator.manual_seed(seed)
        argmax_of_prefix = []
        for position, token in enumerate(self.prefix):
            positions_B = torch.full((self.config.slots,), position)
            step = self.decoder.step(torch.full_like(positions_B, token), positions_B)
            self._keep(step.states_BCD, positions_B)
            argmax_of_prefix.append(int(step.logits_BV[0].argmax()))
        self.prefix_argmax = argmax_of_prefix[:-1]
        self.slots = [self._fresh() for _ in range(self.config.slots)]

    def step(self) -> list[Chat]:
        """Write one token in every slot; returns the chats this finished."""
        ids_B = torch.tensor([slot.ids[-1] for slot in self.slots])
        positions_B = torch.tensor([slot.position for slot in self.slots])
        step = self.decoder.step(ids_B, positions_B)
        self._keep(step.states_BCD, positions_B)
        answering_B = torch.tensor([slot.answer > 0 and not slot.forced for slot in self.slots])
        self.mass_V += step.logits_BV[answering_B].softmax(dim=-1).sum(dim=0)
        argmax = step.logits_BV.argmax(dim=-1).tolist()
        temperature_B = torch.tensor([self._temperature(slot) for slot in self.slots])
        drawn = sample(step.logits_BV, temperature_B, self.generator).tolist()
        done = []
        for number, slot in enumerate(self.slots):
            slot.argmax.append(argmax[number])
            if slot.forced:
                slot.ids.append(slot.forced.popleft())
                continue
            outcome = self._extend(slot, drawn[number])
            if outcome is None:
                continue
            if outcome:
                chat = self._collect(number, slot)
                if chat.user_digest not in self.seen:
                    self.seen.add(chat.user_digest)
                    done.append(chat)
            self.slots[number] = self._fresh()
        return done

    def _extend(self, slot: _Slot, token: int) -> bool | None:
        """Append a drawn token. None: goes on; True: the chat is complete; False: to be dropped."""
        user_length = len(slot.ids) - len(self.prefix)
        if not slot.answer:
            ended = token == self.suffix[0]
            if (ended and not user_length) or (token in self.specials and not ended):
                return False
            if ended or user_length == self.config.max_user:
                slot.ids.append(self.suffix[0])
                slot.forced.extend(self.suffix[1:])
                slot.answer = len(slot.ids) + len(self.suffix) - 1
            else:
                slot.ids.append(token)
            return None
        if len(slot.ids) == slot.answer and token in self.specials:
            return False  # an empty answer
        slot.ids.append(token)
        if token in self.specials or len(slot.ids) > self.config.max_length:
            return True
        return None

    def _collect(self, number: int, slot: _Slot) -> Chat:
        length = len(slot.argmax)  # the last token drawn was never run
        user = slot.ids[len(self.prefix) : slot.answer - len(self.suffix)]
        return Chat(
            ids_T=np.array(slot.ids[:length], np.int32),
            argmax_T=np.array(slot.argmax, np.int32),
            states_TCD=self.states_BTCD[number, :length].numpy().copy(),
            user=len(self.prefix),
            answer=slot.answer,
            greedy=slot.greedy,
            user_digest=digest_user_turn(user),
        )

    def _fresh(self) -> _Slot:
        """A slot at the last token of the prefix, whose earlier tokens are cached for good."""
        self.started += 1
        return _Slot(
            ids=list(self.prefix), greedy=self.started % 2 == 0, argmax=list(self.prefix_argmax)
        )

    def _temperature(self, slot: _Slot) -> float:
        if not slot.answer:
            return self.config.user_temperature
        return 0.0 if slot.greedy else self.config.answer_temperature

    def _keep(self, states_BCD: Tensor, positions_B: Tensor) -> None:
        where = torch.arange(len(positions_B))
        self.states_BTCD[where, positions_B] = states_BCD.clamp(-F16_MAX, F16_MAX).half()


def synthesize(backbone: Backbone, config: SynthesisConfig) -> int:
    """Write shards into `config.folder` until it holds `config.tokens` tokens; returns how many.

    Raises `SourceError` when the folder holds shards of another model or other cuts,
    `PlacementError` for cuts that the model does not have.
    """
    if not config.cuts or not 0 < config.cuts[0] <= config.cuts[-1] < len(backbone.layers):
        raise PlacementError(
            f"cuts {list(config.cuts)}: expected layers from 1 to {len(backbone.layers) - 1}"
        )
    writer = Synthesizer(backbone, config)
    tokens = 0
    paths = shard_paths(config.folder)
    for path in paths:
        about = shard_about(path)
        if about["source_sha256"] != backbone.sha256 or about["cuts"] != str(list(config.cuts)):
            raise SourceError(
                f"{path} was made with another model or other cuts; use another folder"
            )
        chats, _ = read_shard(path)
        tokens += sum(len(chat.ids_T) for chat in chats)
        writer.seen.update(chat.user_digest for chat in chats)
    if tokens >= config.tokens:
        return tokens
    writer.begin(config.seed + len(paths))
    number = int(paths[-1].stem.split("-")[1]) + 1 if paths else 0
    with progress_bar() as progress:
        bar = progress.add_task("writing chat", total=config.tokens, completed=tokens)
        waiting: list[Chat] = []
        while tokens < config.tokens:
            for chat in writer.step():
                waiting.append(chat)
                tokens += len(chat.ids_T)
                progress.advance(bar, len(chat.ids_T))
            if len(waiting) >= config.shard_chats or tokens >= config.tokens:
                write_shard(
                    config.folder,
                    number,
                    waiting,
                    writer.mass_V.numpy(),
                    cuts=config.cuts,
                    source_sha256=backbone.sha256,
                    prefix=len(writer.prefix),
                    suffix=len(writer.suffix),
                )
                writer.mass_V.zero_()
                waiting, number = [], number + 1
    return tokens
