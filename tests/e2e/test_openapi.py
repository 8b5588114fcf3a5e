"""The served OpenAPI document is one, and requests that clients make are valid by it."""

import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from volley import MODEL


@pytest.fixture
def document(server):
    status, headers, document = server.request("GET", "/openapi.json")
    assert status == 200 and headers["content-type"] == "application/json"
    return document


def test_the_document_is_valid(document):
    validate(document, cls=OpenAPIV31SpecValidator)


def schema(document, path):
    body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return {**body, "components": document["components"]}


REQUESTS = [
    ("/chat/completions", {"messages": [{"role": "user", "content": "x"}], "temperature": None, "stop": "x"}),
    ("/chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}], "n": 2}),
    ("/completions", {"prompt": [[1, 2], [3]], "logprobs": 2, "stream": True, "stream_options": {}}),
    ("/responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}]}),
    ("/messages", {"max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}),
]


@pytest.mark.parametrize("path, request_body", REQUESTS)
def test_what_is_served_is_valid_and_what_is_not_is_neither(server, document, path, request_body):
    request_body = {"model": MODEL, **request_body}
    validator = jsonschema.Draft202012Validator(schema(document, path))
    assert list(validator.iter_errors(request_body)) == []
    assert server.request("POST", path, request_body)[0] == 200
    required = schema(document, path)["required"]
    broken = [
        request_body | {"bogus": 1},
        *({key: value for key, value in request_body.items() if key != name} for name in required),
        request_body | {"model": 5},
    ]
    for body in broken:
        assert list(validator.iter_errors(body))
        assert server.request("POST", path, body)[0] == 400, body
