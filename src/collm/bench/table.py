"""Every contender answers every prompt over every link, and the full model reads the answers.

::

    for each round:
        for each prompt:
            for each link:
                for each contender, in turning order:
                    answer                    # timed; nothing else runs
            read every new text with the whole model, write down what was found, probe the machine

Not covered: sampled answers, several answers at once, connections that have to be opened first.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from collm.bench.contender import Answerer, Contender, Reply, Surroundings
from collm.bench.contenders import PLAIN
from collm.bench.cores import settled_cpu_seconds, timed
from collm.bench.quality import Progress, Prompt
from collm.bench.quality_measure import (
    Judge,
    Likelihood,
    cloud_flops,
    rouge_l,
    same_places,
    same_prefix,
)
from collm.bench.stats import rotated
from collm.bench.table_answers import Key, TableAnswer, TableFile
from collm.bench.table_world import Connector, World
from collm.link.shapes import LinkShape
from collm.model.artifact import Artifact
from collm.runtime.stage import Stage

_WARM_UP_TOKENS = 16
_PROBE_SIZE = 384


@dataclass(frozen=True, kw_only=True)
class Length:
    """How many tokens answers have."""

    tokens: int
    naive_tokens: int

    def of(self, contender: Contender) -> int:
        """Those of this contender."""
        return min(self.tokens, self.naive_tokens) if contender.is_short else self.tokens


class Table:
    """Contenders and the whole model, loaded once, and answers as they are made.

    contenders: the plain cloud first. Raises UsageError where the artifact lacks what one needs.
    """

    def __init__(
        self,
        artifact: Artifact,
        contenders: Sequence[Contender],
        shapes: Sequence[LinkShape],
        world: World,
        *,
        placement: int,
        length: Length,
        threads: int = 1,
        seed: int = 0,
    ) -> None:
        self._artifact = artifact
        self._shapes = shapes
        self._world = world
        self._length = length
        self._connector = Connector(world)
        self._around = Surroundings(
            artifact=artifact,
            placement=placement,
            threads=threads,
            connect=self._connector,
            seed=seed,
        )
        self.contenders = list(contenders)
        self.answerers: dict[str, Answerer] = {
            one.name: one.start(self._around) for one in contenders
        }
        self.probes: list[float] = []
        """Seconds of a fixed computation, once between prompts."""
        self._whole = Stage(artifact, range(artifact.architecture.layers), threads=threads)
        self._probe_matrix = np.random.default_rng(0).normal(size=(_PROBE_SIZE, _PROBE_SIZE))
        self._own: dict[str, list[int]] = {}
        self._read: dict[tuple[str, tuple[int, ...]], Likelihood] = {}

    def keys(self, prompts: Sequence[Prompt], rounds: int) -> list[Key]:
        """Of all answers, in the order in which they are listed."""
        return [
            (shape.name, one.name, prompt.digest, number)
            for number in range(rounds)
            for prompt in prompts
            for shape in self._shapes
            for one in self.contenders
        ]

    def run(
        self,
        prompts: Sequence[Prompt],
        rounds: int,
        kept: TableFile,
        progress: Progress = lambda what, done, total: None,
    ) -> list[TableAnswer]:
        """Answer what is not in `kept` yet; returns all answers to these prompts."""
        keys = self.keys(prompts, rounds)
        missing = {key for key in keys if key not in kept.answers}
        done, total = len(keys) - len(missing), len(keys)
        warm: set[tuple[str, str]] = set()
        for number in range(rounds):
            for index, prompt in enumerate(prompts):
                replies: list[tuple[LinkShape, Contender, _Timed]] = []
                for turn, shape in enumerate(self._shapes):
                    here = [
                        one
                        for one in self.contenders
                        if (shape.name, one.name, prompt.digest, number) in missing
                    ]
                    for one in rotated(here, number * len(prompts) + index + turn):
                        progress(f"{shape.name}: {one.name}", done, total)
                        self._know_own(prompt, kept)
                        if (shape.name, one.name) not in warm:
                            warm.add((shape.name, one.name))
                            self._answer(shape, one, prompt, _WARM_UP_TOKENS)
                        replies.append((shape, one, self._answer(shape, one, prompt)))
                        done += 1
                if replies:
                    progress("reading", done, total)
                    kept.add(self._measured(prompt, number, replies))
                    self._probe()
        progress("done", total, total)
        return kept.of(keys)

    def _know_own(self, prompt: Prompt, kept: TableFile) -> None:
        """The full model's answer, made before what it is needed for."""
        if prompt.digest not in self._own:
            own = kept.own_text(PLAIN, prompt.digest)
            if own is None:
                own = self._answer(self._shapes[0], self.contenders[0], prompt).reply.token_ids
            self._own[prompt.digest] = own

    def _answer(
        self, shape: LinkShape, contender: Contender, prompt: Prompt, most: int | None = None
    ) -> _Timed:
        arguments = contender.cloud_arguments(self._around)
        tokens = self._length.of(contender)
        self._connector.aim(shape, arguments)
        pid = self._world.cloud_pid(arguments)
        cloud_before = settled_cpu_seconds(pid)
        edge_before = time.process_time()
        try:
            reply = self.answerers[contender.name].answer(
                prompt.ids,
                tokens if most is None else min(tokens, most),
                self._own.get(prompt.digest, []),
            )
            edge_cpu = time.process_time() - edge_before
        finally:
            self._connector.drop()
        return _Timed(reply, edge_cpu, settled_cpu_seconds(pid) - cloud_before)

    def _measured(
        self,
        prompt: Prompt,
        number: int,
        replies: Sequence[tuple[LinkShape, Contender, _Timed]],
    ) -> list[TableAnswer]:
        """The answers beside the full model's own."""
        self._judge(prompt, [tuple(made.reply.token_ids) for _, _, made in replies])
        tokenizer = self._artifact.tokenizer()
        answers = []
        for shape, contender, made in replies:
            reply, ids = made.reply, made.reply.token_ids
            own = self._own[prompt.digest][: self._length.of(contender)]
            read = self._read[prompt.digest, tuple(ids)]
            arrivals = np.asarray(reply.arrivals)
            answers.append(
                TableAnswer(
                    link=shape.name,
                    contender=contender.name,
                    prompt=prompt.digest,
                    domain=prompt.domain,
                    round=number,
                    prompt_tokens=len(prompt.ids),
                    token_ids=ids,
                    text=reply.text,
                    wall_seconds=float(arrivals[-1]),
                    first_token_seconds=float(arrivals[0]),
                    gap_seconds=[float(gap) for gap in np.diff(arrivals)],
                    edge_seconds=reply.edge_seconds,
                    cloud_seconds=reply.cloud_seconds,
                    edge_cpu_seconds=made.edge_cpu,
                    cloud_cpu_seconds=made.cloud_cpu,
                    cloud_flops=cloud_flops(
                        self._artifact.architecture,
                        self.answerers[contender.name].cloud_first_layer,
                        reply.cloud_rows,
                        reply.cloud_heads,
                    ),
                    requests=reply.requests,
                    bytes_up=reply.bytes_up,
                    bytes_down=reply.bytes_down,
                    same_prefix=same_prefix(ids, own),
                    same_places=same_places(ids, own),
                    longest=max(len(ids), len(own)),
                    agreed=read.agreed,
                    logprob=read.logprob,
                    rouge_full=rouge_l(tokenizer.decode(ids), tokenizer.decode(own)),
                    identical=ids == own,
                )
            )
        return answers

    def _judge(self, prompt: Prompt, texts: Sequence[tuple[int, ...]]) -> None:
        """Each distinct text once in a run."""
        new = {text for text in texts if (prompt.digest, text) not in self._read}
        if new:
            judge = Judge(self._whole, prompt.ids)
            for text in new:
                self._read[prompt.digest, text] = judge.read(text)
            judge.close()

    def _probe(self) -> None:
        matrix = self._probe_matrix
        self.probes.append(timed(lambda: matrix @ matrix))


@dataclass(frozen=True)
class _Timed:
    """An answer, and the CPU time it took."""

    reply: Reply
    edge_cpu: float
    cloud_cpu: float
