#!/bin/sh
# Writes session_pb2.py and session_pb2.pyi from session.proto.
# Run in the repository root, with grpcio-tools 1.81.1 (newer ones ask for a newer protobuf
# at run time than the base install pins):  PYTHON=.venv/bin/python sh src/collm/wire/generate.sh
set -eu
python="${PYTHON:-python3}"
"$python" -m grpc_tools.protoc -I src --python_out=src --pyi_out=src src/collm/wire/session.proto
# No linter and no type checker has a say in generated files.
for file in src/collm/wire/session_pb2.py src/collm/wire/session_pb2.pyi; do
    { printf '# ruff: noqa\n# fmt: off\n# mypy: ignore-errors\n'; cat "$file"; } > "$file.new"
    mv "$file.new" "$file"
done
