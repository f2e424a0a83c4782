"""The chat page's files: as they ship, from nowhere else, and nothing beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.openai_server import ask, serving_of
from tests.support import random_artifact

from collm.serve.openai.page import FOLDER
from collm.serve.openai.serving import Serving


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    artifact = random_artifact(tmp_path_factory.mktemp("tiny") / "a")
    with serving_of(artifact, page=FOLDER) as made:
        yield made


def test_the_page_and_all_it_names_is_served(serving: Serving) -> None:
    index = ask(serving, "/")
    assert index.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in index.headers["content-security-policy"]
    named = set(re.findall(r'(?:href|src)="(/?[\w./-]+)"', index.text))
    assert {Path(one).suffix for one in named} >= {".css", ".js"}
    kinds = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8"}
    for name in named:
        file = ask(serving, name if name.startswith("/") else f"/{name}")
        assert file.status_code == 200, name
        assert file.headers["content-type"] == kinds.get(
            Path(name).suffix, file.headers["content-type"]
        )
        assert file.headers["x-content-type-options"] == "nosniff"
        assert file.headers["cache-control"] == "no-cache"
    shipped = {path.name for path in FOLDER.iterdir() if path.is_file()}
    for name in shipped:
        assert ask(serving, f"/page/{name}").status_code == 200, name


def test_a_file_is_not_sent_twice(serving: Serving) -> None:
    first = ask(serving, "/")
    again = ask(serving, "/", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304 and not again.content


@pytest.mark.parametrize(
    "path",
    ["/page/../__init__.py", "/page/%2e%2e/__init__.py", "/page//etc/passwd", "/page/none.js",
     "/page/..%2fengine.py", "/page/"],
)  # fmt: skip
def test_nothing_beside_it_can_be_asked_for(serving: Serving, path: str) -> None:
    assert ask(serving, path).status_code == 404


def test_a_server_can_do_without(serving: Serving) -> None:
    assert ask(replace(serving, page=None), "/").status_code == 404
