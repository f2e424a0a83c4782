"""Who may connect: certificates, and bearer tokens from a file that is read again when it changes.

A tokens file has a line for each token: a name, the token, and perhaps the day it expires::

    # edges in the workshop
    pi-1    kT0zV9…   2027-01-31
    pi-1    c8FqY2…
    robot   8sHn1w…

A name may have several, so that a new one can be handed out before the old one goes. The name is
the identity that sessions are bound to and that limits count by.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final

from collm.errors import UsageError
from collm.link.address import is_loopback, parse_address

logger = logging.getLogger(__name__)

LEAST_TOKEN: Final = 16
"""Characters of a token, at least."""
_MOST_FILE_BYTES: Final = 2**20
_LOOK_SECONDS: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class ServerSecurity:
    """What a cloud asks of its clients. Files are PEM. Raises UsageError, also for what is missing.

    certificate, key: of this cloud, for TLS. client_ca: clients need a certificate of this
    authority, and its common name is their identity unless a token tells it. tokens: clients need
    one of these.
    """

    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    tokens: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise UsageError("a certificate and its key belong together: --tls-cert and --tls-key")
        if self.client_ca is not None and self.certificate is None:
            raise UsageError("--client-ca needs TLS: give --tls-cert and --tls-key too")

    @property
    def is_encrypted(self) -> bool:
        """Whether links use TLS."""
        return self.certificate is not None

    @property
    def is_authenticated(self) -> bool:
        """Whether clients have to show who they are."""
        return self.client_ca is not None or self.tokens is not None


@dataclass(frozen=True, kw_only=True)
class ClientSecurity:
    """How an edge connects. Files are PEM. Raises UsageError for halves.

    ca: the authority that signed the cloud's certificate; with it links use TLS. certificate, key:
    this edge's own, for clouds that ask for one. token: sent with every call.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: str = ""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise UsageError("a certificate and its key belong together: --cert and --key")
        if self.certificate is not None and self.ca is None:
            raise UsageError("--cert needs --ca, the authority that signed the cloud's certificate")
        if self.token and not (self.token.isascii() and self.token.isprintable()):
            raise UsageError("the token has characters that cannot be sent; expected ASCII")


def check_token_stays_secret(
    addresses: Sequence[str], security: ClientSecurity, *, cloud: str = "--cloud", ca: str = "--ca"
) -> None:
    """Refuse to send a token in the clear to another machine. Raises UsageError.

    cloud, ca: the options that said whom to call, and what to trust.
    """
    if not security.token or security.ca is not None:
        return
    for address in addresses:
        try:
            host, _ = parse_address(address)
        except ValueError:
            continue  # told when it is dialled
        if not is_loopback(host):
            raise UsageError(
                f"{cloud} {address}: the token would travel unencrypted; add {ca}, the authority "
                "of the cloud's certificate"
            )


def read_pem(path: Path) -> bytes:
    """A certificate or key file. Raises UsageError."""
    try:
        data = path.read_bytes()[: _MOST_FILE_BYTES + 1]
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) > _MOST_FILE_BYTES or b"-----BEGIN " not in data:
        raise UsageError(f"{path}: no PEM file; expected -----BEGIN …")
    return data


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    digest: bytes
    """SHA-256 of the token: the tokens themselves are not kept."""
    expires: date | None


class TokenFile:
    """The tokens in `path`. Safe to use from several threads. Raises UsageError when made.

    bare: a line may also be a token alone, whose name is then the line's number.
    """

    def __init__(self, path: Path, *, bare: bool = False) -> None:
        self._path = path
        self._bare = bare
        self._lock = threading.Lock()
        self._looked_at = time.monotonic()
        self._state = self._stat()
        self._entries = self._read()

    def identity(self, token: str) -> str | None:
        """Whose token it is; None where it is nobody's, or has expired."""
        self._look()
        given = hashlib.sha256(token.encode()).digest()
        today = datetime.now(UTC).date()
        found: str | None = None
        for entry in self._entries:  # all of them, whichever fits: time tells nothing
            fits = hmac.compare_digest(entry.digest, given)
            if fits and (entry.expires is None or today <= entry.expires):
                found = entry.name
        return found

    def _look(self) -> None:
        """Read the file again where it has changed; a file that became unusable changes nothing."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked_at < _LOOK_SECONDS:
                return
            self._looked_at = now
            try:
                state = self._stat()
                if state != self._state:
                    self._entries, self._state = self._read(), state
                    logger.info("%s: read again, %d tokens", self._path, len(self._entries))
            except UsageError as error:
                logger.error("%s; the tokens read before go on counting", error)

    def _stat(self) -> tuple[int, int, int]:
        try:
            found = os.stat(self._path)
        except OSError as error:
            raise UsageError(f"{self._path}: cannot be read ({error.strerror})") from None
        if found.st_mode & 0o077 and os.name == "posix":
            raise UsageError(
                f"{self._path}: other users of this machine may read the tokens; "
                f"chmod 600 {self._path}"
            )
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> list[_Entry]:
        try:
            text = self._path.read_bytes()[: _MOST_FILE_BYTES + 1]
        except OSError as error:
            raise UsageError(f"{self._path}: cannot be read ({error.strerror})") from None
        if len(text) > _MOST_FILE_BYTES:
            raise UsageError(f"{self._path}: over {_MOST_FILE_BYTES} bytes")
        entries = []
        for number, line in enumerate(text.decode(errors="replace").splitlines(), 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            if self._bare and len(words) == 1:
                words = [f"line {number}", *words]
            entries.append(self._entry(words, number))
        if not entries:
            expected = "a token a line" if self._bare else "lines of a name and a token"
            raise UsageError(f"{self._path}: no tokens; expected {expected}")
        return entries

    def _entry(self, words: list[str], number: int) -> _Entry:
        where = f"{self._path}, line {number}"
        if len(words) not in (2, 3):
            raise UsageError(f"{where}: expected a name, a token and perhaps a day (2027-01-31)")
        name, token = words[:2]
        if len(token) < LEAST_TOKEN:
            raise UsageError(f"{where}: the token of {name} is shorter than {LEAST_TOKEN}")
        expires: date | None = None
        if len(words) == 3:
            try:
                expires = date.fromisoformat(words[2])
            except ValueError:
                raise UsageError(f"{where}: {words[2]!r} is no day such as 2027-01-31") from None
        return _Entry(name, hashlib.sha256(token.encode()).digest(), expires)
