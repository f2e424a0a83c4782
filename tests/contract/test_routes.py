"""Routes and credentials between real servers: what is measured, and who is let in."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract.link_services import until
from tests.contract.tiers import LIMITS, PROMPT, Host, Tiers, finish, whole
from tests.support import random_artifact

from collm.config import Generation
from collm.errors import Refused
from collm.link.background import BackgroundServer
from collm.link.credentials import ClientSecurity, ServerSecurity
from collm.link.dialer import Dialer
from collm.link.route_prober import RouteProber
from collm.link.shaper import LinkShaper
from collm.link.shapes import LinkShape
from collm.model.artifact import Artifact
from collm.session.edge import Edge

MADE = Generation(max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder: Path = tmp_path_factory.mktemp("tiny") / "artifact"
    return random_artifact(folder, cuts=(1, 2, 3), weights="int4", max_position_embeddings=96)


@pytest.fixture
def tiers(artifact: Artifact) -> Iterator[Tiers]:
    with Tiers(artifact, "grpc", servers=2) as made:
        yield made


def address(host: Host) -> str:
    assert isinstance(host._place, BackgroundServer)
    return host._place.address


@pytest.mark.timed
def test_new_answers_go_to_the_near_server_that_has_a_cloud(tiers: Tiers) -> None:
    """Far, near, dead: by measuring. When the near one loses its cloud, to the far one."""
    shape = LinkShape(name="far", delay_seconds=0.02)
    near, far = tiers.hosts["server0"], tiers.hosts["server1"]
    with LinkShaper(shape, "127.0.0.1:0", address(far)) as link, ExitStack() as stack:
        names = [link.address, address(near), "127.0.0.1:9"]
        prober = RouteProber(names, LIMITS)
        dialer = Dialer(names, LIMITS, route=prober)
        edge = Edge(tiers.artifact, mode="verified", placement=1, connect=dialer, limits=LIMITS)
        wanted = whole(tiers.artifact, MADE)

        def place() -> str:
            """Who holds the session of an answer that has begun."""
            answer = edge.answer(PROMPT, MADE)
            next(iter(answer))
            held = [n for n in ("server0", "server1") if len(tiers.hosts[n].service.sessions)]
            assert answer.finish().token_ids == wanted
            assert until(lambda: not any(len(h.service.sessions) for h in (near, far)))
            (name,) = held
            return name

        assert place() == "server0"
        prober.round()  # the first one does not wait for the slow
        seconds = prober._routes.seconds(link.address)
        assert seconds is not None and 0.04 <= seconds < 0.3
        other = stack.enter_context(Tiers(tiers.artifact))
        tiers.relay(1).above.dialer = other.dialer("cloud")
        tiers.cloud.kill()
        assert not tiers.relay(0).above.check()
        prober.round()
        assert place() == "server1"


def test_a_server_shows_its_token_to_the_cloud_above(artifact: Artifact, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("server-1 kT0zV9aaaaaaaaaaaaaa\n")
    tokens.chmod(0o600)
    with Tiers(artifact) as tiers, BackgroundServer(
        tiers.cloud.service, limits=LIMITS, security=ServerSecurity(tokens=tokens)
    ) as guarded:  # fmt: skip
        above = tiers.relay().above
        above.dialer = Dialer([guarded.address], LIMITS)
        assert not above.check()
        assert isinstance(above.fault, Refused) and above.fault.code == "identity"
        security = ClientSecurity(token="kT0zV9aaaaaaaaaaaaaa")
        above.dialer = Dialer([guarded.address], LIMITS, security)
        assert above.check()
        assert finish(tiers.edge("verified", 1), MADE).token_ids == whole(artifact, MADE)
        above.dialer.close()


def test_room_at_the_cloud_above_is_waited_for(artifact: Artifact) -> None:
    limits = replace(LIMITS, max_identity_sessions=1)
    with Tiers(artifact, limits=limits, server_limits=LIMITS) as tiers:
        begun = iter(tiers.edge("verified", 3, ["cloud"]).answer(PROMPT, MADE))
        next(begun)
        texts: list[list[int]] = []

        def ask() -> None:
            texts.append(finish(tiers.edge("verified", 1), MADE).token_ids)

        thread = threading.Thread(target=ask)
        thread.start()
        assert until(lambda: len(tiers.relay().sessions) == 1)
        time.sleep(0.3)
        assert not texts
        for _ in begun:
            pass
        thread.join(10.0)
        assert texts == [whole(artifact, MADE)]
