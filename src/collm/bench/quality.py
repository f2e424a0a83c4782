"""Every setting answers every prompt, and the full model reads the answers.

::

    for each prompt:                          # prompt-major: noise of the machine is shared
        for each setting, in turning order:   # the baseline, `cloud`, is one of them; it comes
                                              # first where an oracle drafts what it said
            answer                            # over the link, as users have it
        read every answer with the whole model, here
        write down what was found

Not covered: sampled answers, several answers at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from collm.bench.datasets import Item
from collm.bench.quality_answers import Answered, AnswerFile, Header
from collm.bench.quality_measure import (
    Judge,
    cloud_flops,
    repeated_ngrams,
    rouge_l,
    same_places,
    same_prefix,
)
from collm.bench.quality_settings import BASELINE, Setting
from collm.bench.stats import rotated
from collm.errors import PromptError
from collm.link.base import Link
from collm.model.artifact import Artifact
from collm.model.files import sha256_of
from collm.model.tokenizer import Tokenizer
from collm.policy.coherence import CoherenceTracker
from collm.runtime.stage import Stage
from collm.session.edge import Edge
from collm.session.events import Account

Progress = Callable[[str, int, int], None]
"""Told what is going on, answers done, and answers in all."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt as all settings get it."""

    ids: tuple[int, ...]
    domain: str
    reference: str | None
    was_cut: bool = False

    @property
    def digest(self) -> str:
        """What its answers are stored under."""
        ids = ",".join(map(str, self.ids))
        return hashlib.blake2b(ids.encode(), digest_size=12).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What there is to answer, and what became of the rest."""

    chosen: list[Prompt]
    too_long: int
    """Left out: with the answer they would not fit into the model's context."""
    doubles: int
    """Left out: the same prompt came before."""

    @property
    def cut(self) -> int:
        """Prompts whose article was cut."""
        return sum(prompt.was_cut for prompt in self.chosen)


def read_prompts(
    artifact: Artifact, items: Sequence[Item], *, prompt_tokens: int, max_tokens: int
) -> Prompts:
    """Token ids of every item: articles cut to `prompt_tokens`, doubles and giants left out.

    Raises PromptError where nothing is left.
    """
    tokenizer, room = artifact.tokenizer(), artifact.architecture.context_length - max_tokens
    found: dict[str, Prompt] = {}
    too_long = doubles = 0
    for item in items:
        prompt = encode_item(tokenizer, item, min(prompt_tokens, room))
        if not 0 < len(prompt.ids) <= room:
            too_long += 1
        elif prompt.digest in found:
            doubles += 1
        else:
            found[prompt.digest] = prompt
    if not found:
        raise PromptError(
            f"none of {len(items)} prompts leaves room for {max_tokens} tokens in the model's "
            f"context of {artifact.architecture.context_length}; give shorter ones"
        )
    return Prompts(chosen=list(found.values()), too_long=too_long, doubles=doubles)


def encode_item(tokenizer: Tokenizer, item: Item, limit: int) -> Prompt:
    """An item's token ids; what is too long of an article, or of text to go on with, is cut."""
    ids, was_cut = _encode(tokenizer, item, item.article), False
    if item.article and len(ids) > limit:
        was_cut = True
        kept = tokenizer.encode(item.article)
        # Tokens do not add up exactly where texts are joined, so perhaps more than once.
        while kept and len(ids) > limit:
            kept = kept[: max(0, len(kept) - (len(ids) - limit))]
            ids = _encode(tokenizer, item, tokenizer.decode(kept))
    elif len(ids) > limit and not item.is_chat:
        was_cut = True
        start = 0 if item.ids else len(tokenizer.encode(""))  # a token that begins every text
        ids = ids[:start] + ids[start - limit :]  # what comes next depends on the end
    return Prompt(ids=tuple(ids), domain=item.domain, reference=item.reference, was_cut=was_cut)


def _encode(tokenizer: Tokenizer, item: Item, article: str) -> list[int]:
    if item.ids:
        return list(item.ids)
    if item.messages:
        return tokenizer.encode_chat(item.messages)
    text = f"{item.prompt}\n\n{article}" if article else item.prompt
    if item.is_chat and tokenizer.has_chat_template:
        return tokenizer.encode_chat([{"role": "user", "content": text}])
    return tokenizer.encode(text)


def header_of(
    artifact: Artifact,
    data: Path,
    *,
    max_tokens: int,
    prompt_tokens: int,
    cloud: str,
    threads: int,
) -> Header:
    """What all answers of one run share."""
    return Header(
        fingerprint=artifact.fingerprint,
        manifest=sha256_of(artifact.folder / "manifest.json"),
        data=sha256_of(data),
        max_tokens=max_tokens,
        prompt_tokens=prompt_tokens,
        cloud=cloud,
        threads=threads,
    )


