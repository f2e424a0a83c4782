"""A JSON schema on the real model, through the command line and a real cloud process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.e2e.conftest import collm

pytestmark = pytest.mark.e2e

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "pets": {"type": "array", "items": {"enum": ["cat", "dog", "bird"]}, "maxItems": 3},
    },
    "required": ["name", "age", "pets"],
    "additionalProperties": False,
}


def test_the_answer_is_what_the_schema_says_and_the_whole_models(
    smollm2: Path, cloud: str, tmp_path: Path
) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    asked = ("run", smollm2, "Describe Alice, who is 30 and has a cat, as JSON.", "--json",
             "--json-schema", file, "--max-tokens", "48", "--threads", "1")  # fmt: skip
    whole = collm(*asked, "--placement", "30", "--top-logprobs", "2")
    shared = collm(*asked, "--placement", "15", "--cloud", cloud, "--top-logprobs", "2")
    assert (whole.code, shared.code) == (0, 0), whole.err + shared.err
    ((alone,), (together,)) = whole.lines(), shared.lines()
    assert together["finish_reason"] == "stop"
    made = json.loads(together["text"])
    assert made.keys() == SCHEMA["properties"].keys()  # type: ignore[attr-defined]
    assert isinstance(made["age"], int) and set(made["pets"]) <= {"cat", "dog", "bird"}
    assert together["token_ids"] == alone["token_ids"]
    told = [[(t["logprob"], t["alternatives"]) for t in one["tokens"]] for one in (alone, together)]
    assert told[0] == told[1]
    assert any(token["source"].startswith("exit@") for token in together["tokens"])
    assert together["rounds"] < len(together["tokens"])
    bad = collm(*asked, "--placement", "30", "--json-schema", '{"type": "text"}')
    assert bad.code == 2
    assert bad.err.count("\n") == 1 and "the json_schema cannot be used" in bad.err
