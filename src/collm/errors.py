"""Every error CoLLM raises on purpose.

::

    CollmError
    ├── UsageError              the user gave something unusable      (exit code 2)
    │   ├── SourceError           a checkpoint that cannot be read or is not supported
    │   ├── ArtifactError         an artifact folder that is missing, damaged or of another kind
    │   ├── PlacementError        layers or exits that the artifact does not have
    │   └── PromptError           a prompt, prompt file or sampling setting that cannot be run
    ├── ContextFull             a session reached the model's context length
    ├── Cancelled               whoever asked for an answer wants no more of it
    ├── ProtocolError           the other side sent bytes that break the protocol
    └── LinkError               the link failed
        ├── CorruptFrame          bytes changed on their way
        ├── Unreachable           nobody answers there
        ├── LinkTimeout           an answer did not come within its deadline
        │   └── CloudAway           there is no link just now; another one is looked for
        └── Refused               the other side said no, with a reason

A message is one line: what was given, what was expected, what to do.
"""

from __future__ import annotations


class CollmError(Exception):
    """Root of the tree; `str(error)` is one line fit for a terminal."""


class UsageError(CollmError):
    """The user gave something that cannot be used."""


class SourceError(UsageError):
    """A checkpoint that cannot be read, is damaged, or has an unsupported architecture."""


class ArtifactError(UsageError):
    """An artifact folder that is missing, damaged, or does not fit."""


class PlacementError(UsageError):
    """A placement or exit that the artifact does not offer."""


class PromptError(UsageError):
    """A prompt, prompt file or sampling setting that cannot be run."""


class ContextFull(CollmError):
    """A session has no position left in the model's context."""


class Cancelled(CollmError):
    """An answer was broken off by whoever had asked for it."""


class ProtocolError(CollmError):
    """Bytes or a message order that break the protocol."""


class LinkError(CollmError):
    """The link to the other side failed."""


class CorruptFrame(LinkError):
    """Bytes that changed on their way."""


class Unreachable(LinkError):
    """Nobody answers at that address."""


class LinkTimeout(LinkError):
    """An answer did not come within its deadline."""


class CloudAway(LinkTimeout):
    """There is no link at the moment, and another one is looked for."""


class Refused(LinkError):
    """The other side refused, and said why.

    `code` is one of the words of `collm.wire.messages.REFUSAL_CODES`; `retry_seconds` says when
    to try again, 0 where the other side did not.
    """

    def __init__(self, code: str, reason: str, retry_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.retry_seconds = retry_seconds


def one_line(said: object, most: int = 200) -> str:
    """What a stranger said, fit for a message: no line breaks, nothing that a terminal obeys."""
    text = " ".join(str(said).split())
    kept = "".join(c if c.isprintable() else "?" for c in text[:most])
    return kept if len(text) <= most else kept + "…"
