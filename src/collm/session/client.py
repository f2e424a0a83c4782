"""The edge's view of a cloud: typed calls over a link, each with its deadline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt

from collm import __version__
from collm.config import Sampling
from collm.errors import LinkError, ProtocolError, Refused
from collm.limits import Limits
from collm.link.base import Link
from collm.wire.codec import rows_per_append
from collm.wire.encoding import decode_cloud, encode
from collm.wire.messages import (
    PROTOCOL_MAJOR,
    PROTOCOL_MINOR,
    Append,
    Bye,
    CloudMessage,
    Finished,
    Generate,
    Hello,
    Refusal,
    Token,
    Verdict,
    Verify,
    Welcome,
)

F32 = npt.NDArray[np.float32]
M = TypeVar("M", Welcome, Verdict)


class CloudClient:
    """One session with a cloud. Rows go up in the background; verdicts are waited for."""

    def __init__(
        self, link: Link, *, fingerprint: str, cut: int, vocabulary: int, limits: Limits
    ) -> None:
        self._link = link
        self._vocabulary = vocabulary
        self._limits = limits
        self._wire_format = "f32" if cut else "ids"
        self._epoch = 0
        self.sent = 0
        """Positions appended."""
        hello = Hello(
            protocol_major=PROTOCOL_MAJOR,
            protocol_minor=PROTOCOL_MINOR,
            fingerprint=fingerprint,
            cut=cut,
            wire_format=self._wire_format,
            software=f"collm {__version__}",
        )
        link.send(encode(hello))
        # The server is there (the link saw that within connect_seconds), but it may be computing.
        self.welcome = self._expect(Welcome, limits.verdict_seconds)

    @property
    def bytes_up(self) -> int:
        """Bytes sent so far."""
        return self._link.bytes_up

    @property
    def bytes_down(self) -> int:
        """Bytes received so far."""
        return self._link.bytes_down

    def append(self, ids: Sequence[int], rows: F32 | None) -> None:
        """Queue the next positions: ids, and their rows float32 [n, d] unless the cut is 0."""
        width = 0 if rows is None else rows.shape[1]
        most = rows_per_append(self._wire_format, width, self._limits)
        for start in range(0, len(ids), most):
            part = tuple(ids[start : start + most])
            message = Append(
                epoch=self._epoch,
                base=self.sent,
                token_ids=part,
                rows=None if rows is None else rows[start : start + most],
            )
            self._link.send(encode(message, self._wire_format))
            self.sent += len(part)

    def verify(self, draft: Sequence[int], sampling: Sampling) -> Verdict:
        """Judge the last len(draft) appended positions; crops to what is accepted."""
        base = self.sent - len(draft) - 1
        message = Verify(epoch=self._epoch, base=base, draft=tuple(draft), sampling=sampling)
        self._link.send(encode(message))
        verdict = self._expect(Verdict, self._limits.verdict_seconds)
        current = verdict.epoch == self._epoch and verdict.base == base
        if not current or verdict.accepted > len(draft):
            raise ProtocolError("the cloud's verdict is not about this draft")
        self._check_token(verdict.next_token)
        if verdict.accepted < len(draft):
            self._epoch += 1
            self.sent = base + verdict.accepted + 1
        return verdict

    def generate(
        self, max_tokens: int, stop_ids: Sequence[int], sampling: Sampling
    ) -> Iterator[Token]:
        """Let the cloud go on alone; yields tokens as they arrive, the stop token too."""
        message = Generate(
            epoch=self._epoch,
            base=self.sent,
            max_tokens=max_tokens,
            stop_ids=tuple(stop_ids),
            sampling=sampling,
        )
        self._link.send(encode(message))
        for _ in range(max_tokens + 1):
            reply = self._receive(self._limits.verdict_seconds)
            if isinstance(reply, Finished):
                return
            if not isinstance(reply, Token):
                raise ProtocolError(f"expected a Token, the cloud sent {type(reply).__name__}")
            self._check_token(reply.token_id)
            yield reply
        raise ProtocolError(f"the cloud sent more than {max_tokens} tokens")

    def close(self) -> None:
        """Say goodbye and end the link. Idempotent."""
        try:
            self._link.send(encode(Bye()))
        except LinkError:
            pass  # it is closed or broken already: nobody is left to tell
        self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check_token(self, token_id: int) -> None:
        if token_id >= self._vocabulary:
            raise ProtocolError(
                f"the cloud's token {token_id} is beyond the vocabulary of {self._vocabulary}"
            )

    def _receive(self, timeout: float) -> CloudMessage:
        reply = decode_cloud(self._link.receive(timeout), self._limits)
        if isinstance(reply, Refusal):
            raise Refused(reply.code, f"the cloud refuses: {reply.reason}")
        return reply

    def _expect(self, kind: type[M], timeout: float) -> M:
        reply = self._receive(timeout)
        if not isinstance(reply, kind):
            raise ProtocolError(f"expected a {kind.__name__}, got {type(reply).__name__}")
        return reply
