"""How an edge shows a cloud who it is: options that verbs share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from collm.errors import UsageError
from collm.link.credentials import ClientSecurity
from collm.link.credentials import check_token_stays_secret as check_token_stays_secret

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
