"""A cloud: a process of one's own on this machine, or one that runs elsewhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from collm.errors import UsageError
from collm.limits import DEFAULT_LIMITS
from collm.link.address import parse_address
from collm.link.base import Closing
from collm.link.credentials import ClientSecurity, check_token_stays_secret
from collm.link.dialer import Dialer
from collm.model.artifact import Artifact
from collm.serve.spawn import spawned_cloud
from collm.session.probing import probe


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """A link and the cloud behind it. Seconds; bits a second, 0 where it is not known."""

    rtt_seconds: float
    """Median of a small message's way there and back."""
    jitter_seconds: float
    up_bits: float
    down_bits: float
    fingerprint: str
    """Of the model it serves; empty: it did not say."""
    layers: int
    sessions: int
    """That it holds at the moment."""


class Cloud(Closing):
    """A cloud process on this machine, for as long as this object lives.

    Args:
        artifact: The artifact folder.
        listen: `HOST:PORT`; port 0 takes a free one. An address that other machines reach needs
            TLS and tokens among the `arguments`.
        threads: Compute threads; 0 takes what the machine has.
        arguments: More of the options of `collm cloud`, such as `["--kv-memory", "1gb"]`.

    Raises:
        ArtifactError: For a folder that is no artifact.
        LinkError: Where the process does not come up; the message is its own last line.

    Examples:
        >>> from collm import Cloud
        >>> with Cloud(artifact, threads=1) as cloud:
        ...     host, port = cloud.address.split(":")
        ...     cloud.probe(seconds=0).layers
        4
        >>> host
        '127.0.0.1'
    """

    def __init__(
        self,
        artifact: str | Path,
        *,
        listen: str = "127.0.0.1:0",
        threads: int = 0,
        arguments: Sequence[str] = (),
    ) -> None:
        folder = Path(artifact)
        Artifact(folder)  # says what is wrong with it in this process
        self._stack = ExitStack()
        spawned = self._stack.enter_context(
            spawned_cloud(
                folder,
                threads=threads or cores(),
                limits=DEFAULT_LIMITS,
                arguments=arguments,
                listen=listen,
            )
        )
        self.pid: int | None = spawned.pid
        """Of the process; None for a cloud elsewhere."""
        self.addresses: tuple[str, ...] = (spawned.address,)
        self.security = ClientSecurity()

    @classmethod
    def at(
        cls,
        address: str,
        *,
        ca: str | Path | None = None,
        certificate: str | Path | None = None,
        key: str | Path | None = None,
        token: str = "",
    ) -> Self:
        """A cloud that runs elsewhere. Nothing is called before it is used.

        Args:
            address: `HOST:PORT`, or several, separated by commas: the next one where one fails.
            ca: PEM file of the authority that signed its certificate; links then use TLS.
            certificate: PEM file of this device's own certificate, where the cloud asks for one.
            key: PEM file of that certificate's key.
            token: This device's token, where the cloud asks for one. Needs `ca`, unless the cloud
                is on this machine.

        Raises:
            UsageError: For what is no address, for half of a certificate and key, and for a token
                that would travel unencrypted.

        Examples:
            >>> from collm import Cloud
            >>> Cloud.at("10.0.0.7:50051,10.0.0.8:50051").addresses
            ('10.0.0.7:50051', '10.0.0.8:50051')
        """
        made = cls.__new__(cls)
        made._stack = ExitStack()
        made.pid = None
        made.addresses = tuple(part.strip() for part in address.split(","))
        for one in made.addresses:
            try:
                parse_address(one)
            except ValueError as error:
                raise UsageError(str(error)) from None
        made.security = ClientSecurity(
            ca=_path(ca), certificate=_path(certificate), key=_path(key), token=token
        )
        check_token_stays_secret(made.addresses, made.security, cloud="the cloud", ca="ca")
        return made

    @property
    def address(self) -> str:
        """`HOST:PORT`; of several, all, separated by commas."""
        return ",".join(self.addresses)

    def probe(self, *, seconds: float = 2.0) -> Probe:
        """Measure the link, for about so long, and ask the cloud about itself.

        Raises:
            LinkError: `Unreachable`, `Refused` or `LinkTimeout`.
        """
        found = probe(self.connect(), budget=seconds)
        return Probe(
            rtt_seconds=found.link.round_trip,
            jitter_seconds=found.link.jitter,
            up_bits=found.link.up_bits,
            down_bits=found.link.down_bits,
            fingerprint=found.cloud.fingerprint,
            layers=found.cloud.layers,
            sessions=found.cloud.sessions,
        )

    def connect(self) -> Dialer:
        """What makes links to it: for `collm.session`, and for this module's own use."""
        return Dialer(self.addresses, DEFAULT_LIMITS, self.security)

    def close(self) -> None:
        """End the process; does nothing to a cloud elsewhere. Idempotent."""
        self._stack.close()


def cores(processes: int = 1) -> int:
    """This machine's cores, shared among so many processes of ours."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (available or 1) // processes)


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)
