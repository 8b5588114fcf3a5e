"""What a key opens; what is said without one is in the table of edge cases."""

import pytest

from edge_sockets import bare, exchange

RIGHT = [
    ["authorization: Bearer secret-1"],
    ["authorization: bearer   secret-2"],
    ["x-api-key: secret-1"],
    ["api-key: secret-2"],
]


@pytest.mark.parametrize("headers", RIGHT, ids=str)
def test_a_key_opens_the_api(keyed, headers):
    assert exchange(keyed, bare("GET", "/v1/models", *headers))[0] == 200


@pytest.mark.parametrize("path", ["/health", "/metrics", "/version"])
def test_operations_need_no_key(keyed, path):
    assert exchange(keyed, bare("GET", path))[0] == 200
