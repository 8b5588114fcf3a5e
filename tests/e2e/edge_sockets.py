"""Edge cases that show only on a socket: framing, methods, paths, limits of size and time."""

import gzip
import json
import socket
import time

from edge import row
from edge_bodies import text
from volley import MODEL

BODY = json.dumps(text()[1]).encode()
STREAM = json.dumps(text(stream=True)[1]).encode()
JSON = "content-type: application/json"


def post(*headers, body=BODY, path="/v1/completions", version="1.1", length=True):
    lines = [f"POST {path} HTTP/{version}", "host: volley", *headers]
    if length:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def bare(method, path, *headers):
    return "\r\n".join([f"{method} {path} HTTP/1.1", "host: volley", *headers, "", ""]).encode()


def connect(server):
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


def exchange(server, data):
    """Sends bytes, then reads until the server closes or has answered whole: (status, headers, body)."""
    with connect(server) as s:
        s.sendall(data)
        return answer(s.makefile("rb"), head=data.startswith(b"HEAD"))


def answer(stream, head=False):
    status = int(stream.readline().split()[1])
    headers = {}
    while line := stream.readline().strip():
        name, value = line.decode().split(":", 1)
        headers[name.lower()] = value.strip()
    if head or status in (100, 204):
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


def refused(server, data, status, code=..., message=""):
    got, headers, body = exchange(server, data)
    assert got == status, body
    error = json.loads(body)["error"]
    assert code is ... or error["code"] == code
    assert message in error["message"]
    assert got != 405 or headers["allow"]


@row(2)
def what_is_wrong_is_shown_and_not_more_of_the_body(server):
    _, _, body = exchange(server, post(JSON, body=b'{"model": ' + b"secret" * 200 + b"}"))
    message = json.loads(body)["error"]["message"]
    assert "line 1 column" in message and message.count("secret") * len("secret") <= 64


@row(9)
def a_body_is_refused_by_its_length_alone(server):
    too_large = post(JSON, "content-length: 20000000", length=False, body=b"")
    refused(server, too_large, 413, "payload_too_large", "Payload Too Large")


@row(9)
def a_chunked_body_over_the_limit_is_refused_before_its_end(server):
    with connect(server) as s:
        s.sendall(post(JSON, "transfer-encoding: chunked", length=False, body=b""))
        chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
        try:
            for _ in range(64):  # never ends by itself
                s.sendall(chunk)
        except OSError:
            pass  # it stopped listening
        status, _, body = answer(s.makefile("rb"))
        assert status == 413 and b"Payload Too Large" in body


@row(10, 11, server="hasty")
def a_client_that_stalls_is_told_and_cut_off(server):
    """All at once, because each takes its time: half a body, a body by drops, half a header."""
    started = time.monotonic()
    with connect(server) as half, connect(server) as drops, connect(server) as header:
        for s in (half, drops):
            s.sendall(post(JSON, "content-length: 1000", length=False, body=b"{"))
        header.sendall(b"POST /v1/comp")
        assert header.recv(1) == b"" and time.monotonic() - started < 20  # no answer to what was no request
        drops.settimeout(1)
        while True:  # a byte a second: never silent for long, and never done
            drops.sendall(b" ")
            try:
                first = drops.recv(1, socket.MSG_PEEK)
                break
            except TimeoutError:
                assert time.monotonic() - started < 60
        assert first == b"H"
        for s in (half, drops):
            stream = s.makefile("rb")
            status, headers, body = answer(stream)
            assert status == 408 and headers["connection"] == "close"
            assert json.loads(body)["error"]["code"] == "request_timeout"
            assert stream.read() == b""


@row(12)
def only_json_is_taken_as_json(server):
    for kind in ("multipart/form-data; boundary=x", "application/xml", "application/json; charset=latin1"):
        refused(server, post(f"content-type: {kind}"), 415, "unsupported_media_type")


@row(12)
def json_is_taken_without_its_content_type(server):
    for kind in ((), ("content-type: application/x-www-form-urlencoded",)):  # curl's default
        assert exchange(server, post(*kind))[0] == 200


@row(13)
def a_compressed_body_is_read_and_a_bomb_is_not(server):
    assert exchange(server, post(JSON, "content-encoding: gzip", body=gzip.compress(BODY)))[0] == 200
    bomb = gzip.compress(b" " * (64 << 20))
    refused(server, post(JSON, "content-encoding: gzip", body=bomb), 413, "payload_too_large")
    refused(server, post(JSON, "content-encoding: br"), 415)


@row(14)
def a_client_that_asks_first_is_told_to_go_on_only_if_it_may(server):
    with connect(server) as s:
        stream = s.makefile("rb")
        s.sendall(post(JSON, "expect: 100-continue", f"content-length: {len(BODY)}", length=False, body=b""))
        assert answer(stream)[0] == 100
        s.sendall(BODY)
        assert answer(stream)[0] == 200
    too_large = post(JSON, "expect: 100-continue", "content-length: 20000000", length=False, body=b"")
    refused(server, too_large, 413)


