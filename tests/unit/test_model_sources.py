"""Sources that cannot be built: one clear SourceError each, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.gguf_files import add_byte_level_tokenizer, write_gguf, write_metadata
from tests.support import (
    TINY,
    RandomCheckpoint,
    build_folder,
    random_artifact,
    save_random_folder,
    tree,
)

from collm.errors import ArtifactError, PlacementError, SourceError
from collm.model.artifact import Artifact
from collm.model.build import build, default_cuts
from collm.model.families import SUPPORTED
from collm.model.sources import open_checkpoint


def tiny_gguf(path: Path) -> Path:
    config = {**TINY, "model_type": "llama", "hidden_size": 32, "intermediate_size": 32,
              "num_hidden_layers": 1, "num_attention_heads": 2}  # fmt: skip
    checkpoint = RandomCheckpoint(**config)
    names = ["model.embed_tokens.weight", "model.norm.weight"]
    parts = ["self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up"]
    names += [f"model.layers.0.{part}_proj.weight" for part in (*parts, "mlp.down")]

    def few_tokens(writer: GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(["a", "b", "é"])
        writer.add_token_merges(["a b"])

    weights = {name: checkpoint.floats(name) for name in names}
    write_gguf(path, config, weights, lambda name: "Q8_0", tokenizer=few_tokens)
    return path


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")
    open_checkpoint(str(path))
    return path.read_bytes()


def test_a_gguf_file_cut_short_anywhere_is_refused(gguf_bytes: bytes, tmp_path: Path) -> None:
    header = gguf_bytes.index(b"blk.0.ffn_down.weight") + 64
    assert header < 3000
    # The last tensor is Q8_0 in blocks of 34 bytes, padded to 32: only padding may be missing.
    padding = 32
    lengths = [*range(0, header, 3), *range(header, len(gguf_bytes) - padding, 197)]
    for length in lengths:
        path = tmp_path / "cut.gguf"
        path.write_bytes(gguf_bytes[:length])
        with pytest.raises(SourceError) as caught:
            open_checkpoint(str(path))
        assert str(path) in str(caught.value), length
        assert "\n" not in str(caught.value), length


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_gguf_file_with_a_damaged_header_never_surprises(
    data: st.DataObject, gguf_bytes: bytes, tmp_path: Path
) -> None:
    damaged = bytearray(gguf_bytes)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(4, 1500))
        damaged[place] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damaged)
    with suppress(SourceError):
        checkpoint = open_checkpoint(str(path))
        checkpoint.tokenizer()
        checkpoint.floats("model.norm.weight")


@pytest.mark.parametrize(
    "content", [b"", b"G", b"GGUF", b"GGUF\x03", b"{}", b"PK\x03\x04", b"\0" * 4096]
)
def test_what_is_no_gguf_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"not a GGUF|truncated"):
        open_checkpoint(str(path))


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file or folder"):
        open_checkpoint(str(tmp_path / "nothing.gguf"))


def test_an_unsupported_gguf_architecture_is_named_with_the_known_ones(tmp_path: Path) -> None:
    path = write_metadata(tmp_path / "m.gguf", "mamba", lambda writer: None)
    with pytest.raises(SourceError, match="'mamba'") as caught:
        open_checkpoint(str(path))
    assert all(name in str(caught.value) for name in SUPPORTED)


def test_a_gguf_file_that_lacks_metadata_says_which(tmp_path: Path) -> None:
    path = write_metadata(tmp_path / "m.gguf", "llama", lambda writer: writer.add_block_count(1))
    with pytest.raises(SourceError, match=r"llama\.attention\.head_count"):
        open_checkpoint(str(path))


def no_merges(writer: GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b"])
    writer.add_eos_token_id(1)


def no_scores(writer: GGUFWriter) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["a", "b"])
    writer.add_eos_token_id(1)


def end_outside(writer: GGUFWriter) -> None:
    add_byte_level_tokenizer(writer)
    writer.add_uint32("tokenizer.ggml.eot_token_id", 7)
    writer.kv_data[0]["tokenizer.ggml.eos_token_id"].value = 9999


def other_kind(writer: GGUFWriter) -> None:
    no_merges(writer)
    writer.kv_data[0]["tokenizer.ggml.model"].value = "rwkv"


@pytest.mark.parametrize(
    ("tokenizer", "says"),
    [
        (lambda writer: None, "carries no tokenizer"),
        (no_merges, "merges"),
        (no_scores, "scores"),
        (end_outside, "9999"),
        (other_kind, "'rwkv'"),
    ],
)
def test_a_gguf_tokenizer_that_cannot_be_rebuilt(
    tokenizer: Callable[[GGUFWriter], None], says: str, tmp_path: Path
) -> None:
    config = {**TINY, "model_type": "llama", "num_hidden_layers": 1}
    weights = {"model.embed_tokens.weight": RandomCheckpoint().floats("model.embed_tokens.weight")}
    path = tmp_path / "m.gguf"
    write_gguf(path, config, weights, lambda name: "F32", tokenizer=tokenizer)
    with pytest.raises(SourceError, match=says):
        open_checkpoint(str(path)).tokenizer()


# ------------------------------------------------------------------ Hugging Face folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_random_folder(tmp_path / "source", num_hidden_layers=2)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("config.json", "config.json: no such file"),
        ("model.safetensors", r"no \*\.safetensors"),
        ("tokenizer.json", "no tokenizer.json"),
    ],
)
def test_a_folder_that_lacks_a_file(folder: Path, file: str, says: str) -> None:
    (folder / file).unlink()
    with pytest.raises(SourceError, match=says):
        build_folder(folder, folder.parent / "out")
    assert not (folder.parent / "out").exists()


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"model_type": 3}', "[" * 100_000, "\x00"])
def test_a_config_that_is_not_one(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(SourceError, match=r"config\.json"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("content", ["", "{}", "[1]", "\ufeff{}", '{"version": "1.0"}'])
def test_a_tokenizer_that_is_not_one(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(SourceError, match=r"tokenizer\.json"):
        build_folder(folder, folder.parent / "out")


def test_truncated_safetensors(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, 1000, 5000, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(SourceError, match=r"model\.safetensors") as caught:
            open_checkpoint(str(folder))
        assert "truncated or damaged" in str(caught.value), length


def test_a_tensor_that_is_missing_is_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match=r"model\.layers\.2\.self_attn\.q_proj\.weight"):
        build_folder(folder, folder.parent / "out")
    assert not (folder.parent / "out").exists()


def test_tensors_of_other_shapes_than_the_config_says(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] = 128
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match=r"gate_proj.*96.*128"):
        build_folder(folder, folder.parent / "out")


# ----------------------------------------------------------------------------- building


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_sizes_that_quantised_weights_cannot_have(tmp_path: Path, weights: str) -> None:
    odd = RandomCheckpoint(hidden_size=72, num_attention_heads=3, num_key_value_heads=3)
    with pytest.raises(SourceError, match="--weights fp32"):
        build(odd, tmp_path / "out", weights=weights)
    assert list(tmp_path.iterdir()) == []
    build(odd, tmp_path / "out", weights="fp32")


def test_weights_of_an_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="int4, int8, fp32"):
        build(RandomCheckpoint(), tmp_path / "out", weights="int2")


@pytest.mark.parametrize("cuts", [(0,), (4,), (5,), (-1,), (2, 1), (1, 1)])
def test_cuts_that_cut_nothing(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    with pytest.raises(PlacementError, match="from 1 to 3"):
        build(RandomCheckpoint(), tmp_path / "out", cuts=cuts)
    assert list(tmp_path.iterdir()) == []


def test_default_cuts_lie_inside_the_model() -> None:
    assert default_cuts(30) == (5, 10, 15, 20)
    for layers in range(1, 100):
        cuts = default_cuts(layers)
        assert list(cuts) == sorted(set(cuts)) and all(0 < cut < layers for cut in cuts)


def test_no_cuts_make_one_block(tmp_path: Path) -> None:
    manifest = build(RandomCheckpoint(), tmp_path / "out", cuts=(), weights="fp32")
    assert [(block.first, block.last) for block in manifest.blocks] == [(0, 4)]
    assert manifest.exits == ()


@pytest.mark.parametrize("force", [False, True])
def test_nothing_but_an_artifact_is_ever_replaced(tmp_path: Path, force: bool) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="not an artifact"):
        build(RandomCheckpoint(), out, weights="fp32", force=force)
    assert tree(tmp_path) == {"out/thesis.txt": b"years of work"}
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ArtifactError, match="not an artifact"):
        build(RandomCheckpoint(), file, weights="fp32", force=force)
    assert file.read_text() == "mine"


def test_an_artifact_is_replaced_only_when_told_to(tmp_path: Path) -> None:
    old = random_artifact(tmp_path / "out")
    with pytest.raises(ArtifactError, match="--force"):
        build(RandomCheckpoint(seed=1), tmp_path / "out", weights="fp32")
    assert Artifact(tmp_path / "out").fingerprint == old.fingerprint
    build(RandomCheckpoint(seed=1), tmp_path / "out", cuts=(1, 2), weights="fp32", force=True)
    assert Artifact(tmp_path / "out").fingerprint != old.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    build(RandomCheckpoint(), tmp_path / "out", weights="fp32")
    Artifact(tmp_path / "out").tokenizer()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def steps_of_a_build(tmp_path: Path) -> list[str]:
    steps: list[str] = []
    build(RandomCheckpoint(), tmp_path / "counted", weights="fp32",
          progress=lambda what, done, total: steps.append(what))  # fmt: skip
    return steps


@pytest.mark.parametrize("force", [False, True])
def test_an_interrupted_build_leaves_things_as_they_were(tmp_path: Path, force: bool) -> None:
    count = len(steps_of_a_build(tmp_path))
    assert count > 5
    home = tmp_path / "home"
    home.mkdir()
    if force:
        random_artifact(home / "out")
    before = tree(home)
    for stop_at in range(count):
        left = iter(range(stop_at))

        def interrupt(what: str, done: int, total: int, left: Any = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            build(RandomCheckpoint(seed=1), home / "out", weights="fp32", force=force,
                  progress=interrupt)  # fmt: skip
        assert tree(home) == before, f"interrupted at step {stop_at}"
        assert [path.name for path in home.iterdir()] == (["out"] if force else [])


def test_a_replacement_that_fails_half_way_puts_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_artifact(tmp_path / "out")
    before = tree(tmp_path)
    rename = os.rename

    def failing(source: Any, target: Any) -> None:
        if ".partial-" in str(source):
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(KeyboardInterrupt):
        build(RandomCheckpoint(seed=1), tmp_path / "out", weights="fp32", force=True)
    assert tree(tmp_path) == before


def test_a_full_disk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RandomCheckpoint, "floats", full)
    with pytest.raises(ArtifactError, match=re.escape(f"{tmp_path / 'out'}: cannot be written")):
        build(RandomCheckpoint(), tmp_path / "out", weights="fp32")
    assert list(tmp_path.iterdir()) == []


def test_the_same_checkpoint_gives_the_same_artifact(tmp_path: Path) -> None:
    one = random_artifact(tmp_path / "one", weights="int4")
    build(RandomCheckpoint(), tmp_path / "two", cuts=(1, 2), weights="int4")
    assert tree(one.folder) == tree(tmp_path / "two")
    assert random_artifact(tmp_path / "3", weights="int8").fingerprint != one.fingerprint
    assert random_artifact(tmp_path / "4", seed=1, weights="int4").fingerprint != one.fingerprint
    assert random_artifact(tmp_path / "5", cuts=(2,), weights="int4").fingerprint != one.fingerprint
