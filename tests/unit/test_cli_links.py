"""Bad input of what concerns links: one line on standard error, exit code 2."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.support import random_artifact

from collm.cli.main import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny") / "artifact"
    random_artifact(made, cuts=(1, 2, 3), weights="int4")
    return made


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("cloud A --kv-memory lots", "such as 512mb"),
        ("cloud A --kv-memory 0gb", "such as 512mb"),
        ("cloud A --log xml", "expected one of text, json"),
        ("cloud A --tls-cert cert.pem", "--tls-key"),
        ("cloud A --client-ca ca.pem", "needs TLS"),
        ("cloud A --tokens none", "none: cannot be read"),
        ("cloud A --tls-cert none.pem --tls-key none.pem", "none.pem: cannot be read"),
        ("cloud A --metrics 0.0.0.0:0", "--insecure"),
        ("cloud A --metrics nowhere", "HOST:PORT"),
        ("run A hi --cloud 10.0.0.1:1 --token-file token", "unencrypted"),
        ("run A hi --cloud 127.0.0.1:1 --token-file none", "cannot be read"),
        ("run A hi --cloud 127.0.0.1:1 --token-file words", "one token and nothing else"),
        ("run A hi --cloud 127.0.0.1:1 --cert cert.pem --key key.pem", "--ca"),
        ("run A hi --cloud 127.0.0.1:1 --ca none.pem", "none.pem: cannot be read"),
        ("run A hi --cloud 127.0.0.1:x,127.0.0.1:2", "HOST:PORT"),
        ("run A hi --cloud spawn --metrics 0.0.0.0:0", "--insecure"),
        ("link --to 127.0.0.1:1 --reset 2", "--reset 2: expected a chance"),
        ("link --to 127.0.0.1:1 --cut-after soon", "such as 20ms"),
        ("link --to 127.0.0.1:1 --cut-after 0kb", "such as 512mb"),
        ("link --to 127.0.0.1:1 --script none", "none: cannot be read"),
        ("link --to 127.0.0.1:1 --script words", "line 1"),
    ],
)
def test_one_line_and_exit_code_2(
    words: str,
    told: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "token").write_text("goodgoodgoodgood\n")
    (tmp_path / "words").write_text("two words\n")
    (tmp_path / "words").chmod(0o600)
    arguments = [str(folder) if word == "A" else word for word in words.split()]
    listen = [] if arguments[0] == "run" else ["--listen", "127.0.0.1:0"]
    monkeypatch.setattr(sys, "argv", ["collm", *arguments, *listen])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.strip().splitlines()) == 1, said.err
    assert said.err.startswith("error: ")
    assert told in said.err
