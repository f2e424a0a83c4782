"""Every family against Transformers: the same weights give the same logits."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support import (
    F32,
    TINY,
    build_folder,
    save_transformers,
    token_ids,
    transformers_logits,
    transformers_model,
)

from collm.errors import SourceError
from collm.limits import Limits
from collm.model.artifact import Artifact
from collm.model.families import SUPPORTED, architecture_of
from collm.model.sources import open_checkpoint
from collm.runtime.stage import Stage

POSITIONS = 200
LIMITS = Limits(kv_step=64, prefill_rows=48)


@dataclass(frozen=True)
class Case:
    name: str
    model_type: str
    changes: dict[str, Any] = field(default_factory=dict)


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GEMMA = {
    "head_dim": 32,
    "query_pre_attn_scalar": 24,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1_000_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    },
}
CASES = [
    Case("llama", "llama"),
    Case("llama-untied", "llama", {"tie_word_embeddings": False}),
    Case("llama-llama3-rope", "llama", {"rope_parameters": LLAMA3}),
    Case("llama-linear-rope", "llama",
         {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}}),
    Case("mistral-window", "mistral", {"sliding_window": 24}),
    Case("mistral-no-window", "mistral", {"sliding_window": None, "head_dim": 32}),
    Case("qwen2", "qwen2"),
    Case("qwen2-upper-window", "qwen2",
         {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 2}),
    Case("qwen3", "qwen3", {"head_dim": 32, "tie_word_embeddings": False}),
    Case("gemma3", "gemma3_text", GEMMA),
]  # fmt: skip


@dataclass(frozen=True)
class Built:
    artifact: Artifact
    ids: list[int]
    expected: F32


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    case: Case = request.param
    folder = tmp_path_factory.mktemp(case.name)
    model = transformers_model(case.model_type, seed=7, **case.changes)
    source = save_transformers(model, folder / "source")
    ids = token_ids(7, POSITIONS)
    return Built(build_folder(source, folder / "built"), ids, transformers_logits(model, ids))


def logits_in_chunks(stage: Stage, ids: list[int], rows: int, *, exact: bool = True) -> F32:
    session = stage.open(exact=exact)
    made = []
    for start in range(0, len(ids), rows):
        session.append_ids(ids[start : start + rows])
        made.append(session.logits(start))
    return np.concatenate(made)


@pytest.mark.parametrize("rows", [POSITIONS, 17, 1])
def test_logits_are_those_of_transformers(built: Built, rows: int) -> None:
    stage = Stage(built.artifact, range(built.artifact.architecture.layers), limits=LIMITS)
    logits = logits_in_chunks(stage, built.ids, rows)
    assert np.abs(logits - built.expected).max() < 1e-3
    assert (logits.argmax(-1) == built.expected.argmax(-1)).all()
    # A model whose logits say nothing would agree with anything.
    assert built.expected.std() > 0.5
    assert len(set(built.expected.argmax(-1).tolist())) > 20


def test_the_fast_one_row_kernels_agree_too(built: Built) -> None:
    stage = Stage(built.artifact, range(built.artifact.architecture.layers), limits=LIMITS)
    logits = logits_in_chunks(stage, built.ids[:50], 1, exact=False)
    assert np.abs(logits - built.expected[:50]).max() < 1e-3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_checkpoints(tmp_path: Path, dtype: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = transformers_model("llama", seed=3).to(getattr(torch, dtype))
    source = save_transformers(model, tmp_path / "source")
    artifact = build_folder(source, tmp_path / "built")
    ids = token_ids(3, 64)
    widened = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    expected = transformers_logits(widened, ids)
    made = logits_in_chunks(Stage(artifact, range(4)), ids, 64)
    assert np.abs(made - expected).max() < 1e-3


@pytest.mark.parametrize(("weights", "similarity"), [("int8", 0.995), ("int4", 0.8)])
def test_quantised_builds_stay_close(tmp_path: Path, weights: str, similarity: float) -> None:
    model = transformers_model("llama", seed=5, num_hidden_layers=2)
    source = save_transformers(model, tmp_path / "source")
    artifact = build_folder(source, tmp_path / "built", weights)
    ids = token_ids(5, 64)
    expected = transformers_logits(model, ids)
    made = logits_in_chunks(Stage(artifact, range(2)), ids, 64)
    cosine = (made * expected).sum(-1) / np.linalg.norm(made, axis=-1)
    cosine /= np.linalg.norm(expected, axis=-1)
    assert cosine.mean() > similarity, cosine


def test_a_checkpoint_in_several_files(tmp_path: Path) -> None:
    model = transformers_model("llama", seed=4, num_hidden_layers=2)
    source = save_transformers(model, tmp_path / "source")
    (source / "model.safetensors").unlink()
    model.save_pretrained(source, max_shard_size="60KB")
    assert len(list(source.glob("*.safetensors"))) > 1
    ids = token_ids(4, 20)
    made = logits_in_chunks(Stage(build_folder(source, tmp_path / "b"), range(2)), ids, 20)
    assert np.abs(made - transformers_logits(model, ids)).max() < 1e-3


def test_the_tokenizer_says_what_transformers_says(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    source = save_transformers(transformers_model("llama", num_hidden_layers=2), tmp_path / "m")
    theirs = AutoTokenizer.from_pretrained(source)
    ours = build_folder(source, tmp_path / "built").tokenizer()
    chat = [{"role": "user", "content": "the cloud, the edge: 12 tokens é 🙂"}]
    assert ours.render(chat) == theirs.apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True
    )
    expected = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert ours.encode_chat(chat) == expected
    assert ours.eos_ids == {2}
    assert ours.encode("the edge") == theirs("the edge")["input_ids"]


@pytest.mark.parametrize("adds_bos", [False, True])
def test_plain_prompts_begin_as_transformers_begins_them(tmp_path: Path, adds_bos: bool) -> None:
    from transformers import AutoTokenizer

    source = save_transformers(transformers_model("llama", num_hidden_layers=2), tmp_path / "m")
    theirs = AutoTokenizer.from_pretrained(source, add_bos_token=adds_bos)
    theirs.save_pretrained(source)
    ours = build_folder(source, tmp_path / "built").tokenizer()
    assert ours.encode("the edge") == theirs("the edge")["input_ids"]
    assert (ours.encode("the edge")[0] == 1) == adds_bos


@pytest.mark.parametrize("model_type", SUPPORTED)
@pytest.mark.parametrize(
    "missing", ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
                "vocab_size", "max_position_embeddings"]
)  # fmt: skip
def test_a_config_that_lacks_a_field_is_refused(model_type: str, missing: str) -> None:
    config = {key: value for key, value in TINY.items() if key != missing}
    with pytest.raises(SourceError, match=missing):
        architecture_of(model_type, config, "config.json")


@pytest.mark.parametrize("model_type", SUPPORTED)
@pytest.mark.parametrize(
    "wrong",
    [
        {"num_hidden_layers": "many"},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": 2**40},
        {"hidden_size": None},
        {"hidden_size": -64},
        {"num_attention_heads": 0},
        {"num_key_value_heads": 3},
        {"vocab_size": 0},
        {"hidden_act": "relu"},
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}},
    ],
    ids=str,
)
def test_a_config_that_makes_no_model_is_refused(model_type: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(SourceError):
        architecture_of(model_type, {**TINY, **wrong}, "config.json")


@pytest.mark.parametrize("model_type", ["gemma3_text", "mistral", "qwen2", "qwen3"])
def test_windows_for_other_layers_than_the_model_has_are_refused(model_type: str) -> None:
    wrong = {"sliding_window": 8, "layer_types": ["full_attention"]}
    with pytest.raises(SourceError, match="layer_types"):
        architecture_of(model_type, {**TINY, **wrong}, "config.json")


def test_biases_that_the_graph_has_no_place_for_are_refused(tmp_path: Path) -> None:
    model = transformers_model("llama", attention_bias=True, num_hidden_layers=2)
    source = save_transformers(model, tmp_path / "source")
    with pytest.raises(SourceError, match=r"o_proj\.bias"):
        build_folder(source, tmp_path / "built")
    assert not (tmp_path / "built").exists()


def test_an_unknown_architecture_is_named_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(SourceError, match="mamba") as caught:
        open_checkpoint(str(tmp_path))
    assert all(name in str(caught.value) for name in SUPPORTED)
