"""GGUF files: what is built means what llama.cpp's quantisation means, weight by weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from tests.gguf_files import F32, SPM_PIECES, add_sentencepiece_tokenizer, write_gguf
from tests.support import (
    VOCABULARY,
    build_folder,
    token_ids,
    tokenizer_files,
    transformers_logits,
    transformers_model,
)

from collm.model.artifact import Artifact
from collm.model.pack import Packer
from collm.model.quantize import Quantised, from_gguf, quantise_int4, quantise_int8
from collm.model.sources import open_checkpoint
from collm.model.tokenizer import Tokenizer
from collm.runtime.stage import Stage

UNICODE = "the cloud 2025: naïve café, 东京 🙂\n\ttabs  and   spaces, ½ ﬁ \u200d end"


def numpy_weights(model: Any) -> dict[str, F32]:
    tied = model.config.tie_word_embeddings
    weights = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    return {k: v for k, v in weights.items() if not (tied and k == "lm_head.weight")}


def with_weights(model: Any, weights: dict[str, F32]) -> Any:
    import torch

    tensors = {name: torch.from_numpy(values.copy()) for name, values in weights.items()}
    assert not model.load_state_dict(tensors, strict=False).unexpected_keys
    return model


def full_logits(artifact: Artifact, ids: list[int]) -> F32:
    session = Stage(artifact, range(artifact.architecture.layers)).open()
    session.append_ids(ids)
    return session.logits(0)


@pytest.fixture(scope="module")
def llama() -> Any:
    return transformers_model("llama", seed=11, num_hidden_layers=2, tie_word_embeddings=False)


def mixed(name: str) -> str:
    """As the usual files are: 4 bits for most, 8 for the sensitive ones."""
    return "Q8_0" if name.startswith(("output", "token_embd")) or "ffn_down" in name else "Q4_0"


@pytest.mark.parametrize(
    "type_of",
    [
        pytest.param(lambda name: "F32", id="F32"),
        pytest.param(lambda name: "F16", id="F16"),
        pytest.param(lambda name: "BF16", id="BF16"),
        pytest.param(lambda name: "Q8_0", id="Q8_0"),
        pytest.param(lambda name: "Q4_0", id="Q4_0"),
        pytest.param(lambda name: "Q4_1", id="Q4_1"),
        pytest.param(mixed, id="mixed"),
    ],
)
def test_a_llama_gguf_is_the_model_of_its_weights(llama: Any, type_of: Any, tmp_path: Path) -> None:
    config = {**llama.config.to_dict(), "model_type": "llama"}
    path = tmp_path / "tiny.gguf"
    meant = write_gguf(path, config, numpy_weights(llama), type_of)
    model = with_weights(transformers_model("llama", **shape_of(llama)), meant)
    ids = token_ids(11, 100)
    made = full_logits(build_folder(path, tmp_path / "built"), ids)
    expected = transformers_logits(model, ids)
    assert np.abs(made - expected).max() < 1e-3
    assert (made.argmax(-1) == expected.argmax(-1)).all()


@pytest.mark.parametrize(("kind", "exact"), [("Q8_0", True), ("Q4_0", True), ("Q4_1", False)])
def test_a_quantised_matrix_comes_in_without_loss(
    llama: Any, kind: str, exact: bool, tmp_path: Path
) -> None:
    config = {**llama.config.to_dict(), "model_type": "llama"}
    path = tmp_path / "tiny.gguf"
    meant = write_gguf(path, config, numpy_weights(llama), lambda name: kind)
    packer = Packer(open_checkpoint(str(path)), "int8" if kind == "Q8_0" else "int4")
    for layer in range(2):
        weights, p = packer.layer(layer), f"model.layers.{layer}"
        qkv = np.concatenate([meant[f"{p}.self_attn.{x}_proj.weight"] for x in "qkv"])
        gate_up = np.concatenate([meant[f"{p}.mlp.{x}_proj.weight"] for x in ("gate", "up")])
        for packed, expected in ((weights.qkv, qkv), (weights.gate_up, gate_up)):
            assert isinstance(packed, Quantised)
            # Q4_1's d·q + m is kept as d·(q − 8) + (m + 8d): one float32 rounding apart.
            tolerance = 0.0 if exact else 1e-6
            assert np.abs(packed.floats() - expected).max() <= tolerance


def test_int4_never_rounds_what_the_file_holds_in_more_bits(llama: Any, tmp_path: Path) -> None:
    config = {**llama.config.to_dict(), "model_type": "llama"}
    meant = write_gguf(tmp_path / "tiny.gguf", config, numpy_weights(llama), mixed)
    layer = Packer(open_checkpoint(str(tmp_path / "tiny.gguf")), "int4").layer(1)
    assert isinstance(layer.down, Quantised) and isinstance(layer.o, Quantised)
    assert (layer.down.bits, layer.o.bits) == (8, 4)
    assert (layer.down.floats() == meant["model.layers.1.mlp.down_proj.weight"]).all()


def test_quantised_builds_of_a_quantised_file_stay_close(llama: Any, tmp_path: Path) -> None:
    config = {**llama.config.to_dict(), "model_type": "llama"}
    path = tmp_path / "tiny.gguf"
    write_gguf(path, config, numpy_weights(llama), mixed)
    ids = token_ids(13, 64)
    exact = full_logits(build_folder(path, tmp_path / "fp32"), ids)
    packed = full_logits(build_folder(path, tmp_path / "int4", "int4"), ids)
    cosine = (packed * exact).sum(-1)
    cosine /= np.linalg.norm(packed, axis=-1) * np.linalg.norm(exact, axis=-1)
    # The weights are the file's own; what differs is that the kernels round activations to int8.
    assert cosine.mean() > 0.99


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "gemma3_text"])
def test_other_families_come_in_from_gguf(model_type: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"num_hidden_layers": 2}
    if model_type != "qwen2":
        changes["head_dim"] = 32
    if model_type == "gemma3_text":
        changes |= {
            "num_hidden_layers": 7,
            "sliding_window": 16,
            "query_pre_attn_scalar": 32,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
        }
    model = transformers_model(model_type, seed=17, **changes)
    config = {**model.config.to_dict(), "model_type": model_type}
    base = 1_000_000.0 if model_type == "gemma3_text" else 10_000.0
    path = tmp_path / "tiny.gguf"
    extra = lambda writer: writer.add_rope_freq_base(base)  # noqa: E731
    write_gguf(path, config, numpy_weights(model), lambda name: "F32", extra=extra)
    ids = token_ids(17, 64)
    made = full_logits(build_folder(path, tmp_path / "built"), ids)
    assert np.abs(made - transformers_logits(model, ids)).max() < 1e-3


def test_llama3_rope_scaling_travels_as_a_tensor(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 16.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = transformers_model("llama", seed=19, num_hidden_layers=2, rope_parameters=rope)
    config = {**model.config.to_dict(), "model_type": "llama"}
    weights = numpy_weights(model)

    def extra(writer: GGUFWriter) -> None:
        writer.add_rope_freq_base(500_000.0)
        writer.add_tensor("rope_freqs.weight", rope_divisors(16, rope))

    path = tmp_path / "tiny.gguf"
    write_gguf(path, config, weights, lambda name: "F32", extra=extra)
    ids = token_ids(19, 256)
    expected = transformers_logits(model, ids)
    made = full_logits(build_folder(path, tmp_path / "built"), ids)
    assert np.abs(made - expected).max() < 1e-3
    write_gguf(path, config, weights, lambda name: "F32",
               extra=lambda writer: writer.add_rope_freq_base(500_000.0))  # fmt: skip
    without = full_logits(build_folder(path, tmp_path / "without"), ids)
    assert np.abs(without - expected).max() > 1e-2, "the scaling makes no difference here"


def rope_divisors(dims: int, rope: dict[str, Any]) -> F32:
    """convert_hf_to_gguf.py: LlamaModel.generate_extra_tensors."""
    original, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    made = []
    for exponent in range(0, dims, 2):
        wavelength = 2 * np.pi * rope["rope_theta"] ** (exponent / dims)
        if wavelength < original / high:
            made.append(1.0)
        elif wavelength > original / low:
            made.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            made.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(made, dtype=np.float32)


# --------------------------------------------------------------------- quantised blocks


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("kind", "block_bytes"), [("Q8_0", 34), ("Q4_0", 18), ("Q4_1", 20), ("Q4_K", 144)]
)
def test_random_blocks_mean_what_gguf_says(kind: str, block_bytes: int, seed: int) -> None:
    raw = random_blocks(kind, block_bytes, seed)
    packed = from_gguf(kind, raw)
    assert packed is not None
    expected = gguf.quants.dequantize(raw, GGMLQuantizationType[kind])
    made = packed.floats()
    assert made.shape == expected.shape == packed.shape
    if kind in ("Q8_0", "Q4_0"):
        assert (made == expected).all()
    else:
        assert np.abs(made - expected).max() < 1e-5 * np.abs(expected).max()


def random_blocks(kind: str, block_bytes: int, seed: int) -> npt.NDArray[np.uint8]:
    random = np.random.default_rng([seed, block_bytes])
    raw = random.integers(0, 256, (5, 3 * block_bytes), dtype=np.uint8)
    blocks = raw.reshape(5, 3, block_bytes)
    scales = 1 if kind in ("Q8_0", "Q4_0") else 2
    values = random.uniform(0.001, 2.0, (5, 3, scales)).astype(np.float16)
    blocks[:, :, : 2 * scales] = values.view(np.uint8).reshape(5, 3, 2 * scales)
    return raw


def test_types_of_no_such_form_are_read_as_floats(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    raw = random.integers(0, 256, (4, 210), dtype=np.uint8)
    raw[:, -2:] = random.uniform(0.001, 2.0, (4, 1)).astype(np.float16).view(np.uint8)
    assert from_gguf("Q6_K", raw) is None
    writer = GGUFWriter(tmp_path / "k.gguf", "llama")
    config = {"block_count": 1, "embedding_length": 256, "feed_forward_length": 32,
              "context_length": 8, "attention.head_count": 2}  # fmt: skip
    for key, value in config.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tensor("token_embd.weight", raw, raw_dtype=GGMLQuantizationType.Q6_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(str(tmp_path / "k.gguf"))
    expected = gguf.quants.dequantize(raw, GGMLQuantizationType.Q6_K)
    assert (checkpoint.floats("model.embed_tokens.weight") == expected).all()
    assert checkpoint.is_quantised("model.embed_tokens.weight")
    packed = Packer(checkpoint, "int4").embedding()
    assert isinstance(packed, Quantised) and packed.bits == 8


@pytest.mark.parametrize("seed", range(3))
def test_rounding_stays_within_half_a_step(seed: int) -> None:
    weight = np.random.default_rng(seed).normal(0, 1, (7, 96)).astype(np.float32)
    weight[3, 32:64] = 0.0
    weight[4, :32] = 2.5
    for packed in (quantise_int8(weight), quantise_int4(weight)):
        error = np.abs(packed.floats() - weight).reshape(7, 3, 32).max(-1)
        assert (error <= packed.scale * 0.5001 + 1e-6).all()


def test_rows_of_a_packed_matrix_are_its_rows() -> None:
    packed = quantise_int4(np.random.default_rng(0).normal(0, 1, (9, 64)).astype(np.float32))
    index = np.array([4, 0, 8, 4])
    assert (packed.rows(index).floats() == packed.floats()[index]).all()


# ---------------------------------------------------------------------------- tokenizers


def test_the_byte_level_tokenizer_is_the_original_one(llama: Any, tmp_path: Path) -> None:
    config = {**llama.config.to_dict(), "model_type": "llama"}
    write_gguf(tmp_path / "t.gguf", config, numpy_weights(llama), lambda name: "F32")
    files = open_checkpoint(str(tmp_path / "t.gguf")).tokenizer()
    made, original = Tokenizer(files), Tokenizer(tokenizer_files())
    text = f"{UNICODE} 1234567 it's<|im_end|>the edge"
    assert made.encode(text) == original.encode(text)
    assert made.decode(made.encode(UNICODE)) == UNICODE
    stream = made.stream()
    assert "".join(stream.push(i) for i in made.encode(UNICODE)) == UNICODE
    assert made.decode(made.encode("a<|im_end|>b")) == "ab"
    assert made.eos_ids == {0, 2}
    chat = [{"role": "user", "content": "the edge"}]
    assert made.render(chat) == original.render(chat)
    assert made.encode_chat(chat) == original.encode_chat(chat)
    for one in (text, UNICODE, "", "the edge and the cloud " * 9):
        assert made.encode(one) == made._hub.encode(one, add_special_tokens=False).ids
        assert len(one.encode()) <= len(made.encode(one)) * made.longest_bytes
    assert max(made.encode_chat(chat)) < VOCABULARY


def test_a_sentencepiece_tokenizer_falls_back_to_bytes(llama: Any, tmp_path: Path) -> None:
    config = {**llama.config.to_dict(), "model_type": "llama"}
    write_gguf(tmp_path / "t.gguf", config, numpy_weights(llama), lambda name: "F32",
               tokenizer=add_sentencepiece_tokenizer)  # fmt: skip
    files = open_checkpoint(str(tmp_path / "t.gguf")).tokenizer()
    made = Tokenizer(files)
    random = np.random.default_rng(0)
    for _ in range(50):
        text = "".join(random.choice(list("thecloud "), 20)).strip()
        pieces = ["<s>", *sentencepiece(text)]
        assert made.encode(text) == [id_of(files.tokenizer_json, piece) for piece in pieces], text
        assert made.decode(made.encode(text)) == text
    for text in (UNICODE, "é", " leading", "the\nthe"):
        assert made.decode(made.encode(text)) == text
        stream = made.stream()
        streamed = "".join(stream.push(i) for i in made.encode(text))
        assert streamed == text
    assert made.encode("é")[-2:] == [3 + 0xC3, 3 + 0xA9]
    assert made.eos_ids == {2}


def sentencepiece(text: str) -> list[str]:
    """The reference: join the best-scored pair, the leftmost of equals (llama-vocab.cpp)."""
    pieces = list("▁" + text.replace(" ", "▁"))
    while True:
        joined = ["".join(pieces[i : i + 2]) for i in range(len(pieces) - 1)]
        found = [(SPM_PIECES.index(pair), i) for i, pair in enumerate(joined) if pair in SPM_PIECES]
        if not found:
            return pieces
        _, i = min(found)
        pieces[i : i + 2] = [joined[i]]


def id_of(tokenizer_json: str, token: str) -> int:
    from tokenizers import Tokenizer as HubTokenizer

    found = HubTokenizer.from_str(tokenizer_json).token_to_id(token)
    assert found is not None, token
    return int(found)


def shape_of(model: Any) -> dict[str, Any]:
    config = model.config
    return {
        "num_hidden_layers": config.num_hidden_layers,
        "tie_word_embeddings": config.tie_word_embeddings,
    }
