"""A chat's commands and settings, its screen, and talking with any OpenAI-compatible server."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.terminal import screen
from typer.testing import CliRunner

from collm.cli.chat_commands import HELP, Commands
from collm.cli.chat_prompt import CommandCompleter, is_whole, unfenced
from collm.cli.chat_show import ChatPrinter, moved, tally_line
from collm.cli.chat_state import Conversation, changed
from collm.cli.main import app
from collm.cli.show import Palette
from collm.config import Generation
from collm.errors import CollmError, LinkError, PromptError, ProtocolError, Refused, UsageError
from collm.serve.talk import Message, Said, Tally
from collm.serve.talk_server import ServerTalker


class Parrot:
    """Says what it was told."""

    name, modes, exits, has_defaults = "parrot", ("verified", "threshold"), (5, 10), False
    tally: Tally | None = None

    def say(
        self, messages: Sequence[Message], generation: Generation, chosen: frozenset[str]
    ) -> Iterator[Said]:
        yield Said(messages[-1]["content"], "exit@5")


def commands(chat: Conversation) -> tuple[Commands, io.StringIO]:
    out = io.StringIO()
    return Commands(chat, Parrot(), Console(file=out, width=100, highlight=False)), out


def test_settings_are_checked_as_options_are() -> None:
    chat = Conversation(Generation())
    run, out = commands(chat)
    run.run("/set temperature 0.7")
    run.run("/set top_p 0.9")
    run.run("/set lookup on")
    run.run("/set system Be brief.")
    assert (chat.generation.sampling.temperature, chat.generation.sampling.top_p) == (0.7, 0.9)
    assert chat.generation.lookup and chat.system == "Be brief."
    assert chat.chosen == {"temperature", "top-p", "lookup"}
    for line, said in (
        ("/set temperatur 1", "did you mean temperature?"),
        ("/set temperature hot", "temperature 'hot': expected a number"),
        ("/set lookup maybe", "expected on or off"),
        ("/set max-tokens 0", "max tokens 0: expected 1 to"),
        ("/set temperature", "expected a value, such as"),
        ("/mode refine", "mode refine: there are verified, threshold"),
        ("/sett", "no command /sett; did you mean /set?"),
        ("/retry", "nothing to answer again"),
        ("/undo", "nothing to take back"),
        ("/save", "expected a file"),
    ):
        with pytest.raises(PromptError) as met:
            run.run(line)
        assert said in str(met.value)
    # What does not go with a mode goes; nothing else does.
    run.run("/mode threshold")
    assert (chat.generation.mode, chat.generation.lookup) == ("threshold", False)
    assert changed(chat.generation, "deadline", "50").deadline_seconds == 0.05
    run.run("/set")
    assert "temperature 0.7\n" in out.getvalue() and "(as it was)" in out.getvalue()
    run.run("/help")
    assert all(command in out.getvalue() for command in HELP)
    run.run("/legend")
    assert "exit@10" in out.getvalue()


def test_turns_retries_and_undo() -> None:
    chat = Conversation(Generation())
    run, out = commands(chat)
    for text in ("one", "two"):
        chat.asked(text)
        chat.answered(text.upper(), Tally(tokens=2, sources={"exit@5": 2}, seconds=1.0))
    run.run("/stats")
    assert "in all: 2 answers, 4 tokens (exit@5 4), 2.0 tokens/s" in out.getvalue()
    again = run.run("/retry")
    assert (again.ask, again.is_retry, len(chat.turns)) == ("two", True, 2)
    assert "greedy: the same again" in out.getvalue()
    chat.asked("two", is_retry=True)
    assert chat.settings().sampling.seed == 0  # greedy: a seed changes nothing
    chat.set("temperature", "0.5")
    assert chat.settings().sampling.seed == 1
    chat.answered("", None)  # it failed: what it was to replace is back
    assert [turn["content"] for turn in chat.turns] == ["one", "ONE", "two", "TWO"]
    chat.asked("three")
    chat.answered("", None)  # as if it had not been asked
    assert [turn["content"] for turn in chat.turns] == ["one", "ONE", "two", "TWO"]
    run.run("/retry")
    chat.asked("two", is_retry=True)
    assert chat.settings().sampling.seed == 1  # the one that failed does not count
    chat.answered("2", None)
    assert [turn["content"] for turn in chat.turns] == ["one", "ONE", "two", "2"]
    run.run("/undo")
    run.run("/undo")
    assert chat.turns == []
    assert run.run("/bye").leave


def test_conversations_are_kept_and_nothing_else_written_over(tmp_path: Path) -> None:
    chat = Conversation(Generation())
    run, _ = commands(chat)
    run.run("/system You are a pirate.")
    run.run("/set temperature 0.5")
    run.run("/set lookup on")
    chat.asked("Ahoy ⚓")
    chat.answered("Arr", None)
    path = tmp_path / "my chat.json"
    run.run(f"/save '{path}'")
    assert path.stat().st_mode & 0o777 == 0o600
    other = Conversation(Generation())
    load, _ = commands(other)
    load.run(f"/load {path}")
    assert other.messages() == chat.messages()
    assert other.generation == chat.generation and other.chosen == chat.chosen
    run.run(f"/save {path}")  # its own may be
    book = tmp_path / "book.json"
    book.write_text('{"title": "x"}')
    for command in ("/save", "/load"):
        with pytest.raises(UsageError, match=r"no conversation that /save wrote"):
            run.run(f"{command} {book}")
    data = json.loads(path.read_text())
    for wrong in ({"turns": [{"role": "robot", "content": ""}]}, {"settings": 3}, {"system": 1}):
        path.write_text(json.dumps(data | wrong))
        with pytest.raises(UsageError, match="a damaged conversation"):
            load.run(f"/load {path}")
    assert other.messages() == chat.messages()


def test_several_lines_and_completion() -> None:
    assert is_whole("one") and is_whole('"""a\nb"""') and is_whole('"""one"""')
    assert not is_whole('"""a') and not is_whole('"""') and not is_whole('  """a\nb')
    assert unfenced('"""\na\nb\n"""') == "a\nb"
    assert unfenced(" plain ") == "plain"
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document

    completer = CommandCompleter(lambda: ("verified", "auto"))

    def offered(text: str) -> list[str]:
        return [one.text for one in completer.get_completions(Document(text), CompleteEvent())]

    assert offered("/st") == ["/stats"]
    assert offered("/mode v") == ["verified"]
    assert "temperature" in offered("/set te")
    assert offered("hello /") == []


