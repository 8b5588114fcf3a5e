"""Embeddings by a model that was loaded to embed, through the SDK, and tokens by their own endpoints."""

import base64
import math
import struct

import openai
import pytest
from openai import OpenAI

from volley import MODEL, Serve

TEXTS = ["The cat sat on the mat.", "A kitten rested on a rug.", "Stock markets fell sharply today."]


@pytest.fixture(scope="module")
def embedder():
    running = Serve("--pooling", "mean", "--max-batch-tokens", "64")
    # Not strict: it asks for base64 by itself, and would then refuse its own answer.
    with OpenAI(base_url=running.base, api_key="key", max_retries=0) as client:
        yield client
    running.close()


def numbers(answer):
    return [entry.embedding for entry in answer.data]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def test_near_texts_have_near_embeddings_of_length_one(embedder):
    answer = embedder.embeddings.create(model=MODEL, input=TEXTS)
    cat, kitten, stocks = numbers(answer)
    assert len(cat) == 576 and all(math.isclose(dot(v, v), 1, rel_tol=1e-5) for v in (cat, kitten, stocks))
    assert dot(cat, kitten) > dot(cat, stocks)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 15


def test_an_embedding_is_the_same_alone_and_in_company_as_text_and_as_tokens(embedder):
    together = numbers(embedder.embeddings.create(model=MODEL, input=TEXTS * 20))
    assert together[:3] * 20 == together
    for text, embedding in zip(TEXTS, together):
        assert numbers(embedder.embeddings.create(model=MODEL, input=text)) == [embedding]
        tokens = embedder.post("/tokenize", body={"prompt": text}, cast_to=dict)["tokens"]
        assert numbers(embedder.embeddings.create(model=MODEL, input=tokens)) == [embedding]


def test_a_long_text_is_embedded_in_many_steps(embedder):
    long = " ".join(TEXTS * 30)
    alone, beside = embedder.embeddings.create(model=MODEL, input=long), embedder.embeddings.create(
        model=MODEL, input=[TEXTS[0], long]
    )
    assert numbers(alone)[0] == numbers(beside)[1] and alone.usage.prompt_tokens > 500


def test_base64_and_floats_are_the_same_numbers_and_dimensions_cut_them(embedder):
    floats = embedder.embeddings.create(model=MODEL, input=TEXTS[0], encoding_format="float")
    raw = embedder.post(
        "/embeddings", body={"model": MODEL, "input": TEXTS[0], "encoding_format": "base64"}, cast_to=dict
    )["data"][0]["embedding"]
    assert list(struct.unpack("<576f", base64.b64decode(raw))) == pytest.approx(numbers(floats)[0], abs=1e-7)
    cut = numbers(embedder.embeddings.create(model=MODEL, input=TEXTS[0], dimensions=64))[0]
    assert len(cut) == 64 and math.isclose(dot(cut, cut), 1, rel_tol=1e-5)


def test_the_model_still_writes(embedder):
    assert embedder.completions.create(model=MODEL, prompt="One, two,", max_tokens=4).choices[0].text


def test_a_model_that_was_not_loaded_to_embed_says_so(client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=MODEL, input="x")
    assert refused.value.param == "model" and "--pooling" in str(refused.value)


def test_tokens_become_their_text_again(server):
    prompt = "<|im_start|>user\nGrüße 🎉<|im_end|>"
    answer = server.post("tokenize", {"model": MODEL, "prompt": prompt})
    assert answer["count"] == len(answer["tokens"]) and answer["max_model_len"] == 8192
    assert server.post("detokenize", {"model": MODEL, "tokens": answer["tokens"]}) == {"prompt": prompt}
    messages = [{"role": "user", "content": "Hi"}]
    chat = server.post("chat/completions", {"model": MODEL, "messages": messages, "max_tokens": 1})
    assert server.post("tokenize", {"messages": messages})["count"] == chat["usage"]["prompt_tokens"]


def test_the_first_sdks_name_the_model_in_the_path(server):
    engine = MODEL.replace("/", "%2F")
    answer = server.post(f"engines/{engine}/completions", {"prompt": "One, two,", "max_tokens": 2})
    assert answer["model"] == MODEL and answer["usage"]["completion_tokens"] == 2
