"""How an edge shows a cloud who it is: options that verbs share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from collm.errors import UsageError
from collm.link.address import is_loopback, parse_address
from collm.link.credentials import ClientSecurity

CaOption = Annotated[
    Path | None, typer.Option(help="PEM: the authority of the cloud's certificate; uses TLS.")
]
CertOption = Annotated[Path | None, typer.Option(help="PEM certificate of this edge.")]
KeyOption = Annotated[Path | None, typer.Option(help="PEM key of that certificate.")]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(help="File with this edge's token for the cloud; default: $COLLM_TOKEN."),
]
_MOST_TOKEN_BYTES = 4096


def client_security(
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    token_file: Path | None,
    *,
    environment: bool = True,
) -> ClientSecurity:
    """What the options say. environment: $COLLM_TOKEN, too, which is a cloud's. UsageError."""
    token = os.environ.get("COLLM_TOKEN", "") if environment else ""
    if token_file is not None:
        try:
            token = token_file.read_bytes()[:_MOST_TOKEN_BYTES].decode(errors="replace")
        except OSError as error:
            raise UsageError(f"{token_file}: cannot be read ({error.strerror})") from None
        if len(token.split()) != 1:
            raise UsageError(f"{token_file}: expected one token and nothing else")
    return ClientSecurity(ca=ca, certificate=cert, key=key, token=token.strip())


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
