"""Documents as a user follows them: their commands are run in order, in one folder.

`sh` blocks are run line by line, `python` blocks as a whole. What stays is everything as written but

- ports, as a test must not need the ones of the documents to be free,
- names of other machines, which are this one,
- the length of answers, where a line names none.

Servers (`collm cloud`, `serve`, `link`) go on until the end; where a later line starts the same one
again it is left running. What cannot be run has to be in `SKIPPED`, with the reason.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^( *)(```|~~~)(\w+)\n(.*?)^\1\2$", re.MULTILINE | re.DOTALL)
SERVERS = ("cloud", "serve", "link")
UP_SECONDS = 60.0
_PORT = re.compile(r"(?<=[\w\]]):(50\d\d\d|8000|8080|8443|9464)\b|(?<=--port )(\d{4})\b")
_HOSTS = re.compile(r"\b(?:cloud\.example|172\.17\.0\.1)\b")


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


@dataclass
class World:
    """A folder, ports, and what runs meanwhile."""

    folder: Path
    max_tokens: int = 8
    _ports: dict[str, int] = field(default_factory=dict)
    _servers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _printed: dict[str, str] = field(default_factory=dict)

    def run(self, block: Block) -> None:
        """Raises AssertionError with what was said where it does not go as the document says."""
        if block.kind == "python":
            self._finish(block, [sys.executable, "-c", self._here(block.text)])
            return
        line = self._here(block.text)
        words = shlex.split(line)
        if words[0] != "collm":
            self._finish(block, ["sh", "-c", line], must_speak=False)
        elif words[1] in SERVERS:
            self._start(block, line, words)
        else:
            if words[1] == "run" and "--max-tokens" not in words:
                words += ["--max-tokens", str(self.max_tokens)]
            self._finish(block, words)

    def close(self) -> None:
        """End what was started, as the init system would; the last one first."""
        for server in reversed(self._servers.values()):
            server.send_signal(signal.SIGTERM)
        for server in self._servers.values():
            server.wait(30)

    def _here(self, text: str) -> str:
        """With ports and machines of this test."""
        text = _HOSTS.sub("localhost", text).replace("0.0.0.0:", "127.0.0.1:")
        text = text.replace("--host 0.0.0.0", "--host 127.0.0.1")
        return _PORT.sub(lambda found: self._port(found), text)

    def _port(self, found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name not in self._ports:
            with socket.create_server(("127.0.0.1", 0)) as probe:
                self._ports[name] = probe.getsockname()[1]
        return f":{self._ports[name]}" if found[1] else str(self._ports[name])

    def _start(self, block: Block, line: str, words: list[str]) -> None:
        if line in self._servers and self._servers[line].poll() is None:
            return
        self._leave(words)
        said = self.folder / f"server-{len(self._servers)}.log"
        with said.open("wb") as file:
            server = subprocess.Popen(
                words, cwd=self.folder, env=self._environment(), stdout=file, stderr=file
            )
        self._servers[line] = server
        deadline = time.monotonic() + UP_SECONDS
        while "serving" not in said.read_text() and " to " not in said.read_text():
            assert server.poll() is None and time.monotonic() < deadline, (block, said.read_text())
            time.sleep(0.02)

    def _leave(self, words: list[str]) -> None:
        """End a server that has the port which these words want."""
        wanted = _listens(words)
        for line, server in self._servers.items():
            if server.poll() is None and _listens(shlex.split(line)) & wanted:
                server.send_signal(signal.SIGTERM)
                server.wait(30)

    def _finish(self, block: Block, words: list[str], *, must_speak: bool = True) -> None:
        done = subprocess.run(
            words,
            cwd=self.folder,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, (str(block), done.stderr[-2000:])
        assert done.stdout.strip() or not must_speak, str(block)

    def _environment(self) -> dict[str, str]:
        """`collm`, `pip` and `python` as in the environment that the tests run in."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return os.environ | {"PATH": path, "XDG_CONFIG_HOME": str(self.folder / "config")}


def _listens(words: list[str]) -> set[str]:
    """Ports that a server's command line takes."""
    found = set()
    for name, value in zip(words, words[1:], strict=False):
        if name in ("--listen", "--artifacts", "--metrics", "--port"):
            found.add(value.rpartition(":")[2])
    return found or {"default"}


def pages() -> Iterator[Path]:
    """Every page of the documents but what is not written by hand."""
    for page in sorted((ROOT / "docs").rglob("*.md")):
        if "decisions" not in page.parts:
            yield page
