"""HTTP itself, byte by byte over a socket: framing, methods, paths, limits. Numbers as in test_bad_input."""

import json
import socket

import pytest

from test_bad_input import text
from volley import MODEL

BODY = json.dumps(text()[1]).encode()
STREAM = json.dumps(text(stream=True)[1]).encode()


def post(*headers, body=BODY, path="/v1/completions", version="1.1", length=True):
    lines = [f"POST {path} HTTP/{version}", "host: volley", *headers]
    if length:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def exchange(server, data):
    """Sends bytes, then reads until the server closes or has answered whole: (status, headers, body)."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as s:
        s.sendall(data)
        return answer(s.makefile("rb"), head=data.startswith(b"HEAD"))


def answer(stream, head=False):
    status = int(stream.readline().split()[1])
    headers = {}
    while line := stream.readline().strip():
        name, value = line.decode().split(":", 1)
        headers[name.lower()] = value.strip()
    if head or status == 204:
        return status, headers, b""
    if "content-length" in headers:
        return status, headers, stream.read(int(headers["content-length"]))
    if headers.get("transfer-encoding") == "chunked":
        content = b""
        while size := int(stream.readline(), 16):
            content += stream.read(size)
            stream.readline()
        stream.readline()
        return status, headers, content
    return status, headers, stream.read()


JSON = "content-type: application/json"
REFUSED = [
    (
        9,
        post(JSON, "content-length: 20000000", length=False, body=b""),
        413,
        "payload_too_large",
        "Payload Too Large",
    ),
    (12, post("content-type: multipart/form-data; boundary=x"), 415, "unsupported_media_type", ""),
    (12, post("content-type: application/xml"), 415, "unsupported_media_type", ""),
    (12, post("content-type: application/json; charset=latin1"), 415, "unsupported_media_type", ""),
    (13, post(JSON, "content-encoding: br"), 415, ..., ""),
    (16, b"GET /v1/completions HTTP/1.1\r\nhost: volley\r\n\r\n", 405, "method_not_allowed", ""),
    (16, b"TRACE /v1/completions HTTP/1.1\r\nhost: volley\r\n\r\n", 405, "method_not_allowed", ""),
    (20, b"GET /v1/nothing HTTP/1.1\r\nhost: volley\r\n\r\n", 404, "NOT_FOUND", "Path not found: /v1/nothing"),
    (21, b"GET /v1/%2e%2e/models HTTP/1.1\r\nhost: volley\r\n\r\n", 400, ..., ""),
    (98, b"DELETE /v1/models/x HTTP/1.1\r\nhost: volley\r\n\r\n", 405, "method_not_allowed", ""),
]


@pytest.mark.parametrize("number, data, status, code, message", REFUSED, ids=[f"{c[0]}-{c[1][:24]}" for c in REFUSED])
def test_bad_http_is_refused_with_the_envelope(server, number, data, status, code, message):
    got, headers, body = exchange(server, data)
    assert got == status, body
    error = json.loads(body)["error"]
    assert code is ... or error["code"] == code
    assert message in error["message"]
    assert got != 405 or headers["allow"]


def test_both_lengths_at_once_are_refused_and_the_connection_closed(server):  # 15
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as s:
        s.sendall(post(JSON, "transfer-encoding: chunked"))
        stream = s.makefile("rb")
        assert answer(stream)[0] == 400
        assert stream.read() == b""


def test_a_chunked_body_over_the_limit_is_refused_before_its_end(server):  # 9
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as s:
        s.sendall(post(JSON, "transfer-encoding: chunked", length=False, body=b""))
        chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
        try:
            for _ in range(64):  # never ends by itself
                s.sendall(chunk)
        except OSError:
            pass  # it stopped listening
        status, _, body = answer(s.makefile("rb"))
        assert status == 413 and b"Payload Too Large" in body


@pytest.mark.parametrize("header", ["x: " + "y" * 40_000, "\r\n".join(f"x-{i}: y" for i in range(150))])
def test_too_many_or_too_long_headers_are_refused(server, header):  # 22
    assert exchange(server, post(header))[0] == 431


def test_head_has_the_headers_of_get_and_no_body(server):  # 17
    status, headers, body = exchange(server, b"HEAD /v1/models HTTP/1.1\r\nhost: volley\r\n\r\n")
    assert (status, body) == (200, b"") and headers["content-type"].startswith("application/json")


def test_a_browser_may_ask_from_anywhere(server):  # 18
    asked = "origin: http://page.test\r\naccess-control-request-method: POST\r\naccess-control-request-headers: authorization, x-a"
    request = f"OPTIONS /v1/chat/completions HTTP/1.1\r\nhost: volley\r\n{asked}\r\n\r\n"
    status, headers, _ = exchange(server, request.encode())
    assert status in (200, 204) and headers["access-control-allow-origin"] in ("*", "http://page.test")
    assert {"authorization", "x-a"} <= {h.strip() for h in headers["access-control-allow-headers"].lower().split(",")}


@pytest.mark.parametrize("prefix", ["/inference/v1", "/v1", "", "/inference/v1/v1", "/v1/v1"])
@pytest.mark.parametrize("tail", ["/completions", "/completions/", "//completions"])
def test_every_prefix_is_served(server, prefix, tail):  # 19
    assert exchange(server, post(JSON, path=prefix + tail))[0] == 200


@pytest.mark.parametrize("kind", [(), ("content-type: application/x-www-form-urlencoded",)])
def test_json_is_taken_without_its_content_type(server, kind):  # 12: curl's default
    assert exchange(server, post(*kind))[0] == 200


def test_a_stream_to_http_1_0_ends_with_the_connection(server):  # 23
    status, headers, body = exchange(server, post(JSON, body=STREAM, version="1.0"))
    assert status == 200 and "transfer-encoding" not in headers
    assert body.endswith(b"data: [DONE]\n\n")


def test_the_connection_is_kept_after_an_error(server):  # 24
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as s:
        stream = s.makefile("rb")
        s.sendall(post(JSON, body=b"{"))
        assert answer(stream)[0] == 400
        s.sendall(post(JSON))
        assert answer(stream)[0] == 200


def test_a_stream_is_events_whatever_the_client_accepts(server):  # 25, and the framing of section 5
    status, headers, body = exchange(server, post(JSON, "accept: application/json", body=STREAM))
    assert status == 200 and headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-cache" and headers["x-accel-buffering"] == "no"
    *events, done, rest = body.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    assert all(json.loads(event.removeprefix(b"data: "))["model"] == MODEL for event in events)


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
