"""What a model's chat template puts before a user turn and between it and the answer.

Taken from the artifact's own template, rendered around a made-up message. Not covered: several
turns; templates that change a message's words.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from collm.errors import UsageError
from collm.model.artifact import Artifact

_MESSAGE = "QuietCollmMessage"


@dataclass(frozen=True, kw_only=True)
class ChatForm:
    """A chat is `prefix`, the user turn, `suffix`, the answer: token ids."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    end: tuple[int, ...]
    """The part of the suffix that the model writes itself to end a user turn."""

    def user_start(self, ids: list[int]) -> int:
        """Where the user turn begins in a rendered chat: its words may take the prefix's end in."""
        same = 0
        for ours, theirs in zip(self.prefix, ids, strict=False):
            if ours != theirs:
                break
            same += 1
        return max(1, same)


def chat_form(artifact: Artifact) -> ChatForm:
    """The artifact's. Raises UsageError where it has no chat template that can be split."""
    where, tokenizer = artifact.folder, artifact.tokenizer()
    if not tokenizer.has_chat_template:
        raise UsageError(
            f"{where}: this model has no chat template to write or answer chats with; give "
            "enough --text for --tokens"
        )
    parts = tokenizer.render([{"role": "user", "content": _MESSAGE}]).split(_MESSAGE)
    if len(parts) != 2:
        raise UsageError(
            f"{where}: its chat template does not repeat the user's message once as it is; give "
            "enough --text for --tokens"
        )
    before = 0 if artifact.manifest.bos_id is None else 1  # `encode` puts it first
    prefix, suffix = (tuple(tokenizer.encode(part)[before:]) for part in parts)
    if not prefix or not suffix:
        raise UsageError(f"{where}: its chat template puts nothing before or after a user's turn")
    added = json.loads(artifact.path("tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    special_ids = {token["id"] for token in added if token["special"]}
    specials = [place for place, token in enumerate(suffix) if token in special_ids]
    end = suffix[: specials[0] + 1] if specials else suffix
    return ChatForm(prefix=prefix, suffix=suffix, end=end)
