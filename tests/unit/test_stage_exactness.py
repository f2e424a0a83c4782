"""The two-row rule at work: however positions are chunked, cropped and split between stages,
every hidden state and every logit is the same, bit for bit.
"""

from __future__ import annotations

import functools
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from tests.exit_files import exit_file
from tests.support import F32, random_artifact, token_ids

from collm.limits import Limits
from collm.model.artifact import Artifact
from collm.model.exits import add_exit
from collm.runtime.stage import Stage

LAYERS, CUTS, POSITIONS = 4, (1, 3), 40
IDS = token_ids(2, POSITIONS)
WINDOWS = {
    "head_dim": 32,
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama-fp32": {"weights": "fp32"},
    "llama-int8": {"weights": "int8"},
    "llama-int4": {"weights": "int4"},
    "qwen3-int4": {"weights": "int4", "model_type": "qwen3", **WINDOWS},
    "gemma3-fp32": {"weights": "fp32", "model_type": "gemma3_text", **WINDOWS},
}
LIMITS = [Limits(kv_step=k, prefill_rows=p) for k, p in ((1, 1), (3, 2), (8, 5), (256, 128))]


@pytest.fixture(scope="module", autouse=True)
def scratch() -> Iterator[None]:
    global ROOT
    with tempfile.TemporaryDirectory() as folder:
        ROOT = Path(folder)
        yield
        artifact_of.cache_clear()
        stage_of.cache_clear()
        reference_of.cache_clear()


ROOT = Path()


@functools.cache
def artifact_of(model: str) -> Artifact:
    made = random_artifact(ROOT / model, cuts=CUTS, **MODELS[model])
    if model.startswith("llama"):  # the exit files here hold Llama's layers
        x = exit_file(ROOT / "x", made.architecture, 3, "layer", shortlist=40, packed=True)
        add_exit(made.folder, x)
        add_exit(made.folder, exit_file(ROOT / "x", made.architecture, 1, "linear"))
    return Artifact(made.folder)


@functools.cache
def stage_of(model: str, first: int, last: int, limits: Limits, guesses: bool) -> Stage:
    exits = tuple(cut for cut in CUTS if guesses and first <= cut <= last)
    return Stage(artifact_of(model), range(first, last), exits=exits, limits=limits)


@dataclass(frozen=True)
class Reference:
    """One prefill of all positions: hidden states at each boundary, and logits."""

    hidden: dict[int, F32]
    logits: F32


@functools.cache
def reference_of(model: str) -> Reference:
    stage = Stage(artifact_of(model), range(LAYERS))
    hidden = {}
    for layer in (*CUTS, LAYERS):
        session = stage.open()
        session.append_ids(IDS)
        hidden[layer] = session.hidden_at(layer, 0)
    session = stage.open()
    session.append_ids(IDS)
    return Reference(hidden, session.logits(0))


class Collaboration:
    """An edge session feeding a cloud session, as a verified answer does."""

    def __init__(
        self, model: str, placement: tuple[int, int, int], limits: Limits, guesses: bool
    ) -> None:
        cut, edge_to, cloud_from = placement
        self.reference = reference_of(model)
        self.cut = cut
        self.edge = self.cloud = None
        if cut:
            self.edge = stage_of(model, 0, edge_to, limits, guesses).open()
        if cut < LAYERS:
            self.cloud = stage_of(model, cloud_from, LAYERS, limits, False).open(cut)
        self.ids: list[int] = []
        self.uploaded = 0
        self.verified = 0
        self.fresh = False

    @property
    def right(self) -> int:
        """How many leading positions hold the reference's tokens."""
        pairs = zip(self.ids, IDS, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), len(self.ids))

    def append(self, count: int, wrong: bool) -> None:
        end = min(len(self.ids) + count, POSITIONS)
        made = [(i + 17) % 300 if wrong else i for i in IDS[len(self.ids) : end]]
        if made:
            self.ids += made
            (self.edge or self.cloud).append_ids(made)  # type: ignore[union-attr]
            self.fresh = True

    def upload(self) -> None:
        if self.edge is not None and self.cloud is not None:
            rows = self.edge.hidden_at(self.cut, self.uploaded)
            right = max(self.right - self.uploaded, 0)
            expected = self.reference.hidden[self.cut][self.uploaded : self.right]
            assert (rows[:right] == expected).all()
            self.cloud.append_hidden(rows)
        self.uploaded = len(self.ids)

    def verify(self) -> None:
        self.upload()
        if self.verified < len(self.ids):
            logits = (self.cloud or self.edge).logits(self.verified)  # type: ignore[union-attr]
            assert len(logits) == len(self.ids) - self.verified
            right = max(self.right - self.verified, 0)
            assert (logits[:right] == self.reference.logits[self.verified : self.right]).all()
            self.verified = len(self.ids)

    def crop(self, position: int) -> None:
        del self.ids[position:]
        for session in (self.edge, self.cloud):
            if session is not None:
                session.crop(position)
        self.uploaded = min(self.uploaded, position)
        self.verified = min(self.verified, position)
        self.fresh = False

    def run(self, layer: int) -> None:
        """Ahead of time, as a device with nothing else to do might."""
        if layer > self.cut:
            self.upload()  # rows at an inner boundary are there until deeper layers ran
        for session in (self.edge, self.cloud):
            if session is not None:
                session.run(layer)

    def ask(self, cut: int, logits: bool) -> None:
        if self.edge is not None and self.fresh and cut in self.edge.stage.exits:
            if cut > self.cut:
                self.upload()
            if logits:
                self.edge.exit_logits(cut)
            else:
                self.edge.exit_at(cut)


