"""The table of edge cases: rows register themselves, by their number in the HTTP contract's list."""

from typing import Callable, NamedTuple

from edge_bodies import INVALID, REFUSED, SERVED


class Row(NamedTuple):
    numbers: tuple
    name: str
    check: Callable
    server: str  # the fixture that it is checked against

    def __str__(self):
        return f"{'+'.join(map(str, self.numbers))}-{self.name}".encode("ascii", "replace").decode()


TABLE = []


def row(*numbers, server="server"):
    """Makes a function of a server the check of these numbers."""

    def register(check):
        TABLE.append(Row(numbers, check.__name__, check, server))
        return check

    return register


def post(server, path, body, **headers):
    return server.request("POST", f"/inference/v1/{path}", body, {"content-type": "application/json", **headers})


def refused(answer, status, code=..., param=..., message=""):
    """An answer is the error envelope with these; ... = whatever it is."""
    got, headers, body = answer
    assert got == status, body
    assert headers["content-type"].startswith("application/json") and headers["x-request-id"]
    error = body["error"]
    assert {"type", "code", "param", "message"} <= error.keys()
    assert error["type"] == ("error" if error["code"] in ("UNAUTHORIZED", "NOT_FOUND") else INVALID)
    assert code is ... or error["code"] == code, error
    assert param is ... or error["param"] == param, error
    assert message in error["message"]


def served(answer):
    """An answer is a whole one; gives its first choice."""
    status, _, body = answer
    assert status == 200, body
    assert body["choices"][0]["finish_reason"] in ("stop", "length", "tool_calls", "function_call")
    return body["choices"][0]


def of_body(number, ask, check):
    path, body = ask
    TABLE.append(Row((number,), str(body)[-40:], lambda server: check(post(server, path, body)), "server"))


for number, ask, *expected in REFUSED:
    of_body(number, ask, lambda answer, expected=expected: refused(answer, *expected))
for number, ask in SERVED:
    of_body(number, ask, served)
