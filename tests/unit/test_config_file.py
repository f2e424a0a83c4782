"""`collm.toml`: what counts most, what is refused in a line, and where each value came from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from collm import __version__
from collm.cli.config import example
from collm.cli.config_apply import COMMON, options_of
from collm.cli.lazy import load
from collm.cli.main import app
from collm.cli.verbs import GROUPS, all_verbs
from collm.errors import UsageError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory and a user's folder with no configuration yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    monkeypatch.delenv("COLLM_CONFIG", raising=False)
    (tmp_path / "user" / "collm").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def shown(*words: str, before: tuple[str, ...] = ()) -> dict[str, tuple[Any, str]]:
    """By option: its value, and who said so."""
    ran = CliRunner().invoke(app, [*before, "config", "show", *words, "--json"])
    assert ran.exit_code == 0, ran.exception
    return {
        one["option"]: (one["value"], one["source"]) for one in json.loads(ran.stdout)["settings"]
    }


def refused(text: str, verb: str = "info") -> str:
    Path("collm.toml").write_text(text)
    ran = CliRunner().invoke(app, ["config", "show", verb])
    assert isinstance(ran.exception, UsageError), ran.stdout
    assert "\n" not in str(ran.exception)
    return str(ran.exception)


def test_what_counts_most(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user, here = home / "user/collm/collm.toml", home / "here/collm.toml"
    user.write_text('[defaults]\nthreads = 3\ncloud = "u:1"\n[chat]\ndraft = 7\nseed = 9\n')
    here.write_text("[defaults]\nthreads = 2\n[chat]\ndraft = 5\n")
    monkeypatch.setenv("COLLM_CHAT_JSON", "1")
    found = shown("chat", "--max-tokens", "11", "some-folder")
    assert found["max-tokens"] == (11, "command line")
    assert found["artifact"][1] == "command line"
    assert found["json"] == (True, "environment: COLLM_CHAT_JSON")
    assert found["draft"] == (5, f"{here} [chat]")
    assert found["seed"] == (9, f"{user} [chat]")
    assert found["threads"] == (2, f"{here} [defaults]")
    assert found["cloud"] == ("u:1", f"{user} [defaults]")
    assert found["wire"] == ("f32", "default")
    # Without files, and with one alone.
    assert shown("chat", before=("--no-config",))["threads"][1] == "default"
    alone = shown("chat", before=("--config", str(user)))
    assert (alone["threads"][0], alone["draft"][0]) == (3, 7)
    monkeypatch.setenv("COLLM_CONFIG", str(user))
    assert shown("chat")["draft"][0] == 7


def test_a_verb_gets_what_the_file_says(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only shown: the command runs with it, its paths counted from the file."""
    given: dict[str, Any] = {}
    monkeypatch.setattr("collm.cli.cloud.run_cloud", lambda *_, **words: given.update(words))
    from tests.support import random_artifact

    random_artifact(home / "user/collm/model")
    (home / "user/collm/collm.toml").write_text(
        '[cloud]\nartifact = "model"\nlisten = "127.0.0.1:7"\nthreads = 1\nmax_sessions = 5\n'
        "exits = [1, 2]\n"
    )
    assert CliRunner().invoke(app, ["cloud"]).exit_code == 0
    assert (given["listen"], given["limits"].max_sessions) == ("127.0.0.1:7", 5)
    assert given["self_draft"].cuts == (1, 2)
    assert CliRunner().invoke(app, ["cloud", "--max-sessions", "6"]).exit_code == 0
    assert given["limits"].max_sessions == 6
    monkeypatch.setenv("COLLM_CLOUD_MAX_SESSIONS", "8")
    assert CliRunner().invoke(app, ["cloud"]).exit_code == 0
    assert given["limits"].max_sessions == 8
    ran = CliRunner().invoke(app, ["--no-config", "cloud"])
    assert "Missing argument" in ran.output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[inof]\n", "collm.toml: inof: no section of that name; did you mean info?"),
        ("[info]\nverfy = true\n", "[info] verfy: no option of that name; did you mean verify?"),
        ("[info]\nverify = 1\n", "[info] verify = 1: expected true or false"),
        ("[info]\nartifact = true\n", "[info] artifact = True: expected a path in quotes"),
        ("verify = true\n", "verify stands outside of any section; put it below [defaults], or"),
        (
            "[defaults]\nlisten = 'x'\n",
            "[defaults] listen: no option of that name; expected one of",
        ),
        ("[info\n", "collm.toml: no TOML (Expected ']'"),
        ("info = 3\n", "info stands outside of any section"),
    ],
)
def test_what_is_wrong_is_one_line(text: str, said: str) -> None:
    assert said in refused(text)


def test_numbers_out_of_range_and_commands_that_are_none() -> None:
    said = refused("[cloud]\nthreads = 999\n", "cloud")
    assert "[cloud] threads:" in said and "256" in said
    assert "expected a whole number" in refused('[cloud]\nthreads = "2"\n', "cloud")
    assert "[eval] qualty: no command of that name; did you mean quality?" in refused(
        "[eval.qualty]\nlimit = 2\n", "eval"
    )