OPERATIONS = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 12), st.booleans()),
    st.tuples(st.just("append"), st.just(1), st.just(False)),
    st.tuples(st.just("upload")),
    st.tuples(st.just("verify")),
    st.tuples(st.just("crop"), st.integers(0, POSITIONS)),
    st.tuples(st.just("run"), st.sampled_from([*CUTS, LAYERS])),
    st.tuples(st.just("ask"), st.sampled_from(CUTS), st.booleans()),
)
PLACEMENTS = [
    (0, 0, 0), (1, 1, 1), (3, 3, 3), (4, 4, 4),
    # edge and cloud hold some layers in common
    (1, 3, 1), (3, 3, 1), (3, 4, 0), (1, 4, 0),
]  # fmt: skip


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    model=st.sampled_from(sorted(MODELS)),
    placement=st.sampled_from(PLACEMENTS),
    limits=st.sampled_from(LIMITS),
    guesses=st.booleans(),
    operations=st.lists(OPERATIONS, min_size=3, max_size=20),
)
def test_any_order_of_work_gives_the_same_bits(
    model: str,
    placement: tuple[int, int, int],
    limits: Limits,
    guesses: bool,
    operations: list[Any],
) -> None:
    both = Collaboration(model, placement, limits, guesses)
    for name, *arguments in operations:
        note(f"{name}{tuple(arguments)} at {len(both.ids)} positions")
        if name == "crop":
            arguments = [min(arguments[0], len(both.ids))]
        getattr(both, name)(*arguments)
    both.crop(both.right)
    both.append(POSITIONS, wrong=False)
    both.verify()
    assert both.ids == IDS


@pytest.mark.parametrize("model", sorted(MODELS))
@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_equal_chunks(model: str, rows: int) -> None:
    session = stage_of(model, 0, LAYERS, LIMITS[-1], False).open()
    made = []
    for start in range(0, POSITIONS, rows):
        session.append_ids(IDS[start : start + rows])
        made.append(session.logits(start))
    assert (np.concatenate(made) == reference_of(model).logits).all()


@pytest.mark.parametrize("head_size", [16, 32, 64, 128])
def test_rows_left_over_after_attentions_tiles(head_size: int, tmp_path: Path) -> None:
    """ONNX Runtime's attention works in tiles of rows and takes a lone last one otherwise."""
    ids = token_ids(6, 134)
    artifact = random_artifact(tmp_path / "a", head_dim=head_size, num_attention_heads=2)
    stage = Stage(artifact, range(1), limits=Limits(prefill_rows=1000))
    session, rows = stage.open(), []
    for start in range(0, len(ids), 2):
        session.append_ids(ids[start : start + 2])
        rows.append(session.hidden_at(1, start))
    expected = np.concatenate(rows)
    for first, count in ((0, 33), (2, 65), (1, 97), (0, 129), (4, 129), (3, 130)):
        session = stage.open()
        session.append_ids(ids[:first])
        session.run(1)
        session.append_ids(ids[first : first + count])
        made = session.hidden_at(1, 0)
        assert (made == expected[: first + count]).all(), f"{count} rows after {first}"


@pytest.mark.parametrize("model", ["llama-fp32", "llama-int8", "llama-int4"])
def test_threads_change_nothing(model: str) -> None:
    session = Stage(artifact_of(model), range(LAYERS), threads=2).open()
    for start in range(0, POSITIONS, 4):
        session.append_ids(IDS[start : start + 4])
        session.run(LAYERS)
    assert (session.logits(0) == reference_of(model).logits).all()


def test_rows_read_at_an_inner_boundary_still_go_deeper() -> None:
    session = stage_of("llama-int8", 0, LAYERS, LIMITS[-1], False).open()
    session.append_ids(IDS[:10])
    expected = reference_of("llama-int8")
    assert (session.hidden_at(1, 8) == expected.hidden[1][8:10]).all()
    session.append_ids(IDS[10:12])
    assert (session.hidden_at(1, 10) == expected.hidden[1][10:12]).all()
    assert (session.logits(0) == expected.logits[:12]).all()


def test_sessions_of_one_stage_do_not_mix() -> None:
    """Their caches and RoPE tables grow at different times."""
    stage = Stage(artifact_of("llama-int8"), range(LAYERS), limits=Limits(kv_step=4))
    others = token_ids(9, POSITIONS)
    alone = stage.open()
    alone.append_ids(others)
    expected = [reference_of("llama-int8").logits, alone.logits(0)]
    alone.close()
    one, two = stage.open(), stage.open()
    two.append_ids(others[:30])
    two.run(LAYERS)
    for i, token in enumerate(IDS):
        one.append_ids([token])
        assert (one.logits(i) == expected[0][i]).all(), i
        if i >= 30:
            two.append_ids([others[i]])
    assert (two.logits(0) == expected[1]).all()


def test_sessions_of_one_stage_in_threads_of_their_own() -> None:
    stage = Stage(artifact_of("llama-int8"), range(LAYERS), limits=Limits(kv_step=2))
    expected, wrong = reference_of("llama-int8").logits, []

    def work(rows: int) -> None:
        for _ in range(3):
            session = stage.open()
            for start in range(0, POSITIONS, rows):
                session.append_ids(IDS[start : start + rows])
                made = session.logits(start)
                if not (made == expected[start : start + rows]).all():
                    wrong.append((rows, start))

    threads = [threading.Thread(target=work, args=(rows,)) for rows in (1, 2, 3, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
