"""`collm chat`: a conversation in the terminal, with an engine here or with a server."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from collm.cli.chat_commands import Commands
from collm.cli.chat_show import ChatPrinter, tally_line
from collm.cli.chat_state import SETTINGS, Conversation
from collm.cli.complete import complete_modes, complete_names, complete_wires
from collm.cli.options import (
    AheadOption,
    BatchOption,
    CloudOption,
    CriterionOption,
    DeadlineOption,
    DraftOption,
    ExitsOption,
    JsonOption,
    LookupOption,
    RepetitionOption,
    RouteOption,
    TemperatureOption,
    ThreadsOption,
    ThresholdOption,
    TopKOption,
    TopPOption,
    given_options,
    layer_count,
    numbers,
    thread_count,
)
from collm.cli.remote import open_placed
from collm.cli.security import CaOption, CertOption, KeyOption, TokenFileOption, client_security
from collm.cli.show import Palette
from collm.config import Generation, Sampling
from collm.errors import CollmError, PromptError, Unreachable, UsageError
from collm.limits import DEFAULT_LIMITS
from collm.link.source_address import is_source
from collm.serve.registry import running
from collm.serve.talk import EngineTalker, Said, Talker
from collm.serve.talk_server import ServerTalker


def chat_command(
    context: typer.Context,
    artifact: Annotated[
        str | None,
        typer.Argument(
            help="The artifact folder, or addresses to fetch what is needed from, or the URL of a "
            "server; default: the collm serve that runs here. With --server it is the question.",
            metavar="[ARTIFACT|URL]",
            autocompletion=complete_names,
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Argument(help="Ask this, print the answer, and end.")
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(help="URL of a collm serve, or of another server with OpenAI's API."),
    ] = None,
    model: Annotated[str, typer.Option(help="The server's model; default: its first.")] = "",
    cloud: CloudOption = None,
    route: RouteOption = "order",
    ca: CaOption = None,
    cert: CertOption = None,
    key: KeyOption = None,
    token_file: TokenFileOption = None,
    mode: Annotated[
        str | None,
        typer.Option(
            help="verified, threshold, refine, standalone, cloud or auto; default: verified, or "
            "standalone where a part of the model is here and there is no cloud.",
            autocompletion=complete_modes,
        ),
    ] = None,
    placement: Annotated[
        str | None, typer.Option(help="Layers on the edge: a cut, 0, or all of them.")
    ] = None,
    exits: ExitsOption = None,
    threads: ThreadsOption = 0,
    threshold: ThresholdOption = 0.6,
    criterion: CriterionOption = "",
    wire: Annotated[
        str,
        typer.Option(
            help="How positions travel: f32, f16, int8, int4, ids or auto; see collm run.",
            autocompletion=complete_wires,
        ),
    ] = "f32",
    deadline: DeadlineOption = 0.0,
    draft: DraftOption = 8,
    batch: BatchOption = 1,
    ahead: AheadOption = None,
    lookup: LookupOption = False,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 1024,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    seed: Annotated[int, typer.Option(help="Same seed, same text.")] = 0,
    repetition_penalty: RepetitionOption = 1.0,
    system: Annotated[str, typer.Option(help="What the model is told first.")] = "",
    lines: Annotated[
        bool,
        typer.Option(
            "--lines", help="Where input is no terminal: each line of it is a turn, or a command."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Talk with a model. /help lists commands, Ctrl-C breaks an answer off, Ctrl-D leaves.

    Where the input is no terminal, all of it is one question.
    """
    generation = Generation(
        mode=mode or "verified",
        max_tokens=max_tokens,
        threshold=threshold,
        criterion=criterion,
        deadline_seconds=deadline / 1000,
        draft=draft,
        batch=batch,
        ahead=ahead,
        lookup=lookup,
        sampling=Sampling(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            repetition_penalty=repetition_penalty,
        ),
    )
    if server is not None:
        if artifact is not None and prompt is not None:
            raise UsageError(
                f"{artifact[:80]}: with --server there is no artifact; name one of the two, and "
                "quote the question"
            )
        if artifact is not None:
            artifact, prompt = None, artifact
    security = client_security(ca, cert, key, token_file)
    # $COLLM_TOKEN is a cloud's: no server is to see it.
    token = client_security(ca, cert, key, token_file, environment=False).token
    given = {name.replace("_", "-") for name in given_options(context)}
    url = server or (_running_server() if artifact is None else None)
    with ExitStack() as stack:
        talker: Talker | None = None
        if url is not None or is_source(artifact or ""):
            talker = _server(url or artifact or "", model, token, ca, strict=bool(url))
            if isinstance(talker, ServerTalker):
                stack.callback(talker.close)
        if talker is None:
            local = _engine(
                artifact or "",
                mode,
                None if placement is None else layer_count("--placement", placement),
                None if exits is None else tuple(numbers("--exits", exits)),
                cloud,
                route,
                security,
                threads,
                wire,
            )
            talker, used = stack.enter_context(local)
            generation = replace(generation, mode=used)
        chat = Conversation(generation, given & set(SETTINGS), system)
        _Chat(chat, talker, as_json=as_json).run(prompt, lines=lines)


def _running_server() -> str:
    """The server of this machine. Raises UsageError."""
    found = [one.address for one in running() if one.kind == "serve"]
    if not found:
        raise UsageError(
            "name an artifact folder, or a server with --server http://127.0.0.1:8000; no collm "
            "serve runs here"
        )
    return found[-1]


