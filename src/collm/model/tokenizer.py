"""Text to ids and back, and the model's chat template (rendered in Jinja's sandbox).

Not covered: tool calls and images in templates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer as HubTokenizer
from tokenizers.decoders import DecodeStream

from collm.errors import ArtifactError, PromptError


@dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """What an artifact stores of a tokenizer."""

    tokenizer_json: str
    """The `tokenizers` library's own serialisation."""
    chat_template: str | None
    bos_token: str
    eos_token: str
    bos_id: int | None
    """Put before every plain prompt; None where the model wants none."""
    eos_ids: tuple[int, ...]


Message = Mapping[str, str]

_TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


def _byte_names() -> dict[str, int]:
    """GPT-2's characters for bytes (`bytes_to_unicode`): printable ones are their own."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_names()
_BYTE_NAME = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""SentencePiece's name of a byte."""


class Tokenizer:
    """The running form of TokenizerFiles."""

    def __init__(self, files: TokenizerFiles) -> None:
        try:
            self._hub = HubTokenizer.from_str(files.tokenizer_json)
        except Exception as error:  # noqa: BLE001 - the Rust side raises bare ones
            raise ArtifactError(f"the tokenizer file cannot be read: {error}") from None
        self._files = files
        self._is_byte_level = '"ByteLevel"' in files.tokenizer_json
        self.eos_ids = frozenset(files.eos_ids)

    @property
    def has_chat_template(self) -> bool:
        """Whether `encode_chat` can be used."""
        return self._files.chat_template is not None

    @cached_property
    def longest_bytes(self) -> int:
        """Bytes of the longest token: a text of n tokens has at most n times as many."""
        return max((len(self.token_bytes(i)) for i in self._hub.get_vocab().values()), default=1)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, after the model's begin-of-sequence token where it wants one."""
        ids = self._ids(text)
        return ids if self._files.bos_id is None else [self._files.bos_id, *ids]

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation up to where the assistant's answer begins.

        Raises PromptError where the template refuses the messages.
        """
        return self._ids(self.render(messages))

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as the template writes it."""
        if self._files.chat_template is None:
            raise PromptError("this model has no chat template; give a plain prompt (--raw)")
        try:
            return _compiled(self._files.chat_template).render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                bos_token=self._files.bos_token,
                eos_token=self._files.eos_token,
            )
        except _TEMPLATE_ERRORS as error:
            raise PromptError(f"the chat template refuses these messages: {error}") from None

    def _ids(self, text: str) -> list[int]:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise PromptError("the prompt is not valid Unicode text; expected UTF-8") from None
        # As `encode` does, but other threads run meanwhile whatever the version of tokenizers.
        [encoded] = self._hub.encode_batch([text], add_special_tokens=False)
        ids: list[int] = encoded.ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, special tokens left out."""
        text: str = self._hub.decode(list(ids), skip_special_tokens=True)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """What one token stands for, which may be a part of a character; a special one's name."""
        name: str = self._hub.id_to_token(token_id) or ""
        if self._is_byte_level and all(character in _BYTE_OF for character in name):
            return bytes(_BYTE_OF[character] for character in name)
        if _BYTE_NAME.fullmatch(name):
            return bytes([int(name[3:5], 16)])
        return name.replace("▁", " ").encode()

    def stream(self) -> TextStream:
        """Text piece by piece, never half a character."""
        return TextStream(self._hub)


class TextStream:
    """Feeds ids one at a time, gives the text that is certain so far."""

    def __init__(self, hub: HubTokenizer) -> None:
        self._hub = hub
        self._stream = DecodeStream(skip_special_tokens=True)

    def push(self, token_id: int) -> str:
        """The new text, empty while a character is incomplete or the token is special."""
        return self._stream.step(self._hub, token_id) or ""


def _refuse(message: Any) -> str:
    raise jinja2.TemplateError(str(message))


@lru_cache(maxsize=8)
def _compiled(chat_template: str) -> jinja2.Template:
    """Compiling a template takes milliseconds, rendering it microseconds."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    return environment.from_string(chat_template)
