"""Nothing is answered to strangers: every call over gRPC, of whatever service, passes here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc

from collm import metrics
from collm.link.credentials import ServerSecurity, TokenFile

_STRANGER = "no valid credentials: this cloud wants a token it knows (--token-file)"


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc ships no types
    """Refuses calls without a token where tokens are asked for. Raises UsageError when made."""

    def __init__(self, security: ServerSecurity) -> None:
        self._tokens = TokenFile(security.tokens) if security.tokens is not None else None

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: Any
    ) -> Any:
        """See grpc.aio."""
        if self._tokens is None or self._named(details.invocation_metadata) is not None:
            return await continuation(details)
        metrics.REFUSALS.labels("credentials").inc()
        handler = await continuation(details)
        if handler is None:
            return None  # no such call, for anybody
        return _refusing(handler)

    def identity(self, context: Any) -> str:
        """Who calls, among those let in."""
        if self._tokens is not None:
            return self._named(context.invocation_metadata()) or ""
        names = context.auth_context().get("x509_common_name", [])
        return "".join(name.decode(errors="replace") for name in names)

    def _named(self, metadata: Iterable[tuple[str, Any]] | None) -> str | None:
        assert self._tokens is not None  # asked only where there are tokens
        for key, value in metadata or ():
            kind, _, token = str(value).partition(" ")
            if key == "authorization" and kind.lower() == "bearer":
                return self._tokens.identity(token.strip())
        return None


def _refusing(handler: Any) -> Any:
    """The same call, which says no."""

    async def one(_request: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, _STRANGER)

    # The shape of the call has to be the one that the client expects.
    makers = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    make = makers[handler.request_streaming, handler.response_streaming]
    return make(one, handler.request_deserializer, handler.response_serializer)
