"""A draft path of the real model through the command line: made, used, and the text is exact."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.e2e.conftest import collm

from collm.model.artifact import Artifact
from collm.tune.variants import linked_copy

pytestmark = pytest.mark.e2e


def test_a_thin_path_drafts_and_the_text_is_the_full_models(
    artifact: Artifact, cloud: str, tmp_path: Path
) -> None:
    folder = linked_copy(artifact, tmp_path / "small").folder
    ran = collm("compress", folder, "--name", "thin", "--upto", "10", "--layers",
                "0,1,2,3,4,6,7,8", "--tune-tokens", "0", "--rows", "60", "--look", "60",
                "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    (record,) = ran.lines()
    assert record["agreement"] > 0.15  # an exit on states that it was not tuned for
    question = ("Why is the sky blue?", "--cloud", cloud, "--max-tokens", "32", "--threads", "1",
                "--json")  # fmt: skip
    drafted = collm("run", folder, *question, "--draft-path", "thin", "--threshold", "0.3")
    alone = collm("run", artifact.folder, *question, "--mode", "cloud")
    assert drafted.code == alone.code == 0, drafted.err + alone.err
    (made,), (wanted,) = drafted.lines(), alone.lines()
    assert made["token_ids"] == wanted["token_ids"] and len(made["token_ids"]) == 32
    assert 0 < made["rounds"] < 32  # some drafts were right
    assert made["bytes_up"] < 32 * 576  # no hidden states went up
    assert made["placement"] == 0 and made["exits"] == [10]
