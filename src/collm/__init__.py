"""CoLLM: a language model shared between a small device and the cloud, token by token.

    from collm import Edge

    with Edge("my-model", cloud="spawn") as edge:
        for event in edge.stream("Why is the sky blue?"):
            print(event.text, end="")

What is named in `__all__` is the public API. It is loaded when it is first asked for, so that
`import collm` costs nothing; type checkers read `__init__.pyi`.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "collm.api.asking": ("Options",),
    "collm.api.cloud": ("Cloud", "Probe"),
    "collm.api.conversation": ("Conversation",),
    "collm.api.edge": ("Edge",),
    "collm.api.events": (
        "Answer", "Done", "Event", "Preview", "Summary", "Token", "WayChanged", "Withdrawn",
    ),
    "collm.api.streams": ("AsyncStream", "Stream"),
    "collm.errors": (
        "ArtifactError", "CollmError", "LinkError", "LinkTimeout", "PlacementError", "PromptError",
        "Refused", "Unreachable", "UsageError",
    ),
}  # fmt: skip
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    """Load a public name where it lives (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
