"""How an answer appears in a terminal: certain text stays, previews are dim and withdrawn in place.

A preview is taken back by going up over the lines it took and clearing to the end of the screen,
so the printer counts columns as the terminal does.

Not covered: a terminal whose width changes within a preview; previews of more than a screen, which
stay, marked as withdrawn.
"""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Console
from rich.style import Style
from rich.text import Text

from collm.cli.show import Palette
from collm.cli.table import kilobytes
from collm.serve.talk import Said, Tally

_TAB = 8


def moved(row: int, column: int, text: str, width: int) -> tuple[int, int]:
    """Where the cursor is after `text`. A column of `width` is a wrap that is still to come."""
    for char in text:
        if char == "\n":
            row, column = row + 1, 0
        elif char == "\t":
            column = min(width - 1, (column // _TAB + 1) * _TAB)
        else:
            cells = cell_len(char)
            if column + cells > width:
                row, column = row + 1, 0
            column += cells
    return row, column


def visible(text: str) -> str:
    """Without what a terminal obeys: a model may write anything."""
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)


class ChatPrinter:
    """Prints one answer as it comes."""

    def __init__(self, console: Console, palette: Palette) -> None:
        self._console = console
        self._palette = palette
        self._row, self._column = 0, 0
        self._before: tuple[int, int] | None = None
        """Where the previews on the screen begin."""

    def show(self, said: Said) -> None:
        """One more piece."""
        console = self._console
        if said.preview:
            if console.is_terminal:
                if self._before is None:
                    if self._column == console.width:
                        self._write("\n", Style())
                    self._before = (self._row, self._column)
                self._write(said.text, self._style(said))
            return
        self._withdraw()
        self._write(said.text, self._style(said))

    def end(self) -> None:
        """The answer is over: previews that are left are nobody's."""
        self._withdraw()
        if self._column or not self._row:
            self._console.print()

    def _style(self, said: Said) -> Style:
        style = self._palette.style(said.source)
        return style + Style(dim=True, italic=True) if said.preview or said.provisional else style

    def _write(self, text: str, style: Style) -> None:
        if not self._console.is_terminal:  # what reads it wants every byte
            self._console.file.write(text)
            self._column = 0 if text.endswith("\n") else self._column + len(text)
            self._console.file.flush()
            return
        text = visible(text)
        self._row, self._column = moved(self._row, self._column, text, self._console.width)
        self._console.print(Text(text, style), end="", soft_wrap=True)
        self._console.file.flush()

    def _withdraw(self) -> None:
        if self._before is None:
            return
        (row, column), self._before = self._before, None
        up = self._row - row
        if up >= self._console.height:
            self._write(" ⟨taken back⟩\n", Style(dim=True))
            return
        codes = f"\x1b[{up}A" if up else ""
        self._console.file.write(f"\r{codes}\x1b[{column + 1}G\x1b[J")
        self._console.file.flush()
        self._row, self._column = row, column


def tally_line(tally: Tally) -> str:
    """What was taken, in a line."""
    told = [f"{tally.tokens} tokens"]
    made = ", ".join(f"{source} {count}" for source, count in sorted(tally.sources.items()))
    if made:
        told[0] += f" ({made})"
    if tally.rounds:
        told.append(f"{tally.rounds} round trips")
    if tally.bytes_up or tally.bytes_down:
        told.append(f"{kilobytes(tally.bytes_up)} up, {kilobytes(tally.bytes_down)} down")
    if tally.seconds:
        told.append(f"{tally.tokens / tally.seconds:.1f} tokens/s")
    if tally.first_seconds and tally.answers == 1:
        told.append(f"first after {1000 * tally.first_seconds:.0f} ms")
    if tally.reused_tokens:
        told.append(f"{tally.reused_tokens} of {tally.prompt_tokens} prompt tokens were cached")
    if tally.reconnects:
        told.append(f"{tally.reconnects} links replaced")
    if tally.previewed:
        told.append(f"{tally.previewed} written offline, {tally.withdrawn} of them taken back")
    if tally.provisional:
        told.append(f"the last {tally.provisional} NOT VERIFIED: the cloud stayed away")
    if tally.finish_reason == "length" and tally.answers == 1:
        told.append("cut off at the longest (/set max-tokens)")
    return ", ".join(told)
