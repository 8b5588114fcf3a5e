"""HTTP itself, where it is no edge case: operations, names of models, ids of requests."""

import pytest

from volley import MODEL


@pytest.mark.parametrize("path", ["/health", "/healthz", "/ready", "/metrics", "/version"])
def test_operations_answer_without_a_key(server, path):
    assert server.request("GET", path)[0] == 200


def test_a_model_is_found_with_its_slashes_escaped_or_not(server):
    for name in (MODEL, MODEL.replace("/", "%2F")):
        assert server.request("GET", f"/v1/models/{name}")[2]["id"] == MODEL


def test_a_request_id_is_given_or_repeated(server):
    _, headers, _ = server.request("GET", "/v1/models", headers={"x-request-id": "mine-1"})
    assert headers["x-request-id"] == headers["request-id"] == "mine-1"
    _, headers, _ = server.request("GET", "/v1/models")
    assert headers["x-request-id"] == headers["request-id"]
