"""An edge: this device's share of a model, and answers from it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Unpack

from collm.api.asking import Options, Prompt, generation, prompt_ids
from collm.api.cloud import Cloud, cores
from collm.api.conversation import Conversation
from collm.api.events import Answer
from collm.api.reading import Reading
from collm.api.streams import AsyncStream, Stream, whole
from collm.errors import UsageError
from collm.link.base import Closing
from collm.model.artifact import Artifact
from collm.serve.engine import Engine, EngineSettings, EngineStatus
from collm.serve.reply import Reply
from collm.session.placed import default_placement


class Edge(Closing):
    """Loads a device's share of a model and answers with it, several answers at once.

    Safe to use from several threads, and from asyncio.

    Args:
        artifact: The artifact folder, as `collm build` or `collm pull` made it.
        cloud: A `Cloud`; `"HOST:PORT"`, or several, separated by commas; `"spawn"` for a process
            of its own on this machine, which needs the whole artifact; or None.
        mode: What a request gets that names none: `verified`, `threshold`, `refine`, `standalone`,
            `cloud` or `auto`. Default: `verified`, or `standalone` where a part of the model is
            here and there is no cloud.
        placement: Layers on this device: a cut, 0, or all of them. Default: half of the model,
            without a cloud all of it.
        exits: Cuts whose exits are used. Default: all at or below the placement.
        threads: Compute threads; 0 takes what the machine has.
        wire: How positions travel: `f32`, `f16`, `int8`, `int4`, `ids`, or `auto`.
        begin_offline: Where no cloud answers at first, begin with the exits and verify later.
        ca: With a `cloud` that is a string, as for `Cloud.at`.
        certificate: The same.
        key: The same.
        token: The same.

    Raises:
        ArtifactError: For a folder that is no artifact, or a damaged one.
        PlacementError: For layers or exits that the artifact does not have.
        PromptError: For a mode that cannot be had so: `threshold` needs a cloud.

    Examples:
        With the cloud in a process of its own:

        >>> from collm import Edge, Token
        >>> edge = Edge(artifact, cloud="spawn", threads=1)
        >>> answer = edge.ask("Why is the sky blue?", max_tokens=8, ignore_eos=True)
        >>> len(answer.tokens), answer.finish_reason
        (8, 'length')

        As it is made; what every event adds to the text is its `text`:

        >>> stream = edge.stream("Why is the sky blue?", max_tokens=8, ignore_eos=True)
        >>> "".join(event.text for event in stream) == answer.text
        True
        >>> edge.close()

        The whole model on this device says the same:

        >>> with Edge(artifact) as whole:
        ...     same = whole.ask("Why is the sky blue?", max_tokens=8, ignore_eos=True)
        >>> same.text == answer.text
        True
    """

    def __init__(
        self,
        artifact: str | Path,
        *,
        cloud: Cloud | str | None = None,
        mode: str | None = None,
        placement: int | None = None,
        exits: Sequence[int] | None = None,
        threads: int = 0,
        wire: str = "f32",
        begin_offline: bool = True,
        ca: str | Path | None = None,
        certificate: str | Path | None = None,
        key: str | Path | None = None,
        token: str = "",
    ) -> None:
        if (ca or certificate or key or token) and (not isinstance(cloud, str) or cloud == "spawn"):
            raise UsageError(
                "ca, certificate, key and token go with a cloud given as HOST:PORT; give them to "
                "Cloud.at otherwise"
            )
        opened = Artifact(Path(artifact))
        layers = opened.architecture.layers
        if placement is None:
            placement = layers if cloud is None else default_placement(opened.manifest)
        if mode is None:
            mode = "standalone" if cloud is None and placement < layers else "verified"
        with ExitStack() as stack:
            is_spawned = cloud == "spawn"
            if isinstance(cloud, str):
                cloud = (
                    stack.enter_context(Cloud(artifact, threads=threads or cores(2)))
                    if is_spawned
                    else Cloud.at(cloud, ca=ca, certificate=certificate, key=key, token=token)
                )
            settings = EngineSettings(
                mode=mode,
                placement=placement,
                exits=None if exits is None else tuple(exits),
                threads=threads or cores(2 if is_spawned else 1),
                wire=wire,
                begin_offline=begin_offline,
            )
            connect = None if cloud is None else cloud.connect()
            self._engine = stack.enter_context(Engine(opened, settings, connect))
            self._stack = stack.pop_all()

    @property
    def modes(self) -> tuple[str, ...]:
        """Modes that a request may name, with these layers, these exits and this cloud."""
        return self._engine.modes

    @property
    def placement(self) -> int:
        """Layers on this device."""
        return self._engine.settings.placement

    @property
    def exits(self) -> tuple[int, ...]:
        """Cuts whose exits are in use."""
        return self._engine.exits

    @property
    def status(self) -> EngineStatus:
        """What is going on: answers, kept caches, the cloud's health. Never waits."""
        return self._engine.status()

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Stream:
        """Begin an answer, and give its events as they come.

        Args:
            prompt: A user's message, or a conversation of mappings with `role` and `content`.
            **options: See `Options`.

        Raises:
            PromptError: For a prompt or options that cannot be run.
            Refused: Where too many answers are under way; `retry_seconds` says when to come back.

        Examples:
            >>> tokens = [event for event in edge.stream("Hello", max_tokens=4, ignore_eos=True)
            ...           if isinstance(event, Token)]
            >>> [token.index for token in tokens]
            [0, 1, 2, 3]
            >>> stream = edge.stream("Hello", ignore_eos=True)
            >>> first = next(stream)
            >>> stream.close()  # break it off
            >>> list(stream)
            []
        """
        return Stream(*self._begin(prompt, options))

    def ask(self, prompt: Prompt, **options: Unpack[Options]) -> Answer:
        """The whole answer. As `stream`; raises LinkError as well.

        Examples:
            >>> answer = edge.ask([{"role": "system", "content": "Be brief."},
            ...                    {"role": "user", "content": "Why is the sky blue?"}],
            ...                   max_tokens=6, temperature=0.8, seed=7, ignore_eos=True)
            >>> sum(answer.summary.sources.values())
            6
            >>> sky = {"type": "object", "properties": {"blue": {"type": "boolean"}},
            ...        "required": ["blue"], "additionalProperties": False}
            >>> edge.ask("Is the sky blue?", schema=sky).text
            '{"blue": ...e}'
        """
        stream = self.stream(prompt, **options)
        for _ in stream:
            pass
        return whole(stream.answer)

    def astream(self, prompt: Prompt, **options: Unpack[Options]) -> AsyncStream:
        """As `stream`, in asyncio: `async for event in edge.astream(…)`.

        Examples:
            >>> import asyncio
            >>> async def length() -> int:
            ...     async with edge.astream("Hello", max_tokens=4, ignore_eos=True) as stream:
            ...         return len([event async for event in stream if isinstance(event, Token)])
            >>> asyncio.run(length())
            4
        """
        return AsyncStream(*self._begin(prompt, options))

    async def aask(self, prompt: Prompt, **options: Unpack[Options]) -> Answer:
        """As `ask`, in asyncio.

        Examples:
            >>> async def both() -> bool:
            ...     one, two = await asyncio.gather(
            ...         edge.aask("Hello", max_tokens=4), edge.aask("Hello", max_tokens=4))
            ...     return one.text == two.text
            >>> asyncio.run(both())
            True
        """
        async with self.astream(prompt, **options) as stream:
            async for _ in stream:
                pass
        return whole(stream.answer)

    def chat(self, system: str | None = None, **options: Unpack[Options]) -> Conversation:
        """A conversation that keeps its history. options: of every turn that names no others.

        Examples:
            >>> chat = edge.chat("Be brief.", max_tokens=4, ignore_eos=True)
            >>> first = chat.say("Why is the sky blue?")
            >>> second = chat.say("And at night?")
            >>> [message["role"] for message in chat.messages]
            ['system', 'user', 'assistant', 'user', 'assistant']
        """
        return Conversation(self._begin, system, options)

    def close(self) -> None:
        """Break off what is under way, and give everything back. Idempotent."""
        self._stack.close()

    def _begin(self, prompt: Prompt, options: Options) -> tuple[Reply, Reading]:
        engine = self._engine
        asked = generation(options, engine.settings.mode)
        ids = prompt_ids(engine.tokenizer, prompt, raw=options.get("raw", False))
        reply = engine.start(ids, asked)
        return reply, Reading(reply.account, self.placement, engine.exits)
