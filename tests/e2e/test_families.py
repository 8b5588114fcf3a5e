"""A model of each family is served from its Hugging Face directory and, where there is one, from its GGUF file; it says what
transformers computes with it."""

import array
import json
import math
from pathlib import Path

import pytest

from volley import ROOT, Serve

FIXTURES = ROOT / "worker/tests/fixtures"
FAMILIES = [
    "tiny-mistral",
    "tiny-qwen3",
    "tiny-phi3",
    "tiny-phi4-mini",
    "tiny-gemma2",
    "tiny-gemma3",
    "tiny-gemma3-vision",
    "tiny-olmo2",
    "tiny-gpt-bigcode",
    "tiny-starcoder2",
]


def expected(folder):
    """The tokens of a text, and the likeliest next one with its log-probability."""
    raw = (folder / "expected.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])

    def numbers(name):
        first, end = header[name]["data_offsets"]
        return array.array("f", raw[start + first : start + end])

    tokens = [int(token) for token in numbers("tokens")]
    logits = numbers("logits")[-header["logits"]["shape"][1] :]
    best = max(logits)
    return tokens, logits.index(best), -math.log(sum(math.exp(logit - best) for logit in logits))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_served_from_either_format_as_transformers_computes_it(family):
    tokens, token, logprob = expected(FIXTURES / family)
    said = []
    for path in filter(Path.exists, (FIXTURES / family, FIXTURES / family / "model.gguf")):
        server = Serve("--model", path)
        try:
            [model] = server.request("GET", "/v1/models")[2]["data"]
            ask = {"model": model["id"], "prompt": tokens, "temperature": 0, "logprobs": 1, "return_token_ids": True}
            [choice] = server.post("completions", ask | {"max_tokens": 1})["choices"]
            assert choice["token_ids"] == [token]
            assert abs(choice["logprobs"]["token_logprobs"][0] - logprob) < 0.01
            said.append(server.post("completions", ask | {"max_tokens": 24})["choices"][0]["text"])
            if family == "tiny-qwen3":
                messages = [{"role": "user", "content": "the cat"}]
                chat = server.post("chat/completions", {"model": model["id"], "messages": messages, "max_tokens": 8})
                assert chat["choices"][0]["message"]["role"] == "assistant"
        finally:
            server.close()
    assert said[0] == said[-1]
