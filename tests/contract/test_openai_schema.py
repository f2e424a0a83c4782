"""schemathesis against the server's own OpenAPI document: no 5xx, and nothing that it does not say.

CI-sized: some hundred requests with a fixed seed, on a tiny random model in process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import schemathesis
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from tests.openai_server import CHAT, RESPONSES, TEXT, app_of, ask, serving_of
from tests.support import random_artifact

from collm.errors import one_line
from collm.serve.openai.serving import Serving

_EXAMPLES = 25
OPERATIONS = (
    f"POST {CHAT}",
    f"POST {TEXT}",
    f"POST {RESPONSES}",
    "GET /v1/models",
    "GET /v1/models/{model_id}",
    "GET /healthz",
    "GET /readyz",
    "GET /collm/status",
    "GET /metrics",
)
BEYOND = {
    # What a schema does not say: rules between fields, this model's bounds, empty texts.
    ("n", "invalid_value"),
    ("prompt", "invalid_value"),
    ("prompt", "context_length_exceeded"),
    ("messages", "context_length_exceeded"),
    ("input", "context_length_exceeded"),
    ("top_logprobs", "invalid_value"),
    ("tools", "unsupported_parameter"),
    ("best_of", "unsupported_parameter"),
    ("echo", "unsupported_parameter"),
    ("response_format", "invalid_value"),
    ("response_format.json_schema.schema", "missing_required_parameter"),
    ("collm.mode", "invalid_value"),
    (None, "invalid_value"),
}


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    with tempfile.TemporaryDirectory() as folder:
        with serving_of(random_artifact(Path(folder) / "a")) as made:
            yield made


def test_the_document_has_all_that_is_tried_here(serving: Serving) -> None:
    paths = ask(serving, "/openapi.json").json()["paths"]
    found = {f"{method.upper()} {path}" for path, one in paths.items() for method in one}
    assert found == set(OPERATIONS)


@pytest.mark.parametrize(
    ("operation", "mode"),
    [(one, GenerationMode.POSITIVE) for one in OPERATIONS]
    + [(one, GenerationMode.NEGATIVE) for one in OPERATIONS if one.startswith("POST")],
)
def test_nothing_that_is_sent_breaks_the_documents_word(
    serving: Serving, operation: str, mode: GenerationMode
) -> None:
    method, _, path = operation.partition(" ")
    schema = schemathesis.openapi.from_asgi("/openapi.json", app_of(serving))
    codes = set()

    @hypothesis.settings(
        max_examples=_EXAMPLES if method == "POST" else 5,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],  # shrinking takes minutes
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=schema[path][method].as_strategy(mode))
    def check(case: Case) -> None:
        if mode.is_positive and isinstance(case.body, dict):
            # A model that is here, and answers that do not take minutes.
            most = "max_output_tokens" if path == RESPONSES else "max_tokens"
            case.body = {**case.body, "model": "tiny", most: 2}
            case.body.pop("max_completion_tokens", None)
        unchecked = [positive_data_acceptance] if mode.is_positive else []
        host = {"Host": "localhost"}
        response = case.call_and_validate(headers=host, excluded_checks=unchecked)
        codes.add(response.status_code)
        if mode.is_positive and response.status_code == 400:
            error = response.json()["error"]
            assert (error["param"], error["code"]) in BEYOND, error

    check()
    if mode.is_positive and "{" not in path:
        assert 200 in codes


@pytest.mark.parametrize("path", [CHAT, TEXT, RESPONSES])
def test_a_parameter_that_there_is_not_is_named(serving: Serving, path: str) -> None:
    names = st.text(max_size=20) | st.from_regex(r"[a-z]+([A-Z-][a-z]+)+", fullmatch=True)

    @hypothesis.settings(max_examples=_EXAMPLES, deadline=None, derandomize=True, database=None)
    @hypothesis.given(name=names)
    @hypothesis.example("Foo")
    @hypothesis.example("x-y")
    @hypothesis.example("")
    @hypothesis.example("list[str]")
    @hypothesis.example("none")
    def check(name: str) -> None:
        text = {CHAT: "messages", TEXT: "prompt", RESPONSES: "input"}[path]
        said = [{"role": "user", "content": "a"}] if path == CHAT else "a"
        body = {"model": "tiny", text: said}
        hypothesis.assume(name not in body)
        response = ask(serving, path, {**body, name: 1})
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (400, "unknown_parameter"), error
        assert error["param"] == one_line(name)

    check()