class Bench:
    """Edges and the whole model, loaded once, and answers as they are made.

    settings: the baseline among them. connect: makes a link to the cloud.
    """

    def __init__(
        self,
        artifact: Artifact,
        settings: Sequence[Setting],
        connect: Callable[[], Link],
        *,
        max_tokens: int,
        threads: int = 1,
    ) -> None:
        self._artifact = artifact
        self._max_tokens = max_tokens
        self._settings = settings
        edges: dict[tuple[object, ...], Edge] = {}
        self._edges: dict[str, Edge] = {}
        for setting in settings:
            edge = edges.get(setting.edge_key)
            if edge is None:
                edge = edges[setting.edge_key] = Edge(
                    artifact,
                    mode=setting.mode,
                    placement=setting.placement,
                    exits=setting.exits,
                    threads=threads,
                    connect=connect,
                    wire=setting.wire,
                    first_cut=setting.first_cut,
                )
            edge.criterion(setting.generation(max_tokens))  # a criterion that is wrong: say so now
            self._edges[setting.key] = edge
        self._whole = Stage(artifact, range(artifact.architecture.layers), threads=threads)

    def run(
        self, prompts: Sequence[Prompt], kept: AnswerFile, progress: Progress | None = None
    ) -> list[Answered]:
        """Answer what is not in `kept` yet; returns the answers to these prompts, prompt-major."""
        total, done = len(prompts) * len(self._settings), 0
        for number, prompt in enumerate(prompts):
            missing = [s for s in self._settings if (s.key, prompt.digest) not in kept.answers]
            done += len(self._settings) - len(missing)
            accounts: dict[str, Account] = {}
            for setting in _in_turn(missing, number):
                if progress is not None:
                    progress(setting.label, done, total)
                own = self._own(prompt, accounts, kept)[0] if setting.drafter else ()
                accounts[setting.key] = self._answer(setting, prompt, own)
                done += 1
            if missing:
                kept.add(self._judge(prompt, missing, accounts, kept))
        if progress is not None:
            progress("done", total, total)
        made = kept.of([s.key for s in self._settings], [prompt.digest for prompt in prompts])
        assert made is not None
        return made

    def _answer(self, setting: Setting, prompt: Prompt, own: Sequence[int]) -> Account:
        edge, generation = self._edges[setting.key], setting.generation(self._max_tokens)
        return edge.answer(prompt.ids, generation, setting.oracle(own)).finish()

    def _own(
        self, prompt: Prompt, accounts: dict[str, Account], kept: AnswerFile
    ) -> tuple[list[int], str]:
        """The full model's answer, which may have been made in an earlier run."""
        made = accounts.get(BASELINE.key) or kept.answers[BASELINE.key, prompt.digest]
        return made.token_ids, made.text

    def _judge(
        self,
        prompt: Prompt,
        settings: Sequence[Setting],
        accounts: dict[str, Account],
        kept: AnswerFile,
    ) -> Iterator[Answered]:
        """Measure the answers beside the baseline's."""
        own, own_text = self._own(prompt, accounts, kept)
        judge = Judge(self._whole, prompt.ids)
        for setting in settings:
            account = accounts[setting.key]
            ids = account.token_ids
            read = judge.read(ids)
            repeated, ngrams = repeated_ngrams(ids)
            reference = prompt.reference
            yield Answered(
                setting=setting.key,
                prompt=prompt.digest,
                domain=prompt.domain,
                prompt_tokens=account.prompt_tokens,
                text=account.text,
                token_ids=ids,
                finish_reason=account.finish_reason,
                sources=account.sources,
                criteria=_counts([token.by for token in account.tokens]),
                agreed=read.agreed,
                logprob=read.logprob,
                same_prefix=same_prefix(ids, own),
                same_places=same_places(ids, own),
                longest=max(len(ids), len(own)),
                rouge_full=rouge_l(account.text, own_text),
                rouge_reference=None if reference is None else rouge_l(account.text, reference),
                repeated_ngrams=repeated,
                ngrams=ngrams,
                end_repetition=_end_repetition(ids),
                drift=None if account.coherence is None else account.coherence.drift,
                rounds=account.rounds,
                cloud_rows=account.cloud_rows,
                cloud_heads=account.cloud_heads,
                cloud_flops=cloud_flops(
                    self._artifact.architecture,
                    self._cloud_start(setting),
                    account.cloud_rows,
                    account.cloud_heads,
                ),
                bytes_up=account.bytes_up,
                bytes_down=account.bytes_down,
                degraded=account.degraded,
                edge_seconds=account.edge_seconds,
                cloud_seconds=account.cloud_seconds,
                wall_seconds=account.wall_seconds,
                first_token_seconds=account.first_token_seconds,
                logprob_before=account.logprob_before,
                logprob_after=account.logprob_after,
                corrections=sum(one.rejected is not None for one in account.passes),
            )
        judge.close()

    def _cloud_start(self, setting: Setting) -> int:
        """The layer that the cloud begins with."""
        if setting.mode == "cloud":
            return 0
        if setting.mode == "threshold":
            return self._edges[setting.key].first_cut
        return setting.placement


def _in_turn(settings: Sequence[Setting], number: int) -> list[Setting]:
    order = rotated(settings, number)
    if any(setting.drafter for setting in settings):
        order.sort(key=lambda setting: setting.key != BASELINE.key)
    return order


def _counts(names: Sequence[str]) -> dict[str, int]:
    return {name: names.count(name) for name in dict.fromkeys(names)}


def _end_repetition(ids: Sequence[int]) -> float:
    tracker = CoherenceTracker()
    for token_id in ids:
        tracker.push(token_id, 1.0, 0.0)
    return tracker.read().repetition
