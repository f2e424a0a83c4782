"""A real terminal for tests: a pseudo-terminal with a program in it, and what its screen shows."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

from rich.cells import cell_len

_ESCAPE = re.compile(rb"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|[=>78])")


class Terminal:
    """A `collm` command in a terminal of 24 lines; `wait` for words, `type` others."""

    def __init__(self, *words: str | Path, env: dict[str, str], columns: int = 80) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "collm", *map(str, words)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            # Nobody answers where the cursor is.
            env=os.environ | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"} | env,
            start_new_session=True,
            preexec_fn=_own_terminal,  # so that Ctrl-C is a signal
        )
        os.close(theirs)
        self.raw = b""
        self._seen = 0

    @property
    def text(self) -> str:
        """All that was written, without what moves cursors and colours text."""
        return _ESCAPE.sub(b"", self.raw).decode(errors="replace")

    def wait(self, words: str, seconds: float = 10.0) -> str:
        """Until these words come, after those that were waited for before."""
        deadline = time.monotonic() + seconds
        while words not in self.text[self._seen :]:
            left = deadline - time.monotonic()
            if left <= 0 or not self._read(left):
                raise AssertionError(f"{words!r} did not come; there is:\n{self.text[-2000:]}")
        begin = self._seen
        self._seen = self.text.index(words, begin) + len(words)
        return self.text[begin : self._seen]

    def more(self, count: int, seconds: float = 10.0) -> None:
        """Until so many more bytes have come."""
        deadline, wanted = time.monotonic() + seconds, len(self.raw) + count
        while len(self.raw) < wanted:
            if time.monotonic() > deadline or not self._read(0.1):
                raise AssertionError(f"no more came; there is:\n{self.text[-2000:]}")

    def type(self, keys: str) -> None:
        """Press keys: \\r is Enter, \\x03 Ctrl-C, \\x04 Ctrl-D, \\x1b\\r Alt+Enter."""
        os.write(self._ours, keys.encode())

    def end(self, seconds: float = 10.0) -> int:
        """Wait for the program's end; its exit code."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < deadline:
            self._read(0.05)
        code = self.process.wait(0.1)
        os.close(self._ours)
        return code

    def kill(self) -> None:
        """Whatever happened."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _read(self, seconds: float) -> bool:
        if not select.select([self._ours], [], [], seconds)[0]:
            return True
        try:
            some = os.read(self._ours, 65536)
        except OSError:  # the program has ended
            return False
        self.raw += some
        return bool(some)


def _own_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # A shell starts background jobs, these tests perhaps among them, with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def screen(written: str, columns: int) -> list[str]:
    """What a terminal shows after `written`: text, \\r, \\n, and the codes that chat uses."""
    rows: list[list[str]] = [[]]
    row = column = 0
    for part in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|.|\n", written):
        if part == "\n":
            row, column = row + 1, 0
        elif part == "\r":
            column = 0
        elif part.startswith("\x1b["):
            number, code = part[2:-1], part[-1]
            if code == "A":
                row -= int(number)
            elif code == "G":
                column = int(number) - 1
            elif code == "J":
                rows[row] = rows[row][:column]
                del rows[row + 1 :]
            continue
        else:
            cells = cell_len(part)
            if column + cells > columns:
                row, column = row + 1, 0
            while len(rows) <= row:
                rows.append([])
            line = rows[row]
            line += [" "] * (column + cells - len(line))
            line[column : column + cells] = [part, ""][:cells]
            column += cells
        while len(rows) <= row:
            rows.append([])
    return ["".join(line) for line in rows]
