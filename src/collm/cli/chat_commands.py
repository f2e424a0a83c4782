"""What begins with a slash."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from rich.console import Console
from rich.text import Text

from collm.cli.chat_show import tally_line
from collm.cli.chat_state import SETTINGS, Conversation, value_of
from collm.cli.show import Palette
from collm.errors import PromptError
from collm.serve.talk import Talker, together

HELP = {
    "/help": "this list",
    "/mode NAME": "how answers are made; without NAME: which modes there are",
    "/set NAME VALUE": "temperature 0.7, threshold, max-tokens, seed, …; without NAME: all of them",
    "/system TEXT": "what the model is told first; without TEXT: nothing any more",
    "/stats": "what the last answer took, and all of them",
    "/legend": "which colour is which source",
    "/retry": "answer the last question again",
    "/undo": "take the last question and its answer back",
    "/clear": "forget what was said",
    "/save FILE": "keep the conversation and its settings",
    "/load FILE": "go on with one that was kept",
    "/bye": "leave (also Ctrl-D)",
}
KEYS = 'Several lines: begin with """ and end with """, or Alt+Enter. Ctrl-C breaks an answer off.'
NAMES = tuple(line.split()[0] for line in HELP)


@dataclass(frozen=True)
class Next:
    """What the chat does after a command."""

    leave: bool = False
    ask: str | None = None
    """Have this answered."""
    is_retry: bool = False


class Commands:
    """Runs them on a conversation. Raises PromptError and UsageError."""

    def __init__(self, conversation: Conversation, talker: Talker, console: Console) -> None:
        self._chat = conversation
        self._talker = talker
        self._console = console

    def run(self, line: str) -> Next:
        """One line that begins with a slash."""
        word, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        plain: dict[str, Callable[[str], Next | None]] = {
            "/help": self._help,
            "/?": self._help,
            "/mode": self._mode,
            "/set": self._set,
            "/system": self._system,
            "/stats": self._stats,
            "/legend": self._legend,
            "/retry": self._retry,
            "/undo": self._undo,
            "/clear": self._clear,
            "/save": self._save,
            "/load": self._load,
            "/bye": lambda _: Next(leave=True),
            "/exit": lambda _: Next(leave=True),
            "/quit": lambda _: Next(leave=True),
        }
        found = plain.get(word)
        if found is None:
            near = get_close_matches(word, plain, 1)
            hint = f"did you mean {near[0]}?" if near else "/help lists them"
            raise PromptError(f"no command {word[:40]}; {hint}")
        return found(rest) or Next()

    def _say(self, text: str) -> None:
        self._console.print(Text(text, "dim"), soft_wrap=True)

    def _help(self, _rest: str) -> None:
        width = max(map(len, HELP))
        for command, what in HELP.items():
            self._console.print(Text.assemble((f"{command:<{width}}  ", "bold"), what))
        self._say(KEYS)

    def _mode(self, rest: str) -> None:
        known = self._talker.modes
        if not known:
            raise PromptError("this server has no modes: it is not CoLLM's")
        if not rest:
            self._say(f"mode {self._chat.generation.mode}; there are {', '.join(known)}")
            return
        if rest not in known:
            raise PromptError(f"mode {rest[:40]}: there are {', '.join(known)}")
        self._chat.set("mode", rest)
        self._say(f"mode {rest}")

    def _set(self, rest: str) -> None:
        if not rest:
            for name in SETTINGS:
                value = value_of(self._chat.generation, name)
                mark = "" if name in self._chat.chosen else "  (as it was)"
                self._say(f"{name} {'off' if value is None else value}{mark}")
            return
        name, _, value = rest.partition(" ")
        if not value.strip():
            raise PromptError(f"/set {name[:40]}: expected a value, such as /set temperature 0.7")
        if name == "mode":
            self._mode(value.strip())
            return
        self._chat.set(name, value.strip())
        told = (
            self._chat.system
            if name == "system"
            else value_of(self._chat.generation, name.replace("_", "-"))
        )
        self._say(f"{name} {told}")

    def _system(self, rest: str) -> None:
        self._chat.system = _unquoted(rest)
        self._say("told first: " + self._chat.system if rest else "told nothing first")

    def _stats(self, _rest: str) -> None:
        tallies = self._chat.tallies
        if not tallies:
            self._say("nothing was answered yet")
            return
        self._say(f"last:   {tally_line(tallies[-1])}")
        everything = together(tallies)
        self._say(f"in all: {everything.answers} answers, {tally_line(everything)}")

    def _legend(self, _rest: str) -> None:
        exits = self._talker.exits
        known = [f"exit@{cut}" for cut in exits] + ["cloud", "edge"]
        met = together(self._chat.tallies).sources
        others = [source for source in sorted(met) if source not in known]
        self._console.print(Palette(exits).legend(known + others))
        self._say("dim and slanted: written while the cloud was away, and not verified")

    def _retry(self, _rest: str) -> Next:
        asked = self._chat.retry()
        if asked is None:
            raise PromptError("nothing to answer again")
        is_told = "temperature" in self._chat.chosen or not self._talker.has_defaults
        if is_told and not self._chat.generation.sampling.temperature:
            self._say("greedy: the same again; /set temperature 0.7 makes another")
        return Next(ask=asked, is_retry=True)

    def _undo(self, _rest: str) -> None:
        asked = self._chat.undo()
        if asked is None:
            raise PromptError("nothing to take back")
        self._say(f"taken back: {asked.splitlines()[0][:60] if asked else ''}")

    def _clear(self, _rest: str) -> None:
        self._chat.clear()
        self._say("forgotten")

    def _save(self, rest: str) -> None:
        path = _file(rest, "/save")
        self._chat.save(path)
        self._say(f"{path}: {len(self._chat.turns)} messages")

    def _load(self, rest: str) -> None:
        path = _file(rest, "/load")
        self._chat.load(path)
        self._say(f"{path}: {len(self._chat.turns)} messages")


def _file(rest: str, command: str) -> Path:
    if not rest:
        raise PromptError(f"{command}: expected a file, such as {command} chat.json")
    return Path(_unquoted(rest)).expanduser()


def _unquoted(text: str) -> str:
    try:
        words = shlex.split(text)
    except ValueError:
        return text
    return words[0] if len(words) == 1 and text[:1] in "\"'" else text
