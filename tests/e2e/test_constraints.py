"""A JSON schema on the real model, through the command line and a real cloud process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.e2e.conftest import collm

from collm.config import Constraint, Generation, Sampling
from collm.model.artifact import Artifact
from collm.session.edge import Edge

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
    prompt = "Describe Alice, who is 30 and has a cat, as JSON."
    ran = collm("run", smollm2, prompt, "--json", "--json-schema", file, "--max-tokens", "48",
                "--threads", "1", "--cloud", cloud, "--top-logprobs", "2")  # fmt: skip
    assert ran.code == 0, ran.err
    (shared,) = ran.lines()
    assert shared["finish_reason"] == "stop"
    made = json.loads(shared["text"])
    assert made.keys() == SCHEMA["properties"].keys()  # type: ignore[attr-defined]
    assert isinstance(made["age"], int) and set(made["pets"]) <= {"cat", "dog", "bird"}
    assert any(token["source"].startswith("exit@") for token in shared["tokens"])
    assert shared["rounds"] < len(shared["tokens"])

    edge = Edge(Artifact(smollm2), mode="verified", placement=30)
    constraint = Constraint(kind="json_schema", text=file.read_text())
    asked = Generation(max_tokens=48, sampling=Sampling(constraint=constraint, top_logprobs=2))
    ids = edge.tokenizer.encode_chat([{"role": "user", "content": prompt}])
    alone = edge.answer(ids, asked).finish()
    assert shared["token_ids"] == alone.token_ids
    assert [t["logprob"] for t in shared["tokens"]] == [t.logprob for t in alone.tokens]
    told = [[tuple(one) for one in token["alternatives"]] for token in shared["tokens"]]
    assert told == [list(token.alternatives) for token in alone.tokens]
