"""Reading the /metrics of a running CoLLM: over HTTP, or its Unix socket on this machine."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from collm.errors import LinkError, ProtocolError, Refused, Unreachable, one_line
from collm.limits import DEFAULT_LIMITS, Limits
from collm.link.address import split_url

_MOST_BYTES = 4 * 2**20
_OURS = "collm_"
_EXPECTED = "HOST:PORT, or a URL such as http://127.0.0.1:8000/metrics"


@dataclass(frozen=True)
class Source:
    """Where /metrics is. Raises UsageError for an address that is none."""

    address: str
    """`HOST:PORT`, a URL, or the path of a Unix socket."""
    token: str = field(default="", repr=False)
    ca: Path | None = None
    """PEM: trusted instead of the system's authorities, for https."""

    def __post_init__(self) -> None:
        if not self.is_socket:
            split_url(self._full, _EXPECTED)

    @property
    def is_socket(self) -> bool:
        """Whether it is a Unix socket's."""
        return self.address.startswith("/")

    @property
    def url(self) -> str:
        """With its path."""
        has_path = split_url(self._full, _EXPECTED).path not in ("", "/")
        return self._full if has_path else f"{self._full.rstrip('/')}/metrics"

    @property
    def _full(self) -> str:
        return self.address if "://" in self.address else f"http://{self.address}"


@dataclass(frozen=True)
class Histogram:
    """Counts by upper bound, cumulative and ascending, as Prometheus has them."""

    buckets: tuple[tuple[float, float], ...] = ()
    total: float = 0.0
    """Sum of the values."""

    @property
    def count(self) -> float:
        """Values counted."""
        return self.buckets[-1][1] if self.buckets else 0.0

    def quantile(self, share: float) -> float | None:
        """The value that `share` of all are below, straight between bounds; None for no values.

        As PromQL's histogram_quantile: what lies beyond the last bound is that bound.
        """
        wanted, low, below = share * self.count, 0.0, 0.0
        if not self.count:
            return None
        for bound, count in self.buckets:
            if count >= wanted and count > below:
                if bound == float("inf"):
                    return low
                return low + (bound - low) * (wanted - below) / (count - below)
            low, below = bound, count
        return low

    def since(self, before: Histogram) -> Histogram:
        """Of the values that came after `before`; all of them where the process began anew."""
        counts = dict(before.buckets)
        if self.count < before.count:
            return self
        buckets = tuple((bound, count - counts.get(bound, 0.0)) for bound, count in self.buckets)
        return Histogram(buckets, self.total - before.total)


Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Samples:
    """The numbers of one reading, by name and labels."""

    values: Mapping[tuple[str, Labels], float]

    def total(self, name: str) -> float | None:
        """Over all labels; None where the process does not have it."""
        found = [value for (one, _), value in self.values.items() if one == name]
        return sum(found) if found else None

    def by(self, name: str, label: str) -> dict[str, float]:
        """By the values of one label."""
        found: dict[str, float] = {}
        for (one, labels), value in self.values.items():
            if one == name:
                key = dict(labels).get(label, "")
                found[key] = found.get(key, 0.0) + value
        return found

    def histogram(self, name: str) -> Histogram:
        """Over all labels."""
        counts: dict[float, float] = {}
        for (one, labels), value in self.values.items():
            if one == f"{name}_bucket":
                bound = float(dict(labels).get("le", "nan"))
                counts[bound] = counts.get(bound, 0.0) + value
        return Histogram(tuple(sorted(counts.items())), self.total(f"{name}_sum") or 0.0)


def read_samples(source: Source, limits: Limits = DEFAULT_LIMITS) -> Samples:
    """One reading. Raises Unreachable, Refused for credentials, ProtocolError for other pages."""
    return parse_samples(_fetched(source, limits), source.address)


def parse_samples(text: str, where: str = "the page") -> Samples:
    """CoLLM's own numbers of a page of Prometheus's. Raises ProtocolError."""
    try:
        values = {
            (sample.name, tuple(sorted(sample.labels.items()))): float(sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name.startswith(_OURS)
        }
    except (ValueError, KeyError, IndexError) as error:
        raise ProtocolError(f"{where}: no metrics ({one_line(error, 80)})") from None
    if not values:
        raise ProtocolError(f"{where}: no metrics of CoLLM there; is it another program's port?")
    return Samples(values)


class _SocketConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _connection(source: Source, timeout: float) -> http.client.HTTPConnection:
    if source.is_socket:
        return _SocketConnection(source.address, timeout)
    parts = split_url(source.url, _EXPECTED)
    host, port = parts.hostname or "", parts.port
    if parts.scheme == "https":
        context = ssl.create_default_context(cafile=source.ca)
        return http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
    return http.client.HTTPConnection(host, port, timeout=timeout)


def _fetched(source: Source, limits: Limits) -> str:
    headers = {"Authorization": f"Bearer {source.token}"} if source.token else {}
    path = "/metrics" if source.is_socket else split_url(source.url, _EXPECTED).path
    connection = _connection(source, limits.probe_seconds)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        body = answer.read(_MOST_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        told = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Unreachable(f"{source.address}: nobody answers ({one_line(told, 120)})") from None
    finally:
        connection.close()
    if answer.status in (401, 403):
        raise Refused("identity", f"{source.address}: wants a token; give --token-file FILE")
    if answer.status != 200:
        raise LinkError(f"{source.address}: no /metrics there (HTTP {answer.status})")
    if len(body) > _MOST_BYTES:
        raise ProtocolError(f"{source.address}: over {_MOST_BYTES} bytes; no metrics of CoLLM")
    return body.decode(errors="replace")
