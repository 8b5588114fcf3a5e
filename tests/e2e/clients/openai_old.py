"""The Python SDK before its first version, synchronous and not, streaming and not. Run by test_old_clients.py."""

import asyncio
import os

import openai

model = os.environ["VOLLEY_MODEL"]
openai.api_base, openai.api_key = os.environ["VOLLEY_BASE"], "key"
CHAT = dict(model=model, messages=[{"role": "user", "content": "Name three colours."}], max_tokens=24, temperature=0)
TEXT = dict(model=model, prompt="The capital of France is", max_tokens=12, temperature=0)


def content(chunks):
    return "".join(chunk.choices[0].delta.get("content") or "" for chunk in chunks)


whole = openai.ChatCompletion.create(**CHAT)
said = whole.choices[0].message.content
assert said and whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
chunks = list(openai.ChatCompletion.create(**CHAT, stream=True))
assert content(chunks) == said and chunks[0].choices[0].delta.role == "assistant"
assert chunks[-1].usage.total_tokens == whole.usage.total_tokens and not any(chunk.usage for chunk in chunks[:-1])


async def later():
    answer = await openai.ChatCompletion.acreate(**CHAT)
    assert answer.choices[0].message.content == said
    assert content([chunk async for chunk in await openai.ChatCompletion.acreate(**CHAT, stream=True)]) == said
    large = dict(TEXT, echo=True, logprobs=5, prompt="word " * 2000)  # lines stay short enough for its reader
    text = "".join([chunk.choices[0].text async for chunk in await openai.Completion.acreate(**large, stream=True)])
    assert text.startswith("word word")


asyncio.run(later())

text = openai.Completion.create(**TEXT).choices[0].text
assert text.startswith(" Paris.")
assert "".join(chunk.choices[0].text for chunk in openai.Completion.create(**TEXT, stream=True)) == text
# The engine stands in the path then, and the body names no model.
by_engine = {key: value for key, value in TEXT.items() if key != "model"}
assert openai.Completion.create(engine=model.rsplit("/", 1)[-1], **by_engine).choices[0].text == text

assert model in [listed.id for listed in openai.Model.list().data]
assert openai.Model.retrieve(model).id == model

function = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}}
called = openai.ChatCompletion.create(**{**CHAT, "max_tokens": 60}, functions=[function], function_call={"name": "f"})
assert called.choices[0].finish_reason == "function_call"
assert called.choices[0].message.function_call.name == "f"

for broken, error, param in [
    ({"model": "none"}, openai.error.InvalidRequestError, "model"),
    ({"temperature": 3}, openai.error.InvalidRequestError, "temperature"),
]:
    try:
        openai.Completion.create(**{**TEXT, **broken})
    except error as caught:
        assert caught.param == param and str(caught).startswith("Request "), caught
    else:
        raise AssertionError(broken)
