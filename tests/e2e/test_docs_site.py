"""The documentation site builds without a warning, and what its pages tell people to do works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.doc_commands import ROOT, Block, World, blocks, pages

pytestmark = pytest.mark.e2e

SKIPPED = {
    r"pip |python3 -m venv|\. \S+/activate": "installs; CI's own first step is `pip install`",
    r"sudo ": "changes the machine; the units are verified below",
    r"docker |\S*OPENAI_API_BASE_URL=": "Open WebUI is not among the tests' dependencies",
    r"collm bench ": "takes minutes; tests/unit and tests/e2e run each on something small",
    r"collm build ": "the session's artifact is built so",
    r"collm tune my-model --tokens 1500000$": "takes an hour",
    r"collm (synthesize|tune|calibrate|eval|profile|plan) ": "the README's are run by its test",
    r"collm serve .*--host 172": "an address of Docker's bridge",
    r".*(…|bad-day\.txt|cloud:\d|server:\d)": "an abridged line, or one that needs three machines",
    r"llm -m ": "needs a file in the user's folder; tests/e2e of the clients run it",
}
FIRST = ("docs/tutorial.md", "docs/howto/tls.md")
"""They make the certificates and tokens that others use."""


def reason(block: Block) -> str | None:
    """Why it is not run."""
    found = (why for pattern, why in SKIPPED.items() if re.match(pattern, block.text))
    return next(found, None)


def to_run() -> dict[str, list[Block]]:
    """By page; what the README's test has run, or a page before, is not run again."""
    told = {block.text for block in blocks(ROOT / "README.md") if "serve" not in block.text}
    by_page: dict[str, list[Block]] = {}
    names = {page.relative_to(ROOT).as_posix(): page for page in pages()}
    for name in (*FIRST, *(name for name in names if name not in FIRST)):
        for block in blocks(names[name]):
            is_server = re.match(r"collm (cloud|serve|link) ", block.text)
            if reason(block) is None and (is_server or block.text not in told):
                by_page.setdefault(name, []).append(block)
                told.add(block.text)
    return by_page


TO_RUN = to_run()


@pytest.fixture(scope="module")
def world(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(smollm2, folder / "my-model")
    shutil.copytree(ROOT / "examples", folder / "examples")
    world = World(folder)
    try:
        yield world
    finally:
        world.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", TO_RUN)
def test_a_pages_commands_run_as_written(page: str, world: World) -> None:
    world.follow(TO_RUN[page])


def test_most_commands_are_run() -> None:
    assert sum(map(len, TO_RUN.values())) >= 40
    assert {"docs/tutorial.md", "docs/howto/clients.md", "docs/howto/python.md"} <= set(TO_RUN)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    built = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (built.returncode, built.stderr + built.stdout) == (0, "")
    for page in ("index", "tutorial", "howto/clients", "reference/commands", "reference/python"):
        assert (tmp_path / page.removesuffix("index") / "index.html").is_file()
    commands = (tmp_path / "reference/commands/index.html").read_text()
    assert "--kv-memory" in commands
    assert "<!-- generated" not in commands
    for html in tmp_path.rglob("*.html"):  # nothing is loaded from elsewhere
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*src="(https?:[^"]+)', html.read_text())
        loaded += re.findall(
            r'<link[^>]*rel="(?:stylesheet|preconnect)"[^>]*"(https?:[^"]+)', html.read_text()
        )
        assert not loaded, (html, loaded)