# ------------------------------------------------------------------------- screen


def shown(width: int, *pieces: Said, end: bool = True) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, height=10, force_terminal=True, color_system=None)
    printer = ChatPrinter(console, Palette((5,)))
    for said in pieces:
        printer.show(said)
    if end:
        printer.end()
    return [line for line in screen(out.getvalue(), width) if line]


def test_previews_are_taken_back_in_place() -> None:
    sure = Said("The sky", "cloud")
    previews = [Said(" is green and the grass", preview=True), Said(" is\nblue", preview=True)]
    assert shown(40, sure, *previews, end=False) == ["The sky is green and the grass is", "blue"]
    assert shown(40, sure, *previews, Said(" is blue.", "cloud")) == ["The sky is blue."]
    # Over lines that the terminal wrapped, and at its very edge.
    for width in range(4, 20):
        text = "".join(shown(width, sure, *previews, Said(" is blue.", "cloud")))
        assert text == "The sky is blue.", width
    wide = [Said("天空是", "cloud"), Said("绿色的天空", preview=True), Said("蓝", "cloud")]
    assert moved(0, 0, "天空是", 5) == (1, 2)
    assert "".join(shown(40, *wide)) == "天空是蓝"
    assert shown(40, sure, *previews) == ["The sky"]  # the cloud stayed away, the server took back


def test_previews_of_more_than_a_screen_stay_marked() -> None:
    lines = shown(20, Said("a"), Said("\n".join("x" * 15), preview=True), Said("b"))
    assert "⟨taken back⟩" in "".join(lines)
    assert lines[-1] == "b"


def test_a_terminal_obeys_nothing_that_a_model_writes() -> None:
    assert shown(40, Said("a\x1b[2Jb\x07c")) == ["a�[2Jb�c"]
    out = io.StringIO()  # a file gets every byte, and no preview
    printer = ChatPrinter(Console(file=out), Palette(()))
    printer.show(Said("a\x1b"))
    printer.show(Said("maybe", preview=True))
    printer.show(Said("b"))
    assert out.getvalue() == "a\x1bb"


def test_a_line_about_an_answer() -> None:
    line = tally_line(
        Tally(tokens=4, sources={"cloud": 1, "exit@5": 3}, seconds=2.0, provisional=2,
              prompt_tokens=9, reused_tokens=7, finish_reason="length")
    )  # fmt: skip
    assert "4 tokens (cloud 1, exit@5 3), 2.0 tokens/s" in line
    assert "7 of 9 prompt tokens were cached" in line
    assert "the last 2 NOT VERIFIED" in line and "/set max-tokens" in line


# ------------------------------------------------------------------------- servers


