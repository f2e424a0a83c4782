"""What a shell offers when Tab is pressed. Whatever goes wrong, it offers nothing."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from collm.config import MODES
from collm.errors import CollmError

_WIRES = ("f32", "f16", "int8", "int4", "ids", "auto")


def complete_modes(incomplete: str) -> list[str]:
    """Modes."""
    return [mode for mode in MODES if mode.startswith(incomplete)]


def complete_wires(incomplete: str) -> list[str]:
    """Wire formats."""
    return [one for one in _WIRES if one.startswith(incomplete)]


def complete_names(incomplete: str) -> list[tuple[str, str]]:
    """Artifacts of the store by name, then folders."""
    return [*_names(incomplete), *complete_artifacts(incomplete)]


def complete_artifacts(incomplete: str) -> list[tuple[str, str]]:
    """Artifact folders, and folders on the way to them."""
    typed = Path(incomplete or ".")
    below = typed if not incomplete or incomplete.endswith("/") else typed.parent
    found = []
    with suppress(OSError):
        for folder in sorted(below.expanduser().iterdir())[:1000]:
            text = str(below / folder.name)
            hidden = folder.name.startswith(".") and not typed.name.startswith(".")
            if text.startswith(incomplete.removeprefix("./")) and not hidden and folder.is_dir():
                is_artifact = (folder / "manifest.json").is_file()
                shown = f"./{text}" if incomplete.startswith("./") else text
                found.append((shown, "artifact") if is_artifact else (shown + "/", "folder"))
    return found


def _names(incomplete: str) -> list[tuple[str, str]]:
    from collm.model.inventory import held
    from collm.model.store import Store

    with suppress(CollmError, OSError):
        return [
            (one.manifest.name, f"in the store, {one.manifest.fingerprint[:12]}")
            for one in held(Store())
            if one.manifest.name.startswith(incomplete)
        ]
    return []
