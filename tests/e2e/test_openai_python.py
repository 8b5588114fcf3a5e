"""The newest Python SDK, synchronous and not, streaming and not, checking the type of every field it gets."""

import asyncio

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from volley import MODEL, spent

CHAT = dict(
    model=MODEL, messages=[{"role": "user", "content": "Write a haiku about the ocean."}], max_tokens=24, seed=7
)
TEXT = dict(model=MODEL, prompt="The capital of France is", max_tokens=12, temperature=0)


@pytest.fixture
def lenient(server):
    """The client as it is by default: it doesn't check types."""
    with OpenAI(base_url=server.base, api_key="key", max_retries=0) as client:
        yield client


def consistent(usage):
    return usage.total_tokens == usage.prompt_tokens + usage.completion_tokens and usage.prompt_tokens > 0


def test_a_chat_completion(client):
    answer = client.chat.completions.create(**CHAT)
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion" and answer.model == MODEL
    assert answer.choices[0].message.role == "assistant" and answer.choices[0].message.content
    assert consistent(answer.usage) and answer.usage.prompt_tokens == 38 and answer.usage.completion_tokens <= 24


def test_a_streamed_chat_says_what_the_whole_one_says(client):
    whole = client.chat.completions.create(**CHAT)
    first, *chunks = client.chat.completions.create(**CHAT, stream=True)
    assert first.choices[0].delta.role == "assistant" and first.choices[0].delta.content is None
    assert all(chunk.choices[0].delta.role is None and chunk.id == first.id for chunk in chunks)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert spent(chunks[-1].usage) == spent(whole.usage)


@pytest.mark.parametrize("include", [True, False])
def test_stream_options_choose_where_usage_stands(client, include):
    *chunks, last = client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": include})
    assert all(chunk.usage is None for chunk in chunks)
    assert (last.choices == [] and consistent(last.usage)) if include else last.usage is None


def test_a_completion(client):
    answer = client.completions.create(**TEXT)
    assert answer.id.startswith("cmpl-") and answer.object == "text_completion"
    assert answer.choices[0].text.startswith(" Paris.") and answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 12)


def test_a_streamed_completion_says_what_the_whole_one_says(client, lenient):
    whole = client.completions.create(**TEXT)
    # The SDK's own types say that a completion chunk always has a finish_reason: not so, even at OpenAI.
    chunks = list(lenient.completions.create(**TEXT, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length" and spent(chunks[-1].usage) == spent(whole.usage)


def test_the_asynchronous_client(server):
    async def both():
        async with AsyncOpenAI(base_url=server.base, api_key="key", _strict_response_validation=True) as client:
            whole = await client.chat.completions.create(**CHAT)
            text = ""
            async for chunk in await client.chat.completions.create(**CHAT, stream=True):
                text += chunk.choices[0].delta.content or ""
            return whole.choices[0].message.content, text

    whole, streamed = asyncio.run(both())
    assert whole == streamed


def test_the_streaming_helper_assembles_the_message(client):
    ask = CHAT | {"n": 2, "max_tokens": 200, "stop": "\n"}  # the helper takes finish_reason length for a failure
    with client.chat.completions.stream(**ask) as stream:
        answer = stream.get_final_completion()
    alone = client.chat.completions.create(**ask)
    assert [c.message.content for c in answer.choices] == [c.message.content for c in alone.choices]


def test_several_prompts_and_choices_come_in_order(client):
    prompts = ["The capital of France is", [504, 3575, 282, 4649, 314]]  # the same, as text and as tokens
    answers = [client.completions.create(**{**TEXT, "prompt": prompt}) for prompt in prompts]
    assert answers[0].choices == answers[1].choices
    batch = client.completions.create(**{**TEXT, "prompt": [prompts[0], "One, two, three,"]}, n=2)
    assert [choice.index for choice in batch.choices] == [0, 1, 2, 3]
    assert batch.choices[0].text == batch.choices[1].text == answers[0].choices[0].text
    assert batch.usage.completion_tokens == 48


def test_the_same_seed_gives_the_same_text_and_choices_differ(client):
    ask = dict(TEXT, temperature=1.0, seed=11, n=3, max_tokens=24)
    first, second = (client.completions.create(**ask) for _ in range(2))
    assert first.choices == second.choices
    assert len({choice.text for choice in first.choices}) == 3


def test_the_stop_word_is_in_the_output_unless_the_request_says_otherwise(client):
    ask = dict(TEXT, max_tokens=40, stop=["is"], extra_body={"ignore_eos": True})
    text = client.completions.create(**ask).choices[0]
    assert text.text.endswith("is") and text.text.count("is") == 1 and text.finish_reason == "stop"
    ask["extra_body"] = {"ignore_eos": True, "include_stop_str_in_output": False}
    assert client.completions.create(**ask).choices[0].text == text.text.removesuffix("is")


def test_chat_logprobs_describe_each_token(client):
    answer = client.chat.completions.create(**CHAT, logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert bytes(b for token in tokens for b in token.bytes).decode().startswith(answer.choices[0].message.content)
    assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in tokens)


def test_echo_puts_the_prompt_before_the_output(lenient):
    answer = lenient.completions.create(**TEXT, echo=True, logprobs=1).choices[0]
    assert answer.text.startswith("The capital of France is Paris.")
    assert "".join(answer.logprobs.tokens) == answer.text
    # The SDK's own types say that every token has a log-probability: the first has none, even at OpenAI.
    assert answer.logprobs.token_logprobs[0] is None and len(answer.logprobs.tokens) == 17


def test_max_tokens_is_lowered_to_the_window_unless_the_request_says_otherwise(client):
    ask = dict(model=MODEL, prompt=[504] * 8190, max_tokens=100)
    answer = client.completions.create(**ask, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 2 and answer.choices[0].finish_reason == "length"
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(**ask, extra_body={"context_length_exceeded_behavior": "error"})
    assert refused.value.code == "context_length_exceeded"


def test_models_are_listed_and_found_by_every_name(client):
    listed = client.models.list().data
    assert MODEL in [model.id for model in listed]
    for name in (MODEL, "accounts/fireworks/models/llama-v2-7b-chat"):
        assert client.models.retrieve(name).id == name and name in [model.id for model in listed]
    assert client.models.retrieve("smollm2-135m-instruct").id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("accounts/fireworks/models/none")


def test_the_answer_names_the_model_as_the_request_did(client):
    for name in ("accounts/fireworks/models/llama-v2-7b", MODEL):
        assert client.completions.create(**{**TEXT, "model": name, "max_tokens": 1}).model == name


def test_an_error_carries_its_type_code_and_parameter(client):
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(**{**TEXT, "model": "accounts/fireworks/models/none"})
    error = missing.value
    message = error.body["message"]
    assert message.startswith("Model not found, inaccessible, and/or not deployed") and "models/none" in message
    assert (error.param, error.code, error.type) == ("model", "NOT_FOUND", "error")
    assert error.request_id
