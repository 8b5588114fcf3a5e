"""A router with API keys; numbers as in test_bad_input. No model is needed to be refused."""

import json

import pytest

from test_http import exchange
from volley import Cluster, eventually


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("# ours\nsecret-1\n\nsecret-2\n")
    running = Cluster()
    router = running.part("router", "--api-keys-file", keys)
    eventually(lambda: running.request("GET", "/health")[0] == 200, "healthy", [router])
    yield running
    running.close()


def get(*headers, method="GET", path="/v1/models", body=b""):
    lines = [f"{method} {path} HTTP/1.1", "host: volley", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


WRONG = [
    [],
    ["authorization: Bearer wrong"],
    ["authorization: Bearer "],
    ["authorization: Basic secret-1"],
    ["authorization: secret-1"],
    ["authorization: Bearer secret-1", "authorization: Bearer secret-2"],
    ["x-api-key: wrong"],
]
RIGHT = [
    ["authorization: Bearer secret-1"],
    ["authorization: bearer   secret-2"],
    ["x-api-key: secret-1"],
    ["api-key: secret-2"],
]


@pytest.mark.parametrize("headers", WRONG, ids=str)
def test_without_a_key_nothing_is_told(keyed, headers):  # 26, 27
    for asked in (get(*headers), get(*headers, method="POST", path="/v1/chat/completions", body=b"no JSON")):
        status, answered, body = exchange(keyed, asked)
        assert status == 401 and answered["www-authenticate"].startswith("Bearer")
        error = json.loads(body)["error"]
        assert (error["type"], error["code"]) == ("error", "UNAUTHORIZED") and "secret" not in error["message"]


@pytest.mark.parametrize("headers", RIGHT, ids=str)
def test_a_key_opens_the_api(keyed, headers):
    assert exchange(keyed, get(*headers))[0] == 200


@pytest.mark.parametrize("path", ["/health", "/metrics", "/version"])
def test_operations_need_no_key(keyed, path):
    assert exchange(keyed, get(path=path))[0] == 200


def test_a_preflight_needs_no_key(keyed):  # 18
    assert exchange(keyed, get("origin: http://page.test", method="OPTIONS"))[0] in (200, 204)
