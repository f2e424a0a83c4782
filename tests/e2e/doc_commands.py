"""Documents as a user follows them: their commands are run in order, in one folder.

`sh` blocks are run line by line, `python` blocks as a whole. Everything is run as written but for

- ports: a test must not need the ones of the documents to be free,
- names of other machines: they are this one,
- the length of answers, where a line names none.

Servers (`collm cloud`, `serve`, `link`) go on until the end, or until another one takes their port;
where a later line starts the same one again it is left running.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.nursery import Nursery, Started, environment

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^( *)(```|~~~)(\w+)\n(.*?)^\1\2$", re.MULTILINE | re.DOTALL)
SERVERS = ("cloud", "serve", "link")
UP_SECONDS = 60.0
COMMAND_SECONDS = 180.0
MAX_TOKENS = 8
_PORT = re.compile(r"(?<=[\w\]]):(50\d\d\d|8000|8443|9464)\b")
_HOSTS = re.compile(r"\b(?:cloud\.example|172\.17\.0\.1)\b")

_TOGETHER = """
import json, sys
names = {"__name__": "__main__"}
for where, text in json.loads(sys.argv[1]):
    exec(compile(text, where, "exec"), names)
"""


def _free_port() -> int:
    """One that stays free until it is used: connections and other tests take theirs from above."""
    while True:
        port = random.randrange(15_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@dataclass(frozen=True)
class Block:
    """Something to run, and where it stands."""

    page: str
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text.splitlines()[0]}"


def blocks(page: Path) -> list[Block]:
    """Commands (a line each, continued ones joined) and programs of a page, in order."""
    found = []
    text, name = page.read_text(), page.relative_to(ROOT).as_posix()
    for match in BLOCK.finditer(text):
        indent, kind = match[1], match[3]
        first = text.count("\n", 0, match.start()) + 2
        body = re.sub(f"^{indent}", "", match[4], flags=re.MULTILINE)
        if kind == "python":
            found.append(Block(name, first, kind, body))
        elif kind == "sh":
            joined = re.sub(r"\\\n\s*", " ", body)
            found += [
                Block(name, first + at, kind, re.split(r"\s{2,}#", line)[0].strip())
                for at, line in enumerate(joined.splitlines())
                if line.strip() and not line.startswith("#")
            ]
    return found


class World:
    """A folder, ports, and what runs meanwhile.

    as_written: answers have the length that lines ask for, and commands are started as users do.
    """

    def __init__(self, folder: Path, *, as_written: bool = False) -> None:
        self.folder = folder
        self._as_written = as_written
        self._ports: dict[str, int] = {}
        self._servers: dict[str, int] = {}
        """Process ids by command line."""
        self._processes = Started() if as_written else Nursery()

    def follow(self, page: Sequence[Block]) -> None:
        """Run a page's blocks. Its programs share an interpreter, and are run together, at the end.

        Raises AssertionError with what was said where something does not go as the page says.
        """
        for block in page:
            if block.kind == "sh":
                self.run(block)
        programs = [block for block in page if block.kind == "python"]
        if programs:
            told = json.dumps([(str(block), self._here(block.text)) for block in programs])
            self._finish(programs[0], [sys.executable, "-c", _TOGETHER, told])

    def run(self, block: Block) -> None:
        """Run a line. Raises AssertionError."""
        line = self._here(block.text)
        words = shlex.split(line)
        if words[0] != "collm":
            self._finish(block, ["sh", "-c", line], must_speak=False)
        elif words[1] in SERVERS:
            if words[1] == "serve" and "--port" not in words:
                words += ["--port", self._port("8000")]
            self._start(block, shlex.join(words))
        else:
            if words[1] == "run" and "--max-tokens" not in words and not self._as_written:
                words += ["--max-tokens", str(MAX_TOKENS)]
            self._finish(block, words)

    def close(self) -> None:
        """End what was started, the last one first."""
        for line in list(self._servers)[::-1]:
            self._end(line)
        self._processes.close()

    def _here(self, text: str) -> str:
        """With ports and machines of this test."""
        text = _HOSTS.sub("localhost", text).replace("0.0.0.0:", "127.0.0.1:")
        text = text.replace("--host 0.0.0.0", "--host 127.0.0.1")
        text = _PORT.sub(lambda found: f":{self._port(found[1])}", text)
        return re.sub(r"--port (\d+)", lambda found: f"--port {self._port(found[1])}", text)

    def _port(self, written: str) -> str:
        if written not in self._ports:
            self._ports[written] = _free_port()
        return str(self._ports[written])

    def _start(self, block: Block, line: str) -> None:
        if line in self._servers:
            return
        words = shlex.split(line)
        for other in list(self._servers):
            if _listens(shlex.split(other)) & _listens(words):
                self._end(other)
        said = self.folder / f"server-{time.monotonic_ns()}.log"
        self._servers[line] = pid = self._processes.begin(words, self.folder, said, said)
        deadline = time.monotonic() + UP_SECONDS
        while not re.search("serving|there and back", said.read_text() if said.exists() else ""):
            assert self._processes.code(pid) is None and time.monotonic() < deadline, (
                str(block),
                said.read_text(),
            )
            time.sleep(0.02)

    def _end(self, line: str) -> None:
        self._processes.end(self._servers.pop(line))

    def _finish(self, block: Block, words: list[str], *, must_speak: bool = True) -> None:
        out, err = self.folder / "out.txt", self.folder / "err.txt"
        began = time.monotonic()
        if words[0] == "collm":
            pid = self._processes.begin(words, self.folder, out, err)
            while (code := self._processes.code(pid)) is None:
                if time.monotonic() - began > COMMAND_SECONDS:
                    self._processes.end(pid)
                    raise AssertionError(f"{block}: not done after {COMMAND_SECONDS:g} s")
                time.sleep(0.02)
        else:
            with out.open("wb") as said, err.open("wb") as warned:
                code = subprocess.run(
                    words,
                    cwd=self.folder,
                    env=environment(self.folder),
                    stdout=said,
                    stderr=warned,
                    timeout=COMMAND_SECONDS,
                    check=False,
                ).returncode
        if os.environ.get("COLLM_DOC_TIMES"):
            print(f"{time.monotonic() - began:.1f} s {block}", file=sys.__stderr__)
        assert code == 0, (str(block), err.read_text()[-2000:])
        assert out.read_text().strip() or not must_speak, str(block)


def _listens(words: list[str]) -> set[str]:
    """Addresses that a server's command line takes."""
    pairs = itertools.pairwise(words)
    options = ("--listen", "--artifacts", "--metrics", "--port")
    return {value.rpartition(":")[2] for name, value in pairs if name in options}


def pages() -> Iterator[Path]:
    """Every page of the documents but what is not written by hand."""
    for page in sorted((ROOT / "docs").rglob("*.md")):
        if "decisions" not in page.parts:
            yield page
