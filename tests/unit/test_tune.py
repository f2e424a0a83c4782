"""Distilling exits: the arithmetic, the file, and that the runtime computes what was trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.support import save_transformers, transformers_model

torch = pytest.importorskip("torch")

from collm.errors import SourceError, UsageError  # noqa: E402
from collm.model.artifact import Artifact  # noqa: E402
from collm.model.build import build  # noqa: E402
from collm.model.exits import ExitFile, add_exit  # noqa: E402
from collm.model.sources import open_checkpoint  # noqa: E402
from collm.runtime.stage import Stage  # noqa: E402
from collm.tune.backbone import load_backbone  # noqa: E402
from collm.tune.corpus import digest_user_turn  # noqa: E402
from collm.tune.distill import (  # noqa: E402
    DistillConfig,
    cross_entropy,
    distill,
    learning_rate_share,
)
from collm.tune.export import export  # noqa: E402
from collm.tune.heads import likeliest_tokens  # noqa: E402
from collm.tune.layer import rope_tables  # noqa: E402
from collm.tune.quantize import dequantize, quantize  # noqa: E402
from collm.tune.synthesize import SynthesisConfig, synthesize  # noqa: E402

CUTS = (1, 2)


def test_the_gradient_by_hand_is_autograds() -> None:
    generator = torch.Generator().manual_seed(0)
    normed = torch.randn(700, 16, generator=generator, requires_grad=True)
    unembedding = torch.randn(50, 16, generator=generator)
    target = torch.randn(700, 50, generator=generator).softmax(-1)
    loss, gradient = cross_entropy(normed.detach(), unembedding, target)
    reference = torch.nn.functional.cross_entropy(normed @ unembedding.T, target)
    reference.backward()
    assert loss == pytest.approx(float(reference.detach()), rel=1e-5)
    assert torch.allclose(gradient, normed.grad, atol=1e-7)


def test_the_schedule_rises_then_falls_to_zero() -> None:
    shares = [learning_rate_share(step, 100, 0.1) for step in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert max(shares) == shares[9] == 1.0
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert shares[-1] < 0.01


def test_the_shortlist_holds_the_likeliest_and_every_special_token() -> None:
    mass = np.random.default_rng(0).random(100)
    chosen = likeliest_tokens(mass, 32, special_ids=[0, 99]).tolist()
    assert chosen == sorted(chosen) and {0, 99} <= set(chosen)
    others = np.argsort(-mass)[:30].tolist()
    assert len(set(chosen) & set(others)) >= 28
    with pytest.raises(UsageError, match="multiple of 32"):
        likeliest_tokens(mass, 33, special_ids=[])


def test_int8_is_within_half_a_step_and_keeps_zero() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    weight[2, :32] = 0
    q, scale = quantize(weight)
    made = dequantize(q, scale)
    step = scale.float().repeat_interleave(32, dim=1)
    # Half a step, and what the scale lost by becoming float16 at the outermost level.
    assert ((made - weight).abs() <= 0.5 * step + weight.abs() * 2**-10).all()
    assert (made[2, :32] == 0).all()


def test_the_split_depends_on_the_user_turn_alone() -> None:
    assert digest_user_turn([1, 2, 3]) == digest_user_turn(np.array([1, 2, 3]))
    assert digest_user_turn([1, 2, 3]) != digest_user_turn([1, 2, 4])


@pytest.fixture(scope="module", autouse=True)
def _many_are_held_out() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("collm.tune.corpus.HELD_OUT_SHARE", 0.3)  # there are few chats
        yield


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A tiny model's folder, exits distilled from its own chat, and the model's digest."""
    work = tmp_path_factory.mktemp("tune")
    source = str(work / "model")
    save_transformers(transformers_model("llama"), work / "model")
    backbone = load_backbone(source)
    corpus = work / "chat"
    synthesize(backbone, SynthesisConfig(folder=corpus, tokens=3000, cuts=CUTS, slots=8,
                                         max_length=192, max_user=8, shard_chats=32))  # fmt: skip
    config = DistillConfig(corpus=corpus, checkpoint=work / "heads.safetensors", cuts=CUTS,
                           shortlist=96, epochs=2, batch_tokens=512, threads=1)  # fmt: skip
    distill(backbone, config)
    export(backbone, corpus=corpus, checkpoint=config.checkpoint, cuts=CUTS, folder=work / "exits",
           base="tiny")  # fmt: skip
    return work / "model", work / "exits", backbone.sha256


