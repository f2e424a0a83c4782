"""The committed generated code is that of the committed proto file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import collm.wire


def test_generated_code_is_current(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is a development dependency")
    wire = Path(collm.wire.__file__).parent
    proto = "collm/wire/session.proto"
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I", str(wire.parents[1])]
        + [f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", proto],
        check=True,
    )
    for name in ("session_pb2.py", "session_pb2.pyi"):
        fresh = (tmp_path / "collm" / "wire" / name).read_text()
        # generate.sh puts its own lines before what the compiler wrote.
        assert (wire / name).read_text().endswith(fresh), "run sh src/collm/wire/generate.sh"
