"""Text for tuning without a data set: the instruct model writes user turns and answers them.

The idea of Magpie (Xu et al., arXiv 2406.08464). User turns are sampled at temperature 1; of the
answers every second one is greedy, the others sampled at 0.8. Given texts are cut into chunks,
given prompts are answered in the same way. Everything is decided by the settings, so work that
was interrupted continues to the same bytes.

Not covered: several turns, other system prompts than the template's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from collm.errors import UsageError
from collm.model.artifact import Artifact
from collm.model.files import sha256_of
from collm.tune.backbone import Backbone, load_backbone
from collm.tune.chat_form import ChatForm, chat_form
from collm.tune.corpus import Example, is_held_out
from collm.tune.corpus_writer import CorpusWriter, Written, corpus_writer
from collm.tune.texts import chunks, domain_of, read_prompt_set, read_text, text_files
from collm.tune.wave import Seat, Style, write_wave

TEXT, PROMPTS, CHAT = KINDS = ("text", "prompts", "chat")
TEXT_WAVE = 8
"""Chunks of text that are written to the corpus at once."""
SHORTEST_ANSWER = 32
"""A given prompt that leaves less room for its answer is left out."""
_PATIENCE = 4
"""Waves that may come to nothing before it is given up."""

Told = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class SynthesisConfig:
    """How much text to write, and how. Lengths are in tokens."""

    out: Path
    tokens: int
    """At least this many in the whole corpus; the wave that reaches it is the last."""
    texts: tuple[Path, ...] = ()
    prompts: tuple[Path, ...] = ()
    domain: str | None = None
    """Of the texts, and of prompts that name none; None: by the text's suffix, `chat`."""
    text_share: float = 1.0
    """Chunks of text are taken while they are at most this share of the corpus."""
    prompt_share: float = 1.0
    """The same for answered prompts."""
    slots: int = 128
    """Chats written at once."""
    seed: int = 0
    max_length: int = 288
    """Of a self-written chat, template included."""
    max_user: int = 64
    max_text: int = 384
    """Of a chunk of text, and of a given prompt with its answer."""
    user_temperature: float = 1.0
    answer_temperature: float = 0.8
    held_out: float = 0.06
    """Share of the examples that is held out, decided by a hash of the user turn or text."""


@dataclass(frozen=True, kw_only=True)
class _Source:
    """What is to be written: token ids, for a prompt with where its user turn begins."""

    ids: tuple[int, ...]
    domain: str
    user: int = 1