def _server(
    url: str, model: str, token: str, ca: Path | None, *, strict: bool
) -> ServerTalker | None:
    """None, unless `strict`, for an address that has no API: artifacts may be fetched from it."""
    try:
        return ServerTalker(url, model=model, key=token, ca=ca)
    except Unreachable:
        raise
    except CollmError:
        if strict:
            raise
        return None


@contextmanager
def _engine(
    text: str,
    mode: str | None,
    layers: int | None,
    exits: tuple[int, ...] | None,
    cloud: str | None,
    route: str,
    security: object,
    threads: int,
    wire: str,
) -> Iterator[tuple[EngineTalker, str]]:
    """An engine of this process, and the mode it answers in."""
    from collm.cli.cloud_link import cloud_link
    from collm.link.credentials import ClientSecurity
    from collm.serve.engine import Engine, EngineSettings

    assert isinstance(security, ClientSecurity)
    opened, placed, used = open_placed(text, mode, layers, exits, cloud, security)
    cores = thread_count(threads, processes=2 if cloud == "spawn" and used != "cloud" else 1)
    settings = EngineSettings(
        mode=used, placement=placed, exits=exits, threads=cores, wire=wire, most_active=1
    )
    with (
        cloud_link(opened.folder, cloud, cores, security, route) as linked,
        Engine(opened, settings, linked) as engine,
    ):
        layers_here = f"layers 0 to {placed - 1}" if placed else "no layers"
        rest = f", the others at {cloud}" if cloud and placed < opened.architecture.layers else ""
        yield EngineTalker(engine, f"{opened.manifest.name}: {layers_here} here{rest}"), used


class _Chat:
    """The loop: read, answer, print."""

    def __init__(self, chat: Conversation, talker: Talker, *, as_json: bool) -> None:
        self._chat = chat
        self._talker = talker
        self._json = as_json
        self._console = Console(highlight=False)
        self._commands = Commands(chat, talker, self._console)

    def run(self, prompt: str | None, *, lines: bool) -> None:
        """Until the input ends, or /bye."""
        if prompt is not None:
            self._answer(prompt)
        elif not sys.stdin.isatty():
            self._piped(lines=lines)
        else:
            self._typed()

    def _piped(self, *, lines: bool) -> None:
        most = DEFAULT_LIMITS.max_prompt_bytes
        text = sys.stdin.buffer.read(most + 1)
        if len(text) > most:
            raise PromptError(f"the input is over {most:,} bytes; expected a question")
        said = text.decode(errors="replace")
        if not said.strip():
            raise PromptError("the input is empty; expected a question")
        for line in said.splitlines() if lines else [said.strip()]:
            if not line.strip():
                continue
            if lines and line.startswith("/"):
                done = self._commands.run(line)
                if done.leave:
                    break
                if done.ask is not None:
                    self._answer(done.ask, is_retry=done.is_retry)
            else:
                self._answer(line)

    def _typed(self) -> None:
        from collm.cli.chat_prompt import prompt_session, unfenced

        session = prompt_session(lambda: self._talker.modes)
        self._note(f"{self._talker.name}. /help lists commands, Ctrl-D leaves.")
        while True:
            try:
                text = session.prompt()
            except KeyboardInterrupt:
                self._note("Ctrl-D or /bye leaves")
                continue
            except EOFError:
                return
            if not text.strip():
                continue
            try:
                if text.startswith("/") and "\n" not in text:
                    done = self._commands.run(text)
                    if done.leave:
                        return
                    if done.ask is None:
                        continue
                    self._answer(done.ask, is_retry=done.is_retry)
                else:
                    self._answer(unfenced(text))
            except CollmError as error:
                self._console.print(Text(f"error: {error}", "red"), soft_wrap=True)

    def _answer(self, text: str, *, is_retry: bool = False) -> None:
        """Have it answered, and printed. Raises CollmError, and then it was never asked."""
        chat, talker = self._chat, self._talker
        chat.asked(text, is_retry=is_retry)
        printer = ChatPrinter(self._console, Palette(talker.exits))
        certain: list[str] = []
        was_broken_off = False
        pieces = talker.say(chat.messages(), chat.settings(), frozenset(chat.chosen))
        try:
            for said in pieces:
                if not said.preview:
                    certain.append(said.text)
                if not self._json:
                    printer.show(said)
        except KeyboardInterrupt:
            was_broken_off = True
        except CollmError:
            self._close(pieces)
            if not self._json and certain:
                printer.end()
            chat.answered("".join(certain), talker.tally)
            raise
        self._close(pieces)
        chat.answered("".join(certain), talker.tally)
        if was_broken_off and not sys.stdin.isatty():
            raise KeyboardInterrupt
        self._told(printer, "".join(certain), was_broken_off=was_broken_off)

    def _told(self, printer: ChatPrinter, text: str, *, was_broken_off: bool) -> None:
        tally = self._talker.tally
        if self._json:
            told = {"text": text, "broken_off": was_broken_off}
            typer.echo(json.dumps(told | (asdict(tally) if tally else {}), ensure_ascii=False))
            return
        printer.end()
        if self._console.is_terminal and tally is not None:
            broken = "broken off; " if was_broken_off else ""
            self._note(broken + tally_line(tally))

    def _note(self, text: str) -> None:
        self._console.print(Text(text, "dim"), soft_wrap=True)

    @staticmethod
    def _close(pieces: Iterator[Said]) -> None:
        close = getattr(pieces, "close", None)
        if close is not None:
            close()