def test_mistakes_leave_help_alone_and_end_in_2() -> None:
    Path("collm.toml").write_text("[info]\nverfy = true\n")
    run = [sys.executable, "-m", "collm", "info"]
    done = subprocess.run([*run, "x"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: collm.toml: [info] verfy: no option of that name; did you mean verify?\n"
    )
    assert CliRunner().invoke(app, ["info", "--help"]).exit_code == 0


def test_somebody_elses_file_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("collm.toml").write_text('[defaults]\ncloud = "evil:1"\n')
    monkeypatch.setattr("os.getuid", lambda: 12345)
    monkeypatch.setattr("collm.cli.config_files._trusted", lambda: (12345,))
    ran = CliRunner().invoke(app, ["config", "show", "info", "--json"])
    assert json.loads(ran.stdout)["files"] == []
    assert "belongs to another user, and is left out" in ran.stderr


def test_the_example_says_only_what_is_known(home: Path) -> None:
    text = example()
    assert "# [" not in text
    set_all = "\n".join(
        line.removeprefix("# ").partition("  # ")[0]
        if line.startswith("# ") and " = " in line and "…" not in line and "Others" not in line
        else line
        for line in text.splitlines()
    )
    (home / "here/collm.toml").write_text(set_all)
    assert shown("run")["max-tokens"] == (128, f"{home}/here/collm.toml [run]")
    ran = CliRunner().invoke(app, ["config", "init", "collm.toml"])
    assert "is there already" in str(ran.exception)
    assert CliRunner().invoke(app, ["config", "init"]).exit_code == 0
    assert (home / "user/collm/collm.toml").read_text() == text
    assert shown() == {} or all(one[1] != "default" for one in shown().values())


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = CliRunner().invoke(app, ["config", "path", "--json"])
    assert [Path(one["path"]).name for one in json.loads(ran.stdout)] == ["collm.toml"] * 3
    monkeypatch.setenv("COLLM_TOKEN", "never-to-be-seen")
    assert "never-to-be-seen" not in CliRunner().invoke(app, ["config", "show", "run"]).stdout


# ------------------------------------------------------------------- verbs and help


def test_every_verb_is_there_with_help_and_common_options_exist() -> None:
    names = [verb.name for verb in all_verbs()]
    assert len(names) == len(set(names))
    options: dict[str, int] = {}
    for verb in all_verbs():
        command = load(verb)
        told = command.get_short_help_str(200)
        assert told
        assert len(verb.says) < 60 and not verb.says.endswith(".")
        for key in options_of(command):
            options[key] = options.get(key, 0) + 1
        for line in verb.examples:
            assert f"collm {verb.name}" in line
    assert all(options.get(key, 0) >= 2 for key in COMMON)


def test_help_is_grouped_and_loads_nothing_big() -> None:
    code = (
        "import sys; from collm.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "big = {'onnxruntime', 'onnx', 'torch', 'fastapi', 'grpc', 'numpy', 'httpx'}\n"
        "print('LOADED', sorted(big & set(sys.modules)))"
    )
    for words in (["--help"], ["--version"], ["ps"], ["run", "--no-such"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
        )
        if words[0] != "run":
            assert "LOADED []" in done.stdout, (words, done.stdout, done.stderr)
        if words == ["--help"]:
            for title, verbs in GROUPS:
                assert f"\n{title}:\n" in done.stdout
                assert all(f"  {verb.name} " in done.stdout for verb in verbs)
        if words == ["--version"]:
            assert done.stdout.startswith(f"collm {__version__}\n")


def test_examples_are_in_the_help_and_typing_errors_are_met() -> None:
    ran = CliRunner().invoke(app, ["pull", "--help"])
    assert (
        "Examples:\n    collm pull http://10.0.0.5:50080 edge-model --placement 15\n" in ran.output
    )
    assert "Did you mean 'chat'?" in CliRunner().invoke(app, ["chta"]).output


def test_a_shell_completes_verbs_modes_and_folders(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support import random_artifact

    random_artifact(home / "here" / "my-model")
    (home / "here" / "mine").mkdir()

    def completed(words: str) -> list[str]:
        done = subprocess.run(
            [Path(sys.executable).parent / "collm"],
            capture_output=True,
            text=True,
            check=False,
            env={
                **os.environ,
                "_COLLM_COMPLETE": "complete_bash",
                "COMP_WORDS": f"collm {words}",
                "COMP_CWORD": str(len(words.split(" "))),
            },
        )
        return done.stdout.split()

    assert completed("do") == ["doctor"]
    assert {"serve", "synthesize"} <= set(completed("s"))
    assert completed("chat my-model --mode ver") == ["verified"]
    assert completed("chat m") == ["mine/", "my-model"]