@contextmanager
def serving(
    chunks: Sequence[object], status: int = 200, pages: dict[str, object] | None = None
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that streams these; what it was asked."""
    asked: list[dict[str, Any]] = []
    known = {"/v1/models": {"data": [{"id": "m"}]}, **(pages or {})}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200 if self.path in known else 404, json.dumps(known.get(self.path, {})))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body | {"authorization": self.headers["Authorization"]})
            told = [one if isinstance(one, str) else json.dumps(one) for one in chunks]
            if status != 200:
                self._send(status, told[0])
                return
            self._send(200, "".join(f"data: {one}\r\n\r\n: beat\n" for one in [*told, "[DONE]"]))

        def _send(self, code: int, text: str) -> None:
            body = text.encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            if code == 429:
                self.send_header("Retry-After", "7")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def delta(text: str | None, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    chunk: dict[str, Any] = {"choices": [{"delta": {} if text is None else {"content": text}}]}
    return chunk if extra is None else chunk | {"collm": extra}


CHOSEN = frozenset({"temperature", "mode", "top-k"})


def test_another_server_is_asked_in_plain_words_only() -> None:
    usage = {"choices": [], "usage": {"completion_tokens": 2, "prompt_tokens": 5}}
    with serving([delta("Hel"), delta("lo"), usage]) as (url, asked):
        talker = ServerTalker(url + "/v1/")
        said = list(talker.say([{"role": "user", "content": "hi"}], Generation(), CHOSEN))
        talker.close()
    assert [one.text for one in said] == ["Hel", "lo"]
    named = {"model", "messages", "stream", "stream_options", "temperature"}
    assert set(asked[0]) - {"authorization"} == named
    assert talker.modes == ()
    assert talker.tally is not None
    assert (talker.tally.tokens, talker.tally.prompt_tokens) == (2, 5)


def test_collm_tells_more_and_is_told_more() -> None:
    chunks = [
        delta("a", {"source": "exit@5", "provisional": False}),
        delta(None, {"source": "exit@5", "provisional": True, "preview": "x"}),
        delta("b", {"source": "cloud", "provisional": False}),
        {"choices": [{"delta": {}, "finish_reason": "length"}],
         "collm": {"summary": {"sources": {"exit@5": 1, "cloud": 1}, "rounds": 3, "withdrawn": 1}}},
    ]  # fmt: skip
    status = {"/collm/status": {"modes": ["verified", "auto"], "exits": [5]}}
    with serving(chunks, pages=status) as (url, asked):
        talker = ServerTalker(url)
        said = list(talker.say([], Generation(mode="auto"), CHOSEN))
        talker.close()
    assert [(one.text, one.source, one.preview) for one in said] == [
        ("a", "exit@5", False),
        ("x", "exit@5", True),
        ("b", "cloud", False),
    ]
    assert (talker.modes, talker.exits) == (("verified", "auto"), (5,))
    assert asked[0]["collm"] == {"mode": "auto"}
    assert asked[0]["top_k"] == 0
    assert talker.tally is not None
    assert (talker.tally.rounds, talker.tally.withdrawn, talker.tally.tokens) == (3, 1, 2)
    assert talker.tally.finish_reason == "length"


@pytest.mark.parametrize(
    ("status", "chunk", "kind", "said"),
    [
        (429, {"error": {"message": "full"}}, Refused, "full; try again in 7 s"),
        (401, {"error": {"message": "who are you"}}, Refused, "give --token-file FILE"),
        (400, {"error": {"message": "mode fast: no"}}, PromptError, "mode fast: no"),
        (500, "<html>oops</html>", LinkError, "HTTP 500"),
        (200, {"error": {"message": "the cloud\x1b went"}}, LinkError, r"the cloud\? went"),
        (200, "no json", ProtocolError, "no JSON object"),
    ],
)
def test_what_servers_refuse_is_one_line(
    status: int, chunk: object, kind: type[CollmError], said: str
) -> None:
    with serving([chunk], status) as (url, _):
        talker = ServerTalker(url)
        with pytest.raises(kind, match=said) as met:
            list(talker.say([], Generation(), frozenset()))
        talker.close()
    assert "\n" not in str(met.value)


def test_a_key_does_not_travel_in_the_clear() -> None:
    with pytest.raises(UsageError, match="would travel unencrypted"):
        ServerTalker("http://192.0.2.1:8000", key="secret-key")


@pytest.mark.parametrize(
    "url",
    ["192.0.2.1:8000", "http://[", "http://[::1", "http://a:port", "http://a:99999", "http://a b"],
)
def test_an_address_that_is_none_is_one_line(url: str) -> None:
    ran = CliRunner().invoke(app, ["chat", "--server", url, "hello"])
    assert isinstance(ran.exception, UsageError)
    assert str(ran.exception) == f"{url!r}: expected a URL such as http://127.0.0.1:8000"


def test_with_a_server_one_word_is_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLLM_TOKEN", "the-clouds-token")
    with serving([delta("Blue.")]) as (url, asked):
        for words in (["--server", url, "Why?"], [url, "Why?"], [url, "Why?", "--model", "m"]):
            ran = CliRunner().invoke(app, ["chat", *words])
            assert (ran.exit_code, ran.stdout.strip()) == (0, "Blue."), ran.exception
        both = CliRunner().invoke(app, ["chat", "my-model", "Why?", "--server", url])
        assert isinstance(both.exception, UsageError)
        assert "my-model: with --server there is no artifact" in str(both.exception)
    assert [one["messages"][-1]["content"] for one in asked] == ["Why?"] * 3
    # That token is for a cloud, and for nobody else.
    assert [one["authorization"] for one in asked] == [None] * 3
