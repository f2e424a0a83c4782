"""What is fetched for a placement is what an edge opens: no file more, no file less."""

from __future__ import annotations

import itertools
import re
import shutil
from pathlib import Path

import pytest
from tests.exit_files import exit_file
from tests.support import random_artifact, token_ids

from collm.config import Generation
from collm.errors import ArtifactError, PlacementError, PromptError
from collm.model.artifact import Artifact
from collm.model.exits import add_exit
from collm.model.needs import stage_files
from collm.runtime.stage import Stage
from collm.session.edge import Edge
from collm.session.placed import MODES, placed_files

PLACEMENTS = (0, 1, 2, 3, 4)
EXITS = (None, (), (1,), (2, 3))


class Recording(Artifact):
    """Notes which files are asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.opened: set[str] = set()

    def path(self, name: str) -> Path:
        self.opened.add(name)
        return super().path(name)


@pytest.fixture(scope="module", params=["fp32 tied", "int8 untied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exits of every kind: identity, an adapter with a shortlist, a linear one fed from below."""
    weights, tied = request.param.split()
    root = tmp_path_factory.mktemp("needs")
    made = random_artifact(
        root / "a", weights=weights, cuts=(1, 2, 3), tie_word_embeddings=tied == "tied"
    )
    arch = made.architecture
    add_exit(made.folder, exit_file(root / "2", arch, 2, "layer", shortlist=40))
    add_exit(made.folder, exit_file(root / "3", arch, 3, "linear", feed=(1,)))
    return made.folder


def test_needs_are_what_an_edge_opens(folder: Path) -> None:
    seen = set()
    for mode, placement, exits in itertools.product(MODES, PLACEMENTS, EXITS):
        recording = Recording(folder)
        try:
            Edge(recording, mode=mode, placement=placement, exits=exits)
        except PlacementError as refused:
            with pytest.raises(PlacementError, match=re.escape(str(refused))):
                placed_files(recording.manifest, mode, placement, exits)
            continue
        needed = placed_files(recording.manifest, mode, placement, exits)
        assert needed == recording.opened, (mode, placement, exits)
        seen.add(needed)
    assert len(seen) > 10
    assert frozenset({"tokenizer.json"}) in seen


def test_an_edge_answers_from_these_files_alone(folder: Path, tmp_path: Path) -> None:
    """Also what is read past `Artifact.path`, through maps, is there."""
    whole = Artifact(folder)
    for placement, exits in ((2, None), (3, (1, 3)), (4, None), (1, (1,))):
        sparse = tmp_path / f"{placement}"
        for name in placed_files(whole.manifest, "standalone", placement, exits):
            (sparse / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, sparse / name)
        shutil.copyfile(folder / "manifest.json", sparse / "manifest.json")
        texts = []
        for made in (whole, Artifact(sparse)):
            edge = Edge(made, mode="standalone", placement=placement, exits=exits)
            answer = edge.answer(token_ids(1, 6), Generation(mode="standalone", max_tokens=6))
            texts.append(answer.finish().token_ids)
        assert texts[0] == texts[1]


def test_needs_of_stages_that_begin_later(folder: Path) -> None:
    for layers in (range(1, 2), range(2, 4), range(1, 4), range(4)):
        recording = Recording(folder)
        exits = (2,) if 2 in (*layers, layers.stop) and layers.start < 2 else ()
        Stage(recording, layers, exits=exits)
        assert stage_files(recording.manifest, layers, exits) == recording.opened


def test_needs_that_cannot_be(folder: Path) -> None:
    manifest = Artifact(folder).manifest
    with pytest.raises(PromptError, match="expected one of auto, verified, threshold"):
        placed_files(manifest, "telepathy", 1, None)
    with pytest.raises(PlacementError, match="placement 9: expected one of 0, 1, 2, 3, 4"):
        placed_files(manifest, "verified", 9, None)
    files = {k: v for k, v in manifest.files.items() if k != manifest.blocks[0].graph}
    object.__setattr__(manifest, "files", files)
    with pytest.raises(ArtifactError, match=r"lists no file blocks/000-001\.onnx"):
        placed_files(manifest, "verified", 1, None)


def test_a_missing_file_is_fetched_when_it_is_asked_for(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "a")
    gone = tmp_path / "a" / "blocks"
    shutil.rmtree(gone)
    asked: list[str] = []

    def fetch(name: str) -> None:
        asked.append(name)
        gone.mkdir(exist_ok=True)
        shutil.copyfile(folder / name, tmp_path / "a" / name)

    Stage(Artifact(tmp_path / "a", fetch=fetch), range(2))
    blocks = [f"blocks/{n}.{end}" for n in ("000-001", "001-002") for end in ("data", "onnx")]
    assert sorted(asked) == blocks
    shutil.rmtree(gone)
    with pytest.raises(ArtifactError, match="missing"):
        Stage(Artifact(tmp_path / "a", fetch=asked.append), range(1))