def test_the_runtime_computes_what_was_trained(
    tuned: tuple[Path, Path, str], tmp_path: Path
) -> None:
    source, exits, digest = tuned
    build(open_checkpoint(str(source)), tmp_path / "artifact", cuts=CUTS, weights="fp32")
    for path in sorted(exits.glob("exit-*.safetensors")):
        manifest = add_exit(tmp_path / "artifact", path)
    assert [entry.trained for entry in manifest.exits] == [True, True]
    assert manifest.source_sha256 == digest
    artifact = Artifact(tmp_path / "artifact")
    session = Stage(artifact, range(2), exits=CUTS).open()
    ids = [int(i) for i in np.random.default_rng(3).integers(0, 300, 23)]
    session.append_ids(ids)
    backbone = load_backbone(str(source))
    x = backbone.embedding_VD[torch.tensor([ids])]
    rope = rope_tables(backbone.shape, torch.arange(len(ids)))
    for cut in CUTS:
        x = backbone.layers[cut - 1](x, rope)
        file = ExitFile(exits / f"exit-{cut:02d}.safetensors")
        expected = torch_logits(file, x, rope, backbone) / file.temperature
        logits = session.exit_logits(cut)
        shortlist = file.shortlist(300)
        assert shortlist is not None
        assert np.abs(logits[shortlist] - expected).max() < 1e-3
        assert np.isneginf(np.delete(logits, shortlist)).all()
        result = session.exit_at(cut)
        assert result.token_id == shortlist[expected.argmax()]
        probabilities = np.exp(expected - expected.max())
        assert result.confidence == pytest.approx(1 / probabilities.sum(), rel=1e-3)


def torch_logits(file: ExitFile, x: object, rope: object, backbone: object) -> np.ndarray:
    """The exit's logits for the last row, from the file's numbers and PyTorch's arithmetic."""
    from collm.tune.heads import ExitHead

    head = ExitHead(backbone.shape)  # type: ignore[attr-defined]
    state = {}
    for name, parameter in head.named_parameters():
        stored = torch.from_numpy(file.tensor(name, tuple(parameter.shape)))
        if file.has(f"{name}.scale"):
            n, k = parameter.shape
            stored = dequantize(
                stored, torch.from_numpy(file.tensor(f"{name}.scale", (n, k // 32)))
            )
        state[name] = stored
    head.load_state_dict(state)
    rows = torch.ones(x.shape[:2], dtype=torch.bool)  # type: ignore[attr-defined]
    shortlist = torch.from_numpy(file.shortlist(300))
    with torch.no_grad():
        normed = head(x, rope, rows)[-1]
        return (backbone.unembedding_VD[shortlist] @ normed).numpy()  # type: ignore[attr-defined]


def test_a_checkpoint_of_other_settings_is_refused(tuned: tuple[Path, Path, str]) -> None:

    source, exits, _ = tuned
    work = exits.parent
    config = DistillConfig(corpus=work / "chat", checkpoint=work / "heads.safetensors", cuts=CUTS,
                           shortlist=64, epochs=2, batch_tokens=512, threads=1)  # fmt: skip
    with pytest.raises(SourceError, match="other settings"):
        distill(load_backbone(str(source)), config)
    with pytest.raises(SourceError, match="synthesize"):
        distill(
            load_backbone(str(source)),
            DistillConfig(corpus=work / "none", checkpoint=work / "other", cuts=CUTS, threads=1),
        )
