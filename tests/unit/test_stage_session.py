"""What a stage answers and what it holds: exits, the end of the context, memory."""

from __future__ import annotations

import numpy as np
import pytest
from tests.exit_files import exit_file
from tests.support import random_artifact, token_ids

from collm.errors import ContextFull
from collm.limits import Limits
from collm.model.artifact import Artifact
from collm.model.exits import add_exit
from collm.model.vocabulary import RowReader
from collm.runtime.rows import RowBuffer
from collm.runtime.stage import Stage, StageSession

LAYERS, CUTS, CONTEXT = 4, (1, 2, 3), 24
IDS = token_ids(4, CONTEXT)


@pytest.fixture(scope="module", params=["fp32", "int8"])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("stage")
    made = random_artifact(folder / "a", weights=request.param, cuts=CUTS,
                           max_position_embeddings=CONTEXT)  # fmt: skip
    x, arch = folder / "x", made.architecture
    add_exit(made.folder, exit_file(x, arch, 1, "linear", temperature=2.5))
    layer = exit_file(x, arch, 2, "layer", shortlist=30, window=4, temperature=0.7)
    add_exit(made.folder, layer)
    return Artifact(made.folder)


@pytest.fixture(scope="module")
def stage(artifact: Artifact) -> Stage:
    return Stage(artifact, range(LAYERS), exits=CUTS, limits=Limits(kv_step=8))


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits.astype(np.float64) - logits.max())
    return exponentials / exponentials.sum()


# -------------------------------------------------------------------------------- exits


@pytest.mark.parametrize("cut", CUTS)
def test_confidence_is_the_softmax_of_the_logits(stage: Stage, cut: int) -> None:
    session = stage.open()
    for token in IDS:
        session.append_ids([token])
        result, logits = session.exit_at(cut), session.exit_logits(cut)
        probabilities = softmax(logits)
        first, second = np.argsort(-logits, kind="stable")[:2]
        assert (result.cut, result.token_id, result.runner_up) == (cut, first, second)
        assert result.confidence == pytest.approx(probabilities[first], abs=1e-5)
        assert result.runner_up_confidence == pytest.approx(probabilities[second], abs=1e-5)
        assert 0 < result.runner_up_confidence <= result.confidence <= 1


def test_a_shortlist_names_the_models_own_tokens(artifact: Artifact, stage: Stage) -> None:
    entry = artifact.manifest.exit_at(2)
    assert entry is not None
    ids = artifact.head_ids(artifact.manifest.heads[entry.head])
    assert ids is not None and len(ids) == 30
    session = stage.open()
    for token in IDS[:10]:
        session.append_ids([token])
        logits = session.exit_logits(2)
        assert logits.shape == (300,)
        assert set(np.flatnonzero(np.isfinite(logits))) == set(ids.tolist())
        assert (logits[np.isneginf(logits)]).size == 270
        result = session.exit_at(2)
        assert {result.token_id, result.runner_up} <= set(ids.tolist())


def test_an_untrained_exit_is_the_models_norm_and_head(stage: Stage) -> None:
    session = stage.open()
    session.append_ids(IDS[:5])
    exit_logits = session.exit_logits(3)
    expected = stage.logits(session.hidden_at(3, 4))[0]
    # All but the tokens in the lead, which the model's own head computes more finely.
    behind = expected < expected.max() - 1.1
    assert behind.sum() > 200
    assert np.abs(exit_logits - expected)[behind].max() < 1e-4
    assert np.abs(exit_logits - expected).max() < 0.5


def test_the_tokens_in_the_lead_have_float32_logits(artifact: Artifact, stage: Stage) -> None:
    session = stage.open()
    session.append_ids(IDS[:6])
    states = session.hidden_at(4, 0)
    logits = stage.logits(states)
    weights = RowReader.of_head(artifact.folder, artifact.manifest).floats(np.arange(300))
    norm = artifact.floats(artifact.manifest.final_norm)
    scale = np.sqrt((states**2).mean(-1, keepdims=True) + artifact.architecture.norm_epsilon)
    reference = (states / scale * norm) @ weights.T
    lead = logits >= logits.max(-1, keepdims=True) - 0.5
    assert lead.sum() >= 6
    assert np.abs(logits - reference)[lead].max() < 1e-4
    assert (logits.argmax(-1) == reference.argmax(-1)).all()


@pytest.mark.parametrize("cut", CUTS)
def test_asked_twice_an_exit_says_the_same(stage: Stage, cut: int) -> None:
    session = stage.open()
    session.append_ids(IDS[:7])
    first, logits = session.exit_at(cut), session.exit_logits(cut)
    session.run(LAYERS)
    assert session.exit_at(cut) == first
    assert (session.exit_logits(cut) == logits).all()


@pytest.mark.parametrize("cut", CUTS)
def test_an_exit_catches_up_after_silence_and_after_a_crop(stage: Stage, cut: int) -> None:
    asked, silent = stage.open(), stage.open()
    for token in IDS:
        asked.append_ids([token])
        asked.exit_at(cut)
    silent.append_ids(IDS[:9])
    silent.exit_at(cut)
    silent.append_ids([7, 7, 7])
    silent.exit_at(cut)
    silent.run(LAYERS)
    silent.crop(9)
    for i in range(9, CONTEXT, 3):
        silent.append_ids(IDS[i : i + 3])
        silent.run(LAYERS)
    # Exits run lone rows with other kernels than several: near, not equal.
    assert np.abs(finite(silent, cut) - finite(asked, cut)).max() < tolerance(stage)


