"""The cloud's side of TLS: certificates that may be replaced while it runs."""

from __future__ import annotations

import logging
import os
import ssl
from pathlib import Path
from typing import Any

import grpc

from collm.errors import UsageError
from collm.link.credentials import ServerSecurity, read_pem

logger = logging.getLogger(__name__)


def credentials(security: ServerSecurity) -> Any:
    """For a gRPC server. New connections get the certificate that is in the files by then.

    Raises UsageError for files that are none, or do not belong together.
    """
    files = _Files(security)
    needs_client = security.client_ca is not None
    return grpc.dynamic_ssl_server_credentials(files.read(), files.changed, needs_client)


def server_context(security: ServerSecurity) -> ssl.SSLContext:
    """For servers that use Python's own TLS; a certificate that changes as in `credentials`.

    The authority of clients does not change while it runs. Raises UsageError.
    """
    files = _Files(security)
    current = files.context()

    def look(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        nonlocal current
        if files.changed() is not None:
            current = files.context()
        connection.context = current

    listening = files.context()
    listening.sni_callback = look  # called in every handshake, whether a name is given or not
    return listening


class _Files:
    """Certificate, key and authority; looked at for each new connection."""

    def __init__(self, security: ServerSecurity) -> None:
        assert security.certificate is not None  # or nothing is encrypted
        assert security.key is not None  # they come in pairs
        self._certificate, self._key = security.certificate, security.key
        self._client_ca = security.client_ca
        self._state: object = self._stat()

    def read(self) -> Any:
        """What gRPC wants. Raises UsageError."""
        pair = read_pem(self._key), read_pem(self._certificate)
        ca = read_pem(self._client_ca) if self._client_ca is not None else None
        self.context()  # or what is wrong with them
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=ca)

    def context(self) -> ssl.SSLContext:
        """What Python's own TLS wants. Raises UsageError."""
        ca = read_pem(self._client_ca) if self._client_ca is not None else None
        read_pem(self._key), read_pem(self._certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # A password would be asked for at the terminal, of nobody.
            context.load_cert_chain(self._certificate, self._key, password=lambda: "")
        except (OSError, ValueError) as error:  # SSLError is an OSError
            raise UsageError(
                f"{self._certificate} and {self._key}: no certificate with its key, or the key "
                f"has a password ({error})"
            ) from None
        try:
            if ca is not None:
                context.load_verify_locations(cadata=ca.decode(errors="replace"))
                context.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ValueError) as error:
            raise UsageError(f"{self._client_ca}: no certificates ({error})") from None
        return context

    def changed(self) -> Any:
        """As `read` where the files have changed, else None; unusable ones change nothing."""
        try:
            state = self._stat()
            if state == self._state:
                return None
            made, self._state = self.read(), state
        except UsageError as error:
            logger.error("%s; the certificate read before goes on counting", error)
            return None
        logger.info("%s: read again", self._certificate)
        return made

    def _stat(self) -> list[tuple[int, int, int]]:
        paths = [self._certificate, self._key, *([self._client_ca] if self._client_ca else [])]
        return [_stat(path) for path in paths]


def _stat(path: Path) -> tuple[int, int, int]:
    try:
        found = os.stat(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    return found.st_mtime_ns, found.st_size, found.st_ino
