"""Every command in the README runs. The make targets are CI's own: `.ci/run` calls them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from tests.e2e.doc_commands import ROOT, World, blocks

pytestmark = pytest.mark.e2e

COMMANDS = blocks(ROOT / "README.md")


def test_make_targets_exist_and_ci_runs_them() -> None:
    makefile = (ROOT / "Makefile").read_text()
    ci = (ROOT / ".ci" / "run").read_text()
    targets = [one.text.split()[1] for one in COMMANDS if one.text.startswith("make ")]
    assert targets[:2] == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    for target in ("demo", "test", "check"):
        assert f"make {target}" in ci


@pytest.mark.timeout(600)
def test_collm_commands_run_as_written(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    world = World(tmp_path, as_written=True)
    ran = [one for one in COMMANDS if one.text.startswith("collm ") and " bench " not in one.text]
    try:
        for block in ran:
            world.run(block)
        world.follow([one for one in COMMANDS if one.kind == "python"])
    finally:
        world.close()
    assert len(ran) >= 6
