"""A link to a service in this process: no sockets, the same semantics as over gRPC.

For tests, demos and single-machine use. One thread a session moves frames; the service
computes on the cloud's own workers, so that sessions take turns as they do over gRPC.

Not covered: the network, and so encryption and unreachable peers.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from collm.errors import LinkError, LinkTimeout, Refused
from collm.limits import DEFAULT_LIMITS, Limits
from collm.link import refusals
from collm.link.base import NOTHING, Closing, Link, Peer, Service
from collm.link.frames import FrameQueue
from collm.link.places import Place, Places
from collm.link.turns import Turns, refusal_frame


def connect_memory(service: Service, limits: Limits = DEFAULT_LIMITS) -> Link:
    """A link to a cloud of its own around `service`; closing the link closes that cloud.

    Two links whose sessions shall share workers and a session count need one `MemoryCloud`.
    """
    cloud = MemoryCloud(service, limits)
    return cloud._connect(owned=True)


class MemoryCloud(Closing):
    """A service that links in this process can connect to."""

    def __init__(
        self, service: Service, limits: Limits = DEFAULT_LIMITS, *, workers: int = 1
    ) -> None:
        self._service = service
        self._limits = limits
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="collm-memory-compute")
        self._places = Places(limits)
        self._links: set[_MemoryLink] = set()
        self._closed = False

    def connect(self, identity: str = "") -> Link:
        """A new session. Raises `LinkError` when the cloud is closed."""
        return self._connect(owned=False, identity=identity)

    def close(self) -> None:
        """End every session and free the workers. Idempotent."""
        self._closed = True
        for link in tuple(self._links):
            link.close()
        self._executor.shutdown(wait=True)

    def _connect(self, *, owned: bool, identity: str = "") -> _MemoryLink:
        if self._closed:
            raise LinkError("this in-memory cloud is closed")
        link = _MemoryLink(self, self._limits, owned=owned, identity=identity)
        self._links.add(link)
        return link

    def _serve(self, link: _MemoryLink) -> None:
        """One session, in its own thread, until it ends."""
        place: Place | None = None
        turns: Turns | None = None
        try:
            # Who is told so while it waits finds no frame; what has come is answered first.
            place = self._places.take(lambda: link.up.close(refusals.SESSION_OVER))
            peer = replace(link.peer, end=place.end)
            turns = Turns(self._service, peer, self._executor)
            turns.open().result()
            while (frame := self._next_frame(link, place)) is not None:
                reply = turns.begin(frame).result()
                while reply is not None and not link.gone.is_set():
                    if reply is not NOTHING:
                        link.down.put(reply, self._limits.send_seconds)
                        link.gone.wait(turns.pause_seconds)
                    reply = turns.advance().result()
                link.gone.wait(turns.pause_seconds)
        except Exception as error:  # noqa: BLE001 - reported by `_refuse`
            self._refuse(link, error)
        finally:
            if turns is not None:
                turns.close().result()
            if place is not None:
                self._places.give_back(place)
            link.up.close(refusals.SESSION_OVER, discard=True)
            link.down.close(refusals.SESSION_OVER)
            self._links.discard(link)

    def _next_frame(self, link: _MemoryLink, place: Place) -> bytes | None:
        try:
            place.waits()
            return None if link.gone.is_set() else link.up.get(self._limits.idle_seconds)
        except LinkTimeout:
            raise refusals.idle(self._limits) from None
        except Refused:
            raise
        except LinkError:
            if place.why is not None and not link.gone.is_set():
                raise place.why from None
            return None  # the client closed
        finally:
            place.works()

    def _refuse(self, link: _MemoryLink, error: Exception) -> None:
        frame = refusal_frame(self._service, error, link.peer)
        if frame is not None:
            try:
                link.down.put(frame, self._limits.send_seconds)
            except LinkError:
                return  # the client is gone or takes nothing: nobody is left to tell


class _MemoryLink(Closing):
    """See `base.Link`."""

    def __init__(
        self, cloud: MemoryCloud, limits: Limits, *, owned: bool, identity: str = ""
    ) -> None:
        self.peer = Peer(f"memory:{id(self):x}", identity)
        self.up = FrameQueue(limits)
        self.down = FrameQueue(limits)
        self.gone = threading.Event()
        self._limits = limits
        self._owned_cloud = cloud if owned else None
        self._thread = threading.Thread(
            target=cloud._serve, args=(self,), name="collm-memory-session", daemon=True
        )
        self._thread.start()

    def send(self, frame: bytes) -> None:
        self.up.put(frame, self._limits.send_seconds)

    def receive(self, timeout: float) -> bytes:
        return self.down.get(timeout)

    def close(self) -> None:
        self.up.close(refusals.CLOSED_HERE)
        self._thread.join(self._limits.linger_seconds)
        self.gone.set()
        # The session may wait for room for replies that nobody will read.
        self.down.close(refusals.CLOSED_HERE, discard=True)
        self._thread.join(self._limits.shutdown_seconds)
        if self._owned_cloud is not None:
            self._owned_cloud._executor.shutdown(wait=not self._thread.is_alive())

    @property
    def bytes_up(self) -> int:
        return self.up.bytes_in

    @property
    def bytes_down(self) -> int:
        return self.down.bytes_out
