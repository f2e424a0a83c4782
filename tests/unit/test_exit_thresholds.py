"""What a manifest says of exits and of the model: thresholds, calibration, adaptation."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.exit_files import exit_file
from tests.support import random_artifact, tree
from typer.testing import CliRunner

from collm.cli.main import app
from collm.errors import ArtifactError, PlacementError
from collm.model.artifact import Artifact
from collm.model.exits import add_exit, set_thresholds
from collm.model.manifest import Manifest


def test_thresholds_are_kept_and_change_no_text(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "a")
    made = set_thresholds(artifact.folder, {1: (0.75, '{"target": 0.98}'), 2: (None, "{}")})
    assert Manifest.read(artifact.folder) == made
    assert made.fingerprint == artifact.fingerprint
    found = [(e.cut, e.threshold, e.calibration) for e in made.exits]
    assert found == [(1, 0.75, '{"target": 0.98}'), (2, None, "{}")]
    set_thresholds(artifact.folder, {2: (1.0, "")})
    assert [e.threshold for e in Manifest.read(artifact.folder).exits] == [0.75, 1.0]


def test_another_exit_has_no_threshold_yet(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "a")
    set_thresholds(artifact.folder, {1: (0.75, "{}"), 2: (0.5, "{}")})
    add_exit(artifact.folder, exit_file(tmp_path / "x", artifact.architecture, 1, "linear"))
    exits = Artifact(artifact.folder).manifest.exits
    assert [(e.threshold, e.calibration) for e in exits] == [(None, ""), (0.5, "{}")]


def test_a_threshold_for_no_exit_changes_nothing(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "a")
    before = tree(artifact.folder)
    with pytest.raises(PlacementError, match="exit 3: the artifact has exits at 1, 2"):
        set_thresholds(artifact.folder, {1: (0.5, ""), 3: (0.5, "")})
    with pytest.raises(ValueError, match=r"1\.5"):
        set_thresholds(artifact.folder, {1: (1.5, "")})
    assert tree(artifact.folder) == before


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01, float("nan"), "high", [0.5]])
def test_a_damaged_threshold_is_refused(tmp_path: Path, threshold: object) -> None:
    artifact = random_artifact(tmp_path / "a")
    edit_manifest(artifact.folder, lambda data: data["exits"][0].update(threshold=threshold))
    with pytest.raises(ArtifactError, match="damaged"):
        Artifact(artifact.folder)


def test_a_manifest_from_before_thresholds_and_adaptations_is_read(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "a")

    def as_before(data: dict[str, Any]) -> None:
        del data["adaptation"]
        for entry in data["exits"]:
            del entry["threshold"], entry["calibration"]

    edit_manifest(artifact.folder, as_before)
    assert Manifest.read(artifact.folder) == artifact.manifest


def test_an_adapted_model_is_another_model(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "a")
    edit_manifest(artifact.folder, lambda data: data.update(adaptation='{"rank": 16}'))
    with pytest.raises(ArtifactError, match="fingerprint"):
        Artifact(artifact.folder)
    adapted = replace(artifact.manifest, adaptation='{"rank": 16}')
    adapted.write(artifact.folder)
    assert Artifact(artifact.folder).manifest == adapted
    assert adapted.fingerprint != artifact.fingerprint


def test_info_shows_what_an_exit_is(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "a")
    arch = artifact.architecture
    add_exit(artifact.folder, exit_file(tmp_path / "x", arch, 1, "mlp", shortlist=50))
    add_exit(artifact.folder, exit_file(tmp_path / "x", arch, 2, "layer", layers=2, window=64))
    replace(set_thresholds(artifact.folder, {2: (0.8125, "{}")}), adaptation='{"rank": 16}').write(
        artifact.folder
    )
    text = CliRunner().invoke(app, ["info", str(artifact.folder)]).output
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]
    assert ["1", "mlp", "", "50", "", "untrained"] in rows
    assert ["2", "2 layers", "64", "300", "0.812", "untrained"] in rows
    assert 'adaptation {"rank": 16}' in text
    data = json.loads(CliRunner().invoke(app, ["info", str(artifact.folder), "--json"]).output)
    assert data["adaptation"] == '{"rank": 16}'
    shown = [(e["kind"], e["layers"], e["window"], e["threshold"]) for e in data["exits"]]
    assert shown == [("mlp", 0, 0, None), ("layer", 2, 64, 0.8125)]
