"""How answers look in a terminal: a colour for every place where a token can be made."""

from __future__ import annotations

from rich.console import Console
from rich.style import Style
from rich.text import Text

from collm.cli.table import kilobytes as kilobytes
from collm.cli.table import megabytes as megabytes
from collm.cli.table import plain_table as plain_table
from collm.cli.table import wide_console as wide_console
from collm.session.events import Account, Piece

_EXIT_COLOURS = ("bright_green", "bright_cyan", "bright_blue", "bright_magenta")
_CLOUD_COLOUR = "bright_yellow"
_SERVER_COLOUR = "orange1"


class Palette:
    """A style per source: exits from the shallowest on, servers, the cloud, the whole model."""

    def __init__(self, exits: tuple[int, ...]) -> None:
        self._styles = {
            f"exit@{cut}": Style(color=_EXIT_COLOURS[i % len(_EXIT_COLOURS)])
            for i, cut in enumerate(exits)
        }
        self._styles["cloud"] = Style(color=_CLOUD_COLOUR)
        self._styles["edge"] = Style(color="white")

    def style(self, source: str) -> Style:
        """The style of a token made at `source`."""
        if source.startswith("server@"):
            return Style(color=_SERVER_COLOUR)
        return self._styles.get(source, Style())

    def legend(self, sources: list[str]) -> Text:
        """The sources, each in its colour."""
        line = Text("tokens by where they were made: ")
        for source in sources:
            line.append(f" {source} ", self.style(source) + Style(reverse=True))
            line.append("  ")
        return line


class PiecePrinter:
    """Prints an answer as it comes.

    What is written while the cloud is away is dim and in brackets, in a terminal; elsewhere only
    what is certain is printed.
    """

    def __init__(self, console: Console, palette: Palette) -> None:
        self._console = console
        self._palette = palette
        self._is_preview = False

    def print(self, piece: Piece) -> None:
        """One more piece."""
        if piece.preview and not self._console.is_terminal:
            return
        text = Text()
        if piece.preview != self._is_preview:
            text.append(" ⟨offline: " if piece.preview else "⟩ ", Style(dim=True))
            self._is_preview = piece.preview
        style = self._palette.style(piece.token.source)
        if piece.preview or piece.token.provisional:
            style += Style(dim=True, italic=True)
        text.append(piece.text, style)
        self._console.print(text, end="", soft_wrap=True)
        self._console.file.flush()


def account_line(account: Account) -> str:
    """An answer in one line."""
    made = ", ".join(f"{source} {count}" for source, count in sorted(account.sources.items()))
    speed = len(account.tokens) / max(account.wall_seconds, 1e-9)
    line = (
        f"{len(account.tokens)} tokens ({made}), {account.rounds} round trips, "
        f"{kilobytes(account.bytes_up)} up, {kilobytes(account.bytes_down)} down, "
        f"{speed:.1f} tokens/s"
    )
    if account.degraded:
        line += f", {account.degraded} degraded (due before the cloud could answer)"
    if account.reconnects:
        links = "1 link" if account.reconnects == 1 else f"{account.reconnects} links"
        line += f", {links} replaced, {kilobytes(account.replayed_bytes)} sent again"
    if account.previewed:
        line += f", {account.previewed} written offline, {account.withdrawn} of them taken back"
    if account.provisional:
        line += f", the last {account.provisional} NOT VERIFIED: the cloud stayed away"
    if account.logprob_before is not None and account.logprob_after is not None:
        mended = sum(one.rejected is not None for one in account.passes)
        line += (
            f", {mended} mended in {len(account.passes)} passes, mean log-probability "
            f"{account.logprob_before:.2f} before, {account.logprob_after:.2f} after"
        )
    return line
