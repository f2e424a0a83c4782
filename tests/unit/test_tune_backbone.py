"""The tuner's model is the deployed one: weights read back, states, decoding, windows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.exit_files import exit_file, exit_tensors
from tests.support import F32, RandomCheckpoint, random_artifact, token_ids

from collm.errors import ArtifactError, PlacementError
from collm.model.architecture import Rope
from collm.model.artifact import Artifact
from collm.model.build import build
from collm.model.exits import add_exit
from collm.model.families import family
from collm.model.files import file_entry
from collm.model.layers import Matrix
from collm.model.pack import WEIGHTS, Packer
from collm.model.quantize import Quantised, quantise_int4
from collm.model.stored import StoredWeights
from collm.runtime.stage import Stage

torch = pytest.importorskip("torch")

from collm.tune.backbone import Backbone, load_backbone  # noqa: E402
from collm.tune.decode import Decoder, sample  # noqa: E402
from collm.tune.layer import DecoderLayer  # noqa: E402

POSITIONS = 60


@dataclass(frozen=True)
class Case:
    name: str
    model_type: str
    changes: dict[str, Any] = field(default_factory=dict)
    rotated: int = 0
    """Dimensions of a head that RoPE turns, 0 for all."""


LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 32}  # fmt: skip
GEMMA = {
    "head_dim": 32,
    "query_pre_attn_scalar": 24,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}
CASES = [
    Case("llama", "llama", {"rope_parameters": LLAMA3}),
    Case("llama-partial-rope", "llama", {"head_dim": 32}, rotated=16),
    Case("mistral", "mistral", {"sliding_window": 24, "num_key_value_heads": 4}),
    Case("qwen2", "qwen2",
         {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 2}),
    Case("qwen3", "qwen3", {"head_dim": 32, "tie_word_embeddings": False}),
    Case("gemma3", "gemma3_text", GEMMA),
]  # fmt: skip


class FamilyCheckpoint(RandomCheckpoint):
    """Random weights of a family, biases included; `o_proj` comes as int4 without offsets."""

    def __init__(self, case: Case) -> None:
        super().__init__(seed=7, model_type=case.model_type, **case.changes)
        self.norm_offset = family(case.model_type, "test").NORM_OFFSET
        self.biased = ("q_proj", "k_proj", "v_proj") if case.model_type == "qwen2" else ()
        if case.rotated:
            ropes = (Rope(base=1e4, dims=case.rotated),)
            self.architecture = replace(self.architecture, ropes=ropes)

    def has(self, name: str) -> bool:
        return not name.endswith(".bias") or name.split(".")[-2] in self.biased

    def floats(self, name: str) -> F32:
        if name.endswith(".bias"):
            return super().floats(name)[:, 0]
        return super().floats(name) - np.float32(self.norm_offset * ("norm" in name))

    def quantised(self, name: str) -> Quantised | None:
        if name.split(".")[-2] != "o_proj":
            return None
        return replace(quantise_int4(self.floats(name)), offset=None)


def built(case: Case, folder: Path, weights: str = "fp32") -> Artifact:
    build(FamilyCheckpoint(case), folder, cuts=(1, 3), weights=weights)
    return Artifact(folder)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Artifact, Backbone]:
    """A float32 artifact of each family, and what the tuner makes of it."""
    torch.set_num_threads(1)  # these models are too small to share
    artifact = built(request.param, tmp_path_factory.mktemp(request.param.name) / "a")
    return artifact, load_backbone(artifact)


def dense(matrix: Matrix) -> F32:
    return matrix.floats() if isinstance(matrix, Quantised) else matrix


@pytest.mark.parametrize(
    ("case", "weights"),
    [
        pytest.param(case, weights, id=f"{case.name}-{weights}")
        for case in CASES
        for weights in WEIGHTS
        if weights == "fp32" or case.name in ("qwen2", "qwen3", "gemma3")
    ],
)
def test_what_is_read_back_is_what_was_packed(case: Case, weights: str, tmp_path: Path) -> None:
    artifact = built(case, tmp_path / "a", weights)
    arch, stored = artifact.architecture, StoredWeights(artifact)
    packer = Packer(FamilyCheckpoint(case), weights)
    for layer in range(arch.layers):
        found, packed = stored.layer(layer), packer.layer(layer)
        p, norm_2 = "self_attn.", "post_attention_layernorm"
        pairs: list[tuple[F32, F32 | None]] = [
            (np.concatenate([found.pop(f"{p}{x}_proj.weight") for x in "qkv"]), dense(packed.qkv)),
            (found.pop(f"{p}o_proj.weight"), dense(packed.o)),
            (
                np.concatenate([found.pop(f"mlp.{x}_proj.weight") for x in ("gate", "up")]),
                dense(packed.gate_up),
            ),
            (found.pop("mlp.down_proj.weight"), dense(packed.down)),
            (found.pop("input_layernorm.weight"), packed.norm_1),
        ]
        if packed.qkv_bias is not None:
            biases = [found.pop(f"{p}{x}_proj.bias") for x in "qkv"]
            pairs.append((np.concatenate(biases), packed.qkv_bias))
        if packed.post_norm_1 is not None:
            pairs.append((found.pop(f"{norm_2}.weight"), packed.post_norm_1))
            pairs.append((found.pop("post_feedforward_layernorm.weight"), packed.post_norm_2))
            norm_2 = "pre_feedforward_layernorm"
        pairs.append((found.pop(f"{norm_2}.weight"), packed.norm_2))
        if packed.q_norm is not None:
            pairs.append((found.pop(f"{p}q_norm.weight"), packed.q_norm))
            pairs.append((found.pop(f"{p}k_norm.weight"), packed.k_norm))
        assert not found, "every weight has been compared"
        for read, expected in pairs:
            assert expected is not None and read.shape == expected.shape
            assert (read == expected).all()
    assert (stored.embedding() == dense(packer.embedding())).all()
    assert (stored.unembedding() == dense(packer.unembedding())).all()
    assert (stored.final_norm() == packer.norm("model.norm.weight")).all()
    with pytest.raises(PlacementError, match="layer 4: the model has 4 layers"):
        stored.layer(4)


def test_a_damaged_block_is_refused(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "a")
    data = tmp_path / "a/blocks/001-002.data"
    data.write_bytes(data.read_bytes()[:-4] + b"\0\0\0\0")
    stored = StoredWeights(artifact)
    stored.layer(0)
    with pytest.raises(ArtifactError, match=r"001-002\.data: damaged"):
        stored.layer(1)


def test_a_graph_that_lacks_a_weight_is_refused_by_its_name(tmp_path: Path) -> None:
    manifest = random_artifact(tmp_path / "a").manifest
    name = manifest.blocks[0].graph
    path = tmp_path / "a" / name
    model = onnx.load_model(path, load_external_data=False)
    (lost,) = [w for w in model.graph.initializer if w.name == "l0.down.weight"]
    model.graph.initializer.remove(lost)
    path.write_bytes(model.SerializeToString())
    replace(manifest, files={**manifest.files, name: file_entry(path)}).write(tmp_path / "a")
    with pytest.raises(ArtifactError, match=r"holds no weight l0\.down\.weight"):
        load_backbone(Artifact(tmp_path / "a"))


def test_states_and_logits_are_the_runtimes(model: tuple[Artifact, Backbone]) -> None:
    artifact, backbone = model
    ids = token_ids(1, POSITIONS)
    session = Stage(artifact, range(4)).open()
    session.append_ids(ids)
    states = backbone.states(torch.tensor([ids]), (3, 0, 1))
    for cut, state in zip((1, 3, 4), states[[2, 0, 3], 0].numpy(), strict=True):
        expected = session.hidden_at(cut, 0)
        assert np.abs(state - expected).max() < 1e-4 * np.abs(expected).max()
    assert (states[1] == backbone.embed(torch.tensor([ids]))).all()
    logits, expected = backbone.logits(states[-1, 0]).numpy(), session.logits(0)
    assert expected.std() > 0.5, "a model whose logits say nothing would agree with anything"
    assert np.abs(logits - expected).max() < 1e-3
    two = np.sort(expected, axis=-1)[:, -2:]
    clear = two[:, 1] - two[:, 0] > 2e-3
    assert clear.mean() > 0.9
    assert (logits.argmax(-1) == expected.argmax(-1))[clear].all()
    assert backbone.special_ids == [0, 1, 2]


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_the_quantised_model_is_seen_as_deployed(weights: str, tmp_path: Path) -> None:
    artifact = built(CASES[0], tmp_path / "a", weights)
    backbone = load_backbone(artifact)
    ids = token_ids(2, POSITIONS)
    session = Stage(artifact, range(4)).open()
    session.append_ids(ids)
    logits = backbone.logits(backbone.states(torch.tensor([ids]), ())[-1, 0]).numpy()
    apart = np.abs(logits - session.logits(0)).mean() / logits.std()
    assert apart < 0.05, "only the activations' rounding may differ"


def test_padding_on_the_right_changes_nothing(tmp_path: Path) -> None:
    backbone = load_backbone(built(CASES[-1], tmp_path / "a"))
    ids = torch.tensor([token_ids(1, 40), token_ids(2, 20) + [0] * 20])
    states = backbone.states(ids, (1,))
    alone = backbone.states(ids[1:, :20], (1,))
    assert torch.allclose(states[:, 1:, :20], alone, rtol=0, atol=1e-4)


def test_decoding_step_by_step_is_the_whole_text(model: tuple[Artifact, Backbone]) -> None:
    _, backbone = model
    ids = torch.tensor([token_ids(seed, 30) for seed in range(6)])
    expected = backbone.logits(backbone.states(ids, ())[-1])
    decoder = Decoder(backbone, slots=6, length=30)
    kept = torch.arange(6)
    for t in range(30):
        assert decoder.position == t
        logits = decoder.step(ids[kept, t])
        assert torch.allclose(logits, expected[kept, t], rtol=0, atol=1e-4)
        for at, index in ((8, [1, 2, 4, 5]), (16, [3, 0, 2]), (24, [False, True, True])):
            if t == at:
                decoder.keep(torch.tensor(index))
                kept = kept[torch.tensor(index)]
    assert kept.tolist() == [1, 4]


def test_sampling_is_by_probability_and_greedy_at_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([0.0, 1.0, 3.0, -torch.inf]).repeat(4000, 1)
    assert (sample(logits, torch.zeros(4000), generator) == 2).all()
    drawn = sample(logits, torch.full((4000,), 2.0), generator).bincount(minlength=4) / 4000
    expected = (logits[0] / 2).softmax(-1)
    # Four standard deviations of a share near one half: fails by chance once in 10,000.
    assert (drawn - expected).abs().max() < 4 * 0.5 / 4000**0.5


def test_a_window_matters_only_to_longer_texts(tmp_path: Path) -> None:
    backbone = load_backbone(built(CASES[0], tmp_path / "a"))
    x = backbone.states(torch.tensor([token_ids(3, 24)]), (3,))[0]
    whole, narrow = backbone.copy_layer(3, 0), backbone.copy_layer(3, 8)
    with torch.no_grad():
        ropes = backbone.ropes(24)
        assert torch.allclose(narrow(x, ropes)[:, :8], whole(x, ropes)[:, :8], atol=1e-4)
        assert (narrow(x, ropes) - whole(x, ropes))[:, 8:].abs().amax(-1).min() > 1e-3
        short = backbone.ropes(8)
        assert (narrow(x[:, :8], short) == whole(x[:, :8], short)).all()
        # A row sees nothing of what is 8 positions before it, but what is 7 before it.
        moved = x.clone()
        moved[:, 4] += 1
        apart = (narrow(moved, ropes) - narrow(x, ropes)).abs().amax(-1)[0]
        assert (apart[4:12] > 1e-4).all() and (apart[:4] == 0).all() and (apart[12:] == 0).all()


@pytest.mark.parametrize("window", [0, 8])
@pytest.mark.parametrize("rows", [1, 30])
def test_a_windowed_layer_is_the_runtimes_exit(window: int, rows: int, tmp_path: Path) -> None:
    artifact = built(CASES[0], tmp_path / "a")
    arch = artifact.architecture
    add_exit(tmp_path / "a", exit_file(tmp_path / "e", arch, 1, "layer", window=window))
    artifact = Artifact(tmp_path / "a")
    tensors = exit_tensors(arch, "layer")
    adapter = DecoderLayer(arch, arch.layers - 1, window)
    mine = [name for name in tensors if name.startswith("layers.0.")]
    adapter.load_state_dict(
        {name.removeprefix("layers.0."): torch.from_numpy(tensors[name]) for name in mine}
    )
    backbone = load_backbone(artifact)
    ids = token_ids(4, 30)
    with torch.no_grad():
        x = backbone.states(torch.tensor([ids]), (1,))[0]
        x = adapter(x, backbone.ropes(30))
        backbone.norm.weight.copy_(torch.from_numpy(tensors["norm.weight"]))
        expected = backbone.logits(x)[0].numpy()
    session = Stage(artifact, range(1), exits=(1,)).open()
    for end in range(rows, 31, rows):
        session.append_ids(ids[end - rows : end])
        assert np.abs(session.exit_logits(1) - expected[end - 1]).max() < 1e-3


def test_chosen_rows_train_as_all_rows_do(model: tuple[Artifact, Backbone]) -> None:
    _, backbone = model
    x = backbone.states(torch.tensor([token_ids(5, 30), token_ids(6, 30)]), (1,))[0]
    rows = torch.rand(2, 30, generator=torch.Generator().manual_seed(0)) < 0.3
    ropes, layer = backbone.ropes(torch.arange(30)), backbone.copy_layer(2)
    gradients = []
    for made in (layer(x, ropes)[rows], layer.forward_rows(x, ropes, rows)):
        layer.zero_grad()
        backbone.logits(made).square().mean().backward()
        gradients.append([parameter.grad for parameter in layer.parameters()])
    for all_rows, chosen in zip(*gradients, strict=True):
        assert chosen.abs().max() > 0
        assert torch.allclose(all_rows, chosen, rtol=1e-3, atol=1e-3 * float(chosen.abs().max()))
    assert all(p.grad is None for frozen in backbone.layers for p in frozen.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        half = layer.forward_rows(x, ropes, rows)
    exact = layer.forward_rows(x, ropes, rows)
    assert half.dtype == torch.float32
    assert (half - exact).norm() < 0.03 * exact.norm()


def test_ropes_at_positions_of_each_sequence(tmp_path: Path) -> None:
    backbone = load_backbone(built(CASES[-1], tmp_path / "a"))
    positions = torch.tensor([[0, 5, 7], [2, 3, 9]])
    everywhere, chosen = backbone.ropes(10), backbone.ropes(positions)
    assert len(chosen) == 2
    for tables, mine in zip(everywhere, chosen, strict=True):
        assert all((a[positions] == b).all() for a, b in zip(tables, mine, strict=True))
