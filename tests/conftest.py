"""The real embedded model, built once a test session."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.e2e.conftest import collm

from collm.model.artifact import Artifact

LONGEST = (
    "test_readme", "test_faithful", "test_bench_table", "test_docs_site", "test_commands",
    "test_eval_quality", "test_modes", "test_bad_input", "test_openai_clients", "test_pull",
)  # fmt: skip
"""Files of tests/e2e. A file is one worker's, so the longest come first: at the end of the run no
worker is left with one while the other has nothing to do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: at for at, name in enumerate(LONGEST)}
    items.sort(
        key=lambda item: (
            order.get(item.path.stem, len(order)) if item.path.parent.name == "e2e" else len(order)
        )
    )


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of SmolLM2-135M-Instruct as `collm build` makes it."""
    folder = tmp_path_factory.mktemp("artifacts") / "smollm2"
    ran = collm("build", "smollm2", folder, "--cuts", "5,10,15,20", timeout=120)
    assert ran.code == 0, ran.err
    return folder


@pytest.fixture(scope="session")
def artifact(smollm2: Path) -> Artifact:
    return Artifact(smollm2)