@row(15)
def both_lengths_at_once_are_refused_and_the_connection_closed(server):
    with connect(server) as s:
        s.sendall(post(JSON, "transfer-encoding: chunked"))
        stream = s.makefile("rb")
        assert answer(stream)[0] == 400
        assert stream.read() == b""


@row(16)
def other_methods_are_not_allowed(server):
    for method in ("GET", "TRACE", "CONNECT"):
        refused(server, bare(method, "/v1/completions"), 405, "method_not_allowed")


@row(17)
def head_has_the_headers_of_get_and_no_body(server):
    status, headers, body = exchange(server, bare("HEAD", "/v1/models"))
    assert (status, body) == (200, b"") and headers["content-type"].startswith("application/json")


@row(18)
def a_browser_may_ask_from_anywhere(server):
    asked = ["access-control-request-method: POST", "access-control-request-headers: authorization, x-a"]
    preflight = bare("OPTIONS", "/v1/chat/completions", "origin: http://page.test", *asked)
    status, headers, _ = exchange(server, preflight)
    assert status in (200, 204) and headers["access-control-allow-origin"] in ("*", "http://page.test")
    assert {"authorization", "x-a"} <= {h.strip() for h in headers["access-control-allow-headers"].lower().split(",")}


@row(18, server="keyed")
def a_preflight_needs_no_key(server):
    assert exchange(server, bare("OPTIONS", "/v1/models", "origin: http://page.test"))[0] in (200, 204)


@row(19)
def every_prefix_is_served(server):
    for prefix in ("/inference/v1", "/v1", "", "/inference/v1/v1", "/v1/v1"):
        for tail in ("/completions", "/completions/", "//completions"):
            assert exchange(server, post(JSON, path=prefix + tail))[0] == 200, prefix + tail


@row(20)
def an_unknown_path_is_named(server):
    refused(server, bare("GET", "/v1/nothing"), 404, "NOT_FOUND", "Path not found: /v1/nothing")


@row(21)
def paths_that_climb_are_malformed(server):
    for path in ("/v1/%2e%2e/models", "/v1/models/%00"):
        refused(server, bare("GET", path), 400)


@row(22)
def too_many_or_too_long_headers_are_refused(server):
    for header in ("x: " + "y" * 40_000, "\r\n".join(f"x-{i}: y" for i in range(150))):
        assert exchange(server, post(header))[0] == 431


@row(23)
def a_stream_to_http_1_0_ends_with_the_connection(server):
    status, headers, body = exchange(server, post(JSON, body=STREAM, version="1.0"))
    assert status == 200 and "transfer-encoding" not in headers
    assert body.endswith(b"data: [DONE]\n\n")


@row(24)
def the_connection_is_kept_after_an_error(server):
    with connect(server) as s:
        stream = s.makefile("rb")
        s.sendall(post(JSON, body=b"{") + post(JSON))  # pipelined
        assert answer(stream)[0] == 400
        assert answer(stream)[0] == 200
        s.sendall(post(JSON))
        assert answer(stream)[0] == 200


@row(25)
def a_stream_is_events_whatever_the_client_accepts(server):  # and the framing of the contract's section 5
    status, headers, body = exchange(server, post(JSON, "accept: application/json", body=STREAM))
    assert status == 200 and headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-cache" and headers["x-accel-buffering"] == "no"
    *events, done, rest = body.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    assert all(json.loads(event.removeprefix(b"data: "))["model"] == MODEL for event in events)


WRONG = [
    [],
    ["authorization: Bearer wrong"],
    ["authorization: Bearer "],
    ["authorization: Basic secret-1"],
    ["authorization: secret-1"],
    ["authorization: Bearer secret-1", "authorization: Bearer secret-2"],
    ["x-api-key: wrong"],
]


@row(26, 27, server="keyed")
def without_a_key_nothing_is_told(server):
    for headers in WRONG:
        for asked in (bare("GET", "/v1/models", *headers), post(*headers, path="/v1/chat/completions", body=b"no JSON")):
            status, answered, body = exchange(server, asked)
            assert status == 401 and answered["www-authenticate"].startswith("Bearer")
            error = json.loads(body)["error"]
            assert (error["type"], error["code"]) == ("error", "UNAUTHORIZED") and "secret" not in error["message"]


@row(26, server="keyed")
def the_key_is_asked_for_before_the_body(server):
    asking = post(JSON, "expect: 100-continue", "content-length: 20000000", length=False, body=b"")
    assert exchange(server, asking)[0] == 401


@row(98)
def models_are_not_deleted(server):
    refused(server, bare("DELETE", "/v1/models/x"), 405, "method_not_allowed")