class Synthesizer:
    """One corpus in the making. Given texts and prompts are read at once, the model when needed."""

    def __init__(self, artifact: Artifact, config: SynthesisConfig, *, device: str = "cpu") -> None:
        self.artifact, self.config, self._device = artifact, config, device
        self._tokenizer = artifact.tokenizer()
        longest = artifact.architecture.context_length
        if max(config.max_length, config.max_text) > longest:
            raise UsageError(
                f"chats of {config.max_length} and texts of {config.max_text} tokens: this model "
                f"has a context of {longest}"
            )
        self.skipped = 0
        """Prompts that were too long."""
        self.chunks = self._shuffled(self._read_texts())
        self.prompts = self._shuffled(self._read_prompts())

    @cached_property
    def backbone(self) -> Backbone:
        """The model."""
        return load_backbone(self.artifact, device=self._device)

    @cached_property
    def form(self) -> ChatForm:
        """The model's chat template, split."""
        form = chat_form(self.artifact)
        needed = len(form.prefix) + self.config.max_user + len(form.suffix)
        if needed >= self.config.max_length:
            raise UsageError(
                f"chats of {self.config.max_length} tokens leave no room for an answer: the "
                f"template and a user turn of {self.config.max_user} take {needed}"
            )
        return form

    def settings(self) -> dict[str, Any]:
        """All that decides the corpus, apart from how long it is."""
        config = self.config
        texts = [
            f"{sha256_of(p)} {config.domain or domain_of(p)}" for p in text_files(config.texts)
        ]
        prompts = [f"{sha256_of(p)} {config.domain or CHAT}" for p in config.prompts]
        plain = (
            "text_share prompt_share slots seed max_length max_user max_text user_temperature "
            "answer_temperature held_out"
        )
        return {
            "artifact": self.artifact.fingerprint,
            **{name: getattr(config, name) for name in plain.split()},
            "text_wave": TEXT_WAVE,
            "texts": texts,
            "prompts": prompts,
        }

    def run(self, told: Told = lambda tokens: None) -> Written:
        """Write until the corpus has its tokens; returns what it holds.

        told: called with the tokens so far, also those of a wave that is not whole yet.
        """
        config, arch = self.config, self.artifact.architecture
        barren = 0
        with corpus_writer(
            config.out,
            tokenizer=self.artifact.manifest.files["tokenizer.json"].sha256,
            vocabulary=arch.vocab_size,
            context=arch.context_length,
            settings=self.settings(),
        ) as writer:
            while (done := writer.written.tokens.total()) < config.tokens:
                told(done)
                kind = self._next_kind(writer.written)
                made = self._wave(kind, writer.written.waves[kind], partial(_plus, told, done))
                examples = self._fresh(writer, made)
                writer.append(kind, examples, [self._readable(e) for e in examples])
                barren = 0 if examples or kind != CHAT else barren + 1
                if barren == _PATIENCE:
                    raise UsageError(
                        f"{self.artifact.folder}: {_PATIENCE * config.slots} chats in a row came "
                        "to nothing (empty, broken or repeated); give texts with --text instead"
                    )
            told(done)
            return writer.written

    def _next_kind(self, written: Written) -> str:
        """Texts, then prompts, as long as there are some and their share is not reached."""
        total = written.tokens.total()
        given = (
            (TEXT, self.chunks, self.config.text_share, TEXT_WAVE),
            (PROMPTS, self.prompts, self.config.prompt_share, self.config.slots),
        )
        for kind, sources, share, size in given:
            left = written.waves[kind] * size < len(sources)
            if left and (share >= 1 or written.tokens[kind] < share * total):
                return kind
        return CHAT

    def _read_texts(self) -> Iterator[_Source]:
        for path in text_files(self.config.texts):
            domain = self.config.domain or domain_of(path)
            encode, longest = self._tokenizer.encode, self.config.max_text
            found = False
            for ids in chunks(read_text(path), encode, longest):
                found = True
                yield _Source(ids=tuple(ids), domain=domain)
            if not found:
                raise UsageError(f"{path}: too little text in it for an example")

    def _read_prompts(self) -> Iterator[_Source]:
        for path in self.config.prompts:
            found = False
            for prompt in read_prompt_set(path, self.config.domain):
                ids = self._tokenizer.encode_chat([{"role": "user", "content": prompt.text}])
                if len(ids) + SHORTEST_ANSWER > self.config.max_text:
                    self.skipped += 1
                    continue
                found = True
                yield _Source(ids=tuple(ids), domain=prompt.domain, user=self.form.user_start(ids))
            if not found:
                raise UsageError(
                    f"{path}: every prompt takes more than "
                    f"{self.config.max_text - SHORTEST_ANSWER} tokens"
                )

    def _shuffled(self, sources: Iterable[_Source]) -> list[_Source]:
        """Each once, mixed, so that a part of them is a fair sample."""
        once = list(dict.fromkeys(sources))
        order = np.random.default_rng(self.config.seed).permutation(len(once))
        return [once[place] for place in order]

    def _wave(self, kind: str, number: int, told: Told) -> Iterator[Example]:
        """The examples of the wave of this kind with this number."""
        slots = self.config.slots
        if kind == TEXT:
            for source in self.chunks[number * TEXT_WAVE : (number + 1) * TEXT_WAVE]:
                ids = np.array(source.ids, np.int32)
                yield self._example(ids, source.domain, greedy=None, user=1, first=1)
            return
        if kind == PROMPTS:
            sources = self.prompts[number * slots : (number + 1) * slots]
        else:
            sources = [_Source(ids=self.form.prefix, domain=CHAT)] * slots
        numbers = range(number * slots, number * slots + len(sources))
        seats = [self._seat(kind, n, s) for n, s in zip(numbers, sources, strict=True)]
        config = self.config
        style = Style(
            max_user=config.max_user,
            user_temperature=config.user_temperature,
            answer_temperature=config.answer_temperature,
        )
        made = write_wave(
            self.backbone, self.form, seats, style, self._tokenizer.eos_ids, told=told
        )
        for seat, source, chat in zip(seats, sources, made, strict=True):
            if chat is not None:
                yield self._example(
                    chat.ids,
                    source.domain,
                    greedy=seat.greedy,
                    user=seat.user,
                    first=chat.answer,
                )

    def _seat(self, kind: str, number: int, source: _Source) -> Seat:
        given = kind == PROMPTS
        return Seat(
            start=source.ids,
            user=source.user if given else len(source.ids),
            answer=len(source.ids) if given else 0,
            greedy=number % 2 == 1,
            limit=self.config.max_text if given else self.config.max_length,
            noise=(self.config.seed, KINDS.index(kind), number),
        )

    def _example(
        self, ids: Any, domain: str, *, greedy: bool | None, user: int, first: int
    ) -> Example:
        example = Example(
            ids=ids, domain=domain, greedy=greedy, user=user, first=first, held_out=False
        )
        return replace(example, held_out=is_held_out(example.digest, self.config.held_out))

    def _fresh(self, writer: CorpusWriter, examples: Iterable[Example]) -> list[Example]:
        """Those whose user turn or text the corpus does not have already."""
        fresh: dict[bytes, Example] = {}
        for example in examples:
            if example.digest not in writer.written.digests:
                fresh.setdefault(example.digest, example)
        return list(fresh.values())

    def _readable(self, example: Example) -> str:
        return self._tokenizer.decode(example.ids[example.user if example.user > 1 else 0 :])


def _plus(told: Told, done: int, tokens: int) -> None:
    told(done + tokens)
