"""Masks: a pure function of the answer so far, and nothing that a schema can do takes long."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from tests.support import VOCABULARY, random_artifact, tokenizer_json
from tokenizers import Tokenizer

from collm.cli.main import main
from collm.config import CONSTRAINTS, Constraint
from collm.errors import PromptError, ProtocolError
from collm.model.artifact import Artifact
from collm.policy.sampling import likeliest, log_probability, only
from collm.runtime.constraints import Masks, check_constraint

EOS = {0, 2}
PROMPT = [9, 8, 7]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["cat", "dog"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "kind"],
    "additionalProperties": False,
}
MADE = {
    "json_schema": json.dumps(SCHEMA),
    "json_object": "",
    "regex": r"(ab|cd){1,4}[0-9]{2,5}",
    "lark": 'start: "(" start? ")" | /[a-z]+/',
}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return random_artifact(tmp_path_factory.mktemp("tiny") / "artifact")


def made(kind: str, start: int = len(PROMPT)) -> Constraint:
    return Constraint(kind=kind, text=MADE[kind], start=start)


def text_of(ids: Sequence[int]) -> str:
    return str(Tokenizer.from_str(tokenizer_json()).decode(list(ids)))


def walk(masks: Masks, seed: int, most: int = 200) -> list[int]:
    """An answer of random tokens among those allowed, its end-of-text token included."""
    random, ids = np.random.default_rng(seed), list(PROMPT)
    while len(ids) < most:
        allowed = np.flatnonzero(masks.allowed(ids))
        # Random text hardly ever ends by itself.
        ends = [token for token in allowed if token in EOS]
        ids.append(int(ends[0] if ends and random.random() < 0.3 else random.choice(allowed)))
        if ids[-1] in EOS:
            break
    return ids[len(PROMPT) :]


def obeys(kind: str, text: str) -> bool:
    if kind == "regex":
        return re.fullmatch(MADE[kind], text) is not None
    if kind == "lark":
        return re.fullmatch(r"\(*[a-z]*\)*", text) is not None and text.count("(") == text.count(
            ")"
        )
    value = json.loads(text)
    if kind == "json_object":
        return isinstance(value, dict)
    return (
        value.keys() <= SCHEMA["properties"].keys()  # type: ignore[attr-defined]
        and len(value["name"]) <= 6
        and value["kind"] in ("cat", "dog")
        and len(value.get("tags", [])) <= 3
        # As Python writes it, spaces and all; what may be escaped is the model's to say.
        and ("\\" in text or json.dumps(value, ensure_ascii=False) == text)
    )


@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_whatever_is_chosen_the_answer_obeys(artifact: Artifact, kind: str) -> None:
    ended = 0
    for seed in range(12):
        ids = walk(Masks(artifact, made(kind)), seed)
        if ids[-1] in EOS:
            ended += 1
            if kind != "json_object":  # there the same key may come twice
                assert obeys(kind, text_of(ids[:-1])), f"seed {seed}: {text_of(ids)!r}"
            else:
                assert isinstance(json.loads(text_of(ids[:-1])), dict), f"seed {seed}"
    assert ended >= 6


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(CONSTRAINTS),
    seed=st.integers(0, 50),
    asked=st.lists(st.integers(0, 60), min_size=1, max_size=12),
)
def test_a_mask_hangs_on_the_answer_alone(
    artifact: Artifact, kind: str, seed: int, asked: list[int]
) -> None:
    """However the text got there: asked in any order, with texts of other answers in between."""
    one, other = (walk(Masks(artifact, made(kind)), s, 60) for s in (seed, seed + 1))
    masks = Masks(artifact, made(kind))
    for turn, length in enumerate(asked):
        ids = [*PROMPT, *(one if turn % 3 else other)[:length]]
        fresh = Masks(artifact, made(kind)).allowed(ids)
        assert np.array_equal(masks.allowed(ids), fresh)
        assert fresh.shape == (VOCABULARY,) and fresh.any()


def test_where_it_has_to_end_only_the_end_is_allowed(artifact: Artifact) -> None:
    masks = Masks(artifact, Constraint(kind="regex", text="ab", start=1))
    ids = [5, *Tokenizer.from_str(tokenizer_json()).encode("ab").ids]
    assert set(np.flatnonzero(masks.allowed(ids))) == EOS
    for _ in range(3):  # whoever ignores the end goes on with it
        ids.append(2)
        assert set(np.flatnonzero(masks.allowed(ids))) == EOS


def test_a_text_that_breaks_its_constraint_is_an_error(artifact: Artifact) -> None:
    masks = Masks(artifact, made("regex"))
    wrong = Tokenizer.from_str(tokenizer_json()).encode("zz").ids
    before = masks.allowed(PROMPT)
    with pytest.raises(ProtocolError, match="at position 3 breaks the answer's constraint"):
        masks.allowed([*PROMPT, *wrong])
    assert np.array_equal(masks.allowed(PROMPT), before)  # and says nothing of what comes after
    with pytest.raises(ProtocolError, match="from position 3 on, in a text of 2"):
        masks.allowed(PROMPT[:2])


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=0, le=9, default=9, description="Left.")


class Dog(BaseModel):
    kind: Literal["dog"]
    born: date | None = None


class Home(BaseModel):
    """What clients send: made by Pydantic, with titles, defaults, references, a choice of kinds."""

    pets: list[Annotated[Cat | Dog, Field(discriminator="kind")]] = Field(
        min_length=1, max_length=2
    )
    others: dict[str, int] = {}
    next_door: Home | None = None


def test_schemas_that_pydantic_makes_are_kept_to(artifact: Artifact) -> None:
    schema = Constraint(kind="json_schema", text=json.dumps(Home.model_json_schema()), start=3)
    ended = 0
    for seed in range(12):
        ids = walk(Masks(artifact, schema), seed, 400)
        if ids[-1] in EOS:
            made_so = Home.model_validate_json(text_of(ids[:-1]))
            assert made_so.pets, f"seed {seed}"
            ended += 1
    assert ended >= 4


DEEP = '{"items":' * 90 + "{}" + "}" * 90
REFS = {"$ref": "#/$defs/d0", "$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2}
        for i in range(40)} | {"d40": {"type": "object"}}}  # fmt: skip
DOUBLED = "".join(f'r{i}: r{i + 1} r{i + 1} | "a"\n' for i in range(150))
BAD = {
    "not JSON": ("json_schema", "{", "not JSON"),
    "no object": ("json_schema", "[]", "not a JSON object"),
    "an unknown word": ("json_schema", '{"not": {}}', "not"),
    "no way to tell": ("json_schema", '{"oneOf": [{"minLength": 1}, {"maxLength": 9}]}', "oneOf"),
    "a false type": ("json_schema", '{"type": "text"}', "type"),
    "another document": ("json_schema", '{"$ref": "file:///etc/passwd"}', "cannot be used"),
    "itself": ("json_schema", '{"$ref": "#"}', "cannot be kept to"),
    "too deep": ("json_schema", '{"a":' * 2000 + "{}" + "}" * 2000, "levels deep"),
    "far too deep": ("json_schema", '{"a":' * 10_000 + "{}" + "}" * 10_000, "levels deep"),
    "too long": ("json_schema", json.dumps({"enum": ["x" * 70_000]}), "at most 65536"),
    "a long number": ("json_schema", '{"multipleOf": ' + "9" * 5000 + "}", "not JSON"),
    "a dear number": ("json_schema", '{"type": "integer", "multipleOf": 999983}', "multipleOf"),
    "a dear fraction": ("json_schema", '{"type": "number", "multipleOf": 0.999983}', "multipleOf"),
    "a number without end": ("json_schema", '{"type": "number", "multipleOf": 1e999}', "multiple"),
    "a number beyond floats": ("json_schema", '{"multipleOf": 1' + "0" * 400 + "}", "multipleOf"),
    "a truth that is no number": ("json_schema", '{"multipleOf": true}', "multipleOf"),
    "nor is a falsehood": ("json_schema", '{"type": "number", "multipleOf": false}', "multipleOf"),
    "many patterns": ("json_schema", json.dumps({"prefixItems": [
        {"type": "string", "pattern": "([a-z]?[0-9]?){1,50}"} for _ in range(300)]}),
        "patterns of 6000 bytes"),
    "dear numbers": ("json_schema", json.dumps({"prefixItems": [
        {"type": "integer", "multipleOf": 9000 + i} for i in range(500)]}), "multipleOf"),
    "a long key pattern": ("json_schema", json.dumps({"patternProperties": {"a?" * 3000: {}}}),
                           "patterns of 6000 bytes"),
    "too many": ("json_schema", json.dumps({"type": "object", "properties": {
        f"p{i}": {"type": "integer", "minimum": i, "maximum": 10**9 + i} for i in range(900)}}),
        "too big"),
    "no expression": ("regex", "(", "cannot be used"),
    "many groups": ("regex", "(" * 2000 + "a" + ")" * 2000, "cannot be used"),
    "a long expression": ("regex", "a" * 5000, "at most 4096"),
    "no grammar": ("lark", "start: nothing", "nothing"),
    "a grammar of itself": ("lark", "start: start", "cannot be kept to"),
    "a deep grammar": ("lark", "start: " + "(" * 2000 + '"a"' + ")" * 2000, "nested"),
    "a schema in a grammar": ("lark", 'start: %json {"multipleOf": 999983}', "%json"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "said"), BAD.values(), ids=BAD.keys())
@pytest.mark.timeout(20)  # each takes less than half a second; without the bounds one took 20 s
def test_what_cannot_be_kept_to_is_refused_in_one_line(
    artifact: Artifact, kind: str, text: str, said: str
) -> None:
    with pytest.raises(PromptError, match=said) as caught:
        check_constraint(artifact, Constraint(kind=kind, text=text))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


ODD_NUMBERS = st.one_of(
    st.integers(-3, 50),
    st.sampled_from([10**400, -(10**400), 2**31, 2**63, 2**64, 1e308, 5e-324, 1e-20, 0.1, -0.0]),
    st.floats(),
)
ODD_TEXTS = st.sampled_from([
    "", "string", "number", "integer", "object", "array", "null", "date-time", "uuid", "regex",
    "(a", "a*", r"\p{L}+", "^x$", "(?=a)", r"\1", "#", "#/$defs/a", "#/properties/a", "http://x",
    "\ud800", "\0", "😀",
])  # fmt: skip
KEYWORDS = [
    "type", "properties", "required", "items", "prefixItems", "additionalProperties", "pattern",
    "patternProperties", "format", "minLength", "maxLength", "minItems", "maxItems", "minimum",
    "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "enum", "const", "anyOf",
    "allOf", "oneOf", "not", "if", "$ref", "$defs", "$id", "$anchor", "minProperties",
    "propertyNames", "uniqueItems", "contains", "x-guidance", "default",
]  # fmt: skip
ODD_LEAVES = ODD_NUMBERS | ODD_TEXTS | st.booleans() | st.none()
ODD_VALUES = st.recursive(
    ODD_LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYWORDS) | ODD_TEXTS, inner, max_size=4)
    ),
    max_leaves=12,
)
ODD_SCHEMAS = st.dictionaries(st.sampled_from(KEYWORDS), ODD_VALUES, max_size=5) | (
    st.fixed_dictionaries(
        {"type": ODD_TEXTS},
        optional={name: ODD_LEAVES for name in KEYWORDS if name.startswith(("m", "e", "p", "f"))},
    )
)


@given(ODD_SCHEMAS)
@settings(max_examples=250, deadline=None, derandomize=True)
@pytest.mark.timeout(60)
def test_odd_schemas_are_kept_to_or_refused(artifact: Artifact, schema: dict[str, object]) -> None:
    with suppress(PromptError):
        check_constraint(artifact, Constraint(kind="json_schema", text=json.dumps(schema)))


DEAR = {
    "levels": ("json_schema", DEEP),
    "doubled references": ("json_schema", json.dumps(REFS)),
    "a long list": ("json_schema", '{"minItems": 1000000000}'),
    "a long string": ("json_schema", '{"type": "string", "minLength": 1000000000}'),
    "states": ("json_schema", '{"type": "string", "pattern": "^(a|b)*a(a|b){200}$"}'),
    "values": ("json_schema", json.dumps({"enum": [f"value {i}" for i in range(2000)]})),
    "a number": ("json_schema", '{"type": "integer", "multipleOf": 100}'),
    "doubled rules": ("lark", f'start: r0\n{DOUBLED}r150: "b"\n'),
}


@pytest.mark.parametrize(("kind", "text"), DEAR.values(), ids=DEAR.keys())
@pytest.mark.timeout(20)
def test_what_looks_dear_and_is_not_works(artifact: Artifact, kind: str, text: str) -> None:
    assert walk(Masks(artifact, Constraint(kind=kind, text=text, start=3)), 1, 40)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", ["(((a{1000}){1000}){1000})", "a?" * 2000])
def test_an_expression_that_explodes_later_ends_the_answer(artifact: Artifact, text: str) -> None:
    """It compiles; walking it would take more states than a session may have."""
    masks = Masks(artifact, Constraint(kind="regex", text=text, start=3))
    with pytest.raises(PromptError, match="cannot be kept to: lexer error"):
        walk(masks, 1)


def test_kinds_and_their_texts() -> None:
    with pytest.raises(PromptError, match="constraint 'yaml': expected one of json_schema"):
        Constraint(kind="yaml", text="a: b")
    with pytest.raises(PromptError, match="kind regex: expected text"):
        Constraint(kind="regex")
    with pytest.raises(PromptError, match="kind json_object: expected no text"):
        Constraint(kind="json_object", text="{}")
    with pytest.raises(PromptError, match="not valid Unicode"):
        Constraint(kind="regex", text="\ud800")


def test_a_model_that_cannot_end_is_refused(tmp_path: Path) -> None:
    made_so = random_artifact(tmp_path / "artifact")
    object.__setattr__(made_so.manifest, "eos_ids", ())
    with pytest.raises(PromptError, match="no end-of-text token"):
        check_constraint(made_so, made("regex"))


@pytest.mark.parametrize("count", [1, 5, 20])
def test_the_likeliest_tokens_are_those(count: int) -> None:
    random = np.random.default_rng(count)
    logits = random.integers(-9, 9, 200).astype(np.float32)  # with many ties
    told = likeliest(logits, count)
    best = sorted(range(200), key=lambda token: (-logits[token], token))[:count]
    assert [token for token, _ in told] == best
    assert [p for _, p in told] == [float(np.float32(log_probability(logits, t))) for t in best]
    few = only(logits, np.arange(200) < 3)
    assert {token for token, _ in likeliest(few, count)} <= {0, 1, 2}  # none that cannot be
    assert likeliest(logits, 0) == ()
    assert len(likeliest(logits[:3], 20)) == 3


def test_the_command_line_takes_a_schema_as_text_or_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "artifact"
    random_artifact(folder)
    (tmp_path / "schema.json").write_text(MADE["json_schema"])

    def run(*options: str) -> tuple[int, str, str]:
        asked = ["run", str(folder), "x", "--raw", "--placement", "4", "--json", *options]
        monkeypatch.setattr(sys, "argv", ["collm", *asked])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(str(ended.value.code)), *capsys.readouterr()

    texts = []
    for schema in (MADE["json_schema"], str(tmp_path / "schema.json")):
        code, out, _ = run("--json-schema", schema, "--top-logprobs", "3")
        line = json.loads(out)
        assert code == 0 and line["finish_reason"] == "stop"
        assert obeys("json_schema", line["text"])
        assert {len(token["alternatives"]) for token in line["tokens"]} == {3}
        assert all(token["logprob"] <= 0 for token in line["tokens"])
        texts.append(line["text"])
    assert texts[0] == texts[1]
    bad = {
        '{"type": "text"}': "the json_schema cannot be used",
        "no-such-file": "expected a file, or a schema",
        str(tmp_path): "expected a file, or a schema",
        "{": "not JSON",
    }
    for schema, said in bad.items():
        code, _, told = run("--json-schema", schema)
        assert code == 2 and said in told and told.count("\n") == 1
    code, _, told = run("--top-logprobs", "21")
    assert code == 2 and "expected 0 to 20" in told