@pytest.mark.parametrize("cut", CUTS)
def test_a_crop_takes_an_exit_back_to_what_it_said(stage: Stage, cut: int) -> None:
    session = stage.open(exact=False)
    said = []
    for token in IDS[:10]:
        session.append_ids([token])
        said.append(session.exit_at(cut))
    session.crop(8)
    assert session.exit_at(cut) == said[7]
    session.append_ids(IDS[8:9])
    assert session.exit_at(cut) == said[8]


def finite(session: StageSession, cut: int) -> np.ndarray:
    logits = session.exit_logits(cut)
    return logits[np.isfinite(logits)]


def tolerance(stage: Stage) -> float:
    return 1e-3 if stage.artifact.manifest.weights == "fp32" else 0.5


# ------------------------------------------------------------------------------- context


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("rows", [1, 5, CONTEXT])
def test_the_last_position_works_and_the_next_is_refused(
    stage: Stage, rows: int, exact: bool
) -> None:
    session, whole = stage.open(exact=exact), stage.open(exact=exact)
    whole.append_ids(IDS)
    expected = whole.logits(CONTEXT - 1)
    for start in range(0, CONTEXT, rows):
        session.append_ids(IDS[start : start + rows])
        logits = session.logits(session.position - 1)
    assert session.position == session.max_positions == CONTEXT
    if exact:
        assert (logits == expected).all()
    session.exit_at(2)
    with pytest.raises(ContextFull, match=f"{CONTEXT} positions"):
        session.append_ids([5])
    with pytest.raises(ContextFull):
        session.append_hidden(np.zeros((3, 64), dtype=np.float32))
    assert session.position == CONTEXT
    session.crop(CONTEXT - 1)
    session.append_ids(IDS[-1:])
    again = session.logits(CONTEXT - 1)
    assert (again == logits).all() or (rows > 1 and not exact)


def test_a_prompt_longer_than_the_context_changes_nothing(stage: Stage) -> None:
    session = stage.open()
    session.append_ids(IDS[:3])
    with pytest.raises(ContextFull):
        session.append_ids(IDS)
    assert session.position == 3
    other = stage.open()
    other.append_ids(IDS[:3])
    assert (session.logits(0) == other.logits(0)).all()


# -------------------------------------------------------------------------------- memory


def test_memory_grows_in_steps_and_is_freed(artifact: Artifact) -> None:
    arch = artifact.architecture
    step = 8 * 2 * LAYERS * arch.kv_heads * arch.head_size * 4
    stage = Stage(artifact, range(LAYERS), limits=Limits(kv_step=8))
    session = stage.open()
    assert session.bytes == 0
    held = []
    for token in IDS[:-1]:
        session.append_ids([token])
        session.logits(session.position - 1)
        held.append(session.bytes - sum(kept.bytes for kept in session._rows.values()))
    # Exact mode writes a throw-away row one position ahead.
    assert held == [(-(-(position + 1) // 8)) * step for position in range(1, CONTEXT)]
    full = session.bytes
    session.crop(2)
    assert session.bytes == full, "a crop keeps its room for what comes next"
    session.close()
    assert session.bytes == 0
    session.close()


def test_rows_that_nobody_asks_for_again_are_dropped(artifact: Artifact) -> None:
    stage = Stage(artifact, range(2), limits=Limits(kv_step=256))
    session = stage.open()
    session.append_ids(IDS[:2])
    session.hidden_at(2, 0)
    held = session.bytes
    for i in range(2, CONTEXT):
        session.append_ids(IDS[i : i + 1])
        session.hidden_at(2, i)
    assert session.bytes == held


def test_sessions_hold_memory_of_their_own(stage: Stage) -> None:
    one, two = stage.open(), stage.open()
    one.append_ids(IDS)
    one.run(LAYERS)
    before = one.bytes
    two.append_ids(IDS)
    two.run(LAYERS)
    expected = two.logits(CONTEXT - 1)
    assert one.bytes == before
    one.close()
    two.crop(CONTEXT - 2)
    two.append_ids(IDS[-2:])
    assert (two.logits(CONTEXT - 1) == expected).all()


def test_a_row_buffer_is_a_window() -> None:
    buffer, rows = RowBuffer(3), np.arange(300, dtype=np.float32).reshape(100, 3)
    buffer.append(rows[:10])
    buffer.drop_before(4)
    buffer.append(rows[10:40])
    assert (buffer.take(4, 40) == rows[4:40]).all()
    buffer.crop(20)
    buffer.append(rows[20:25])
    assert (buffer.take(18, 25) == rows[18:25]).all()
    buffer.drop_before(100)
    assert buffer.take(25, 25).shape == (0, 3)
    buffer.crop(7)
    buffer.append(rows[7:9])
    assert (buffer.take(7, 9) == rows[7:9]).all()
