"""Guided answers against a running server: are they all valid, and what does a mask cost?

    python tests/bench/guided.py URL [REQUESTS]

Prints how many of REQUESTS (1,000) documents that ended by themselves are valid, over a mix of schemas at temperature
1; then the speed of a guided stream relative to the same stream unguided, the median of pairs that run by turns.
"""

import json
import statistics
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema

sys.path.append(str(Path(__file__).resolve().parents[1] / "e2e"))
from schemas import SCHEMAS  # noqa: E402

URL = sys.argv[1].rstrip("/") + "/v1/completions"
REQUESTS = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
MODEL = "accounts/fireworks/models/smollm2-135m-instruct"
TOKENS, PAIRS = 300, 9


def post(**body):
    body = json.dumps({"model": MODEL, "temperature": 1} | body).encode()
    with urllib.request.urlopen(urllib.request.Request(URL, body, {"content-type": "application/json"})) as answer:
        return json.load(answer)["choices"][0]


def one(number):
    schema = SCHEMAS[number % len(SCHEMAS)]
    choice = post(prompt="Answer with JSON: ", max_tokens=250, seed=number,
                  response_format={"type": "json_object", "schema": schema})
    if choice["finish_reason"] != "stop":
        return "cut"
    try:
        jsonschema.validate(json.loads(choice["text"]), schema)
    except (ValueError, jsonschema.ValidationError) as error:
        print(f"seed {number}: {error}: {choice['text']}")
        return "invalid"
    return "valid"


def seconds(**form):
    start = time.perf_counter()
    assert post(prompt="Once upon a time", max_tokens=TOKENS, seed=1, **form)["finish_reason"] == "length"
    return time.perf_counter() - start


def slowdown(**form):
    seconds(**form)  # compiled, and warm
    pairs = [seconds(**form) / seconds(ignore_eos=True) - 1 for _ in range(PAIRS)]
    return f"{statistics.median(pairs):+.1%} (from {min(pairs):+.1%} to {max(pairs):+.1%})"


with ThreadPoolExecutor(16) as pool:
    said = list(pool.map(one, range(REQUESTS)))
print(f"{REQUESTS} documents: {said.count('valid')} valid, {said.count('invalid')} not, {said.count('cut')} cut by length")
text = {"type": "array", "items": {"type": "string", "minLength": 40}, "minItems": 100}
print("slowdown, long strings in a list:", slowdown(guided_json=text))
numbers = {"type": "array", "minItems": 500, "items": {"type": "object", "required": ["x", "y"],
           "properties": {"x": {"type": "integer"}, "y": {"enum": ["a", "b", None]}}}}
print("slowdown, a list of objects:", slowdown(guided_json=numbers))
