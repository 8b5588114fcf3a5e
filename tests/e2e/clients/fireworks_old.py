"""Fireworks' client before its first version, which checks types. Run by test_old_clients.py."""

import asyncio
import os

import fireworks.client
from fireworks.client import AsyncFireworks, Fireworks
from fireworks.client.error import InvalidRequestError

model = os.environ["VOLLEY_MODEL"]
at = dict(api_key="key", base_url=os.environ["VOLLEY_BASE"])
CHAT = dict(model=model, messages=[{"role": "user", "content": "Name three colours."}], max_tokens=24, temperature=0)
TEXT = dict(model=model, prompt="The capital of France is", max_tokens=12, temperature=0)
client = Fireworks(**at)


def content(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


whole = client.chat.completions.create(**CHAT)
said = whole.choices[0].message.content
assert said and whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
chunks = list(client.chat.completions.create(**CHAT, stream=True))
assert content(chunks) == said and chunks[-1].usage.total_tokens == whole.usage.total_tokens
logprobs = client.chat.completions.create(**CHAT, logprobs=True, top_logprobs=2).choices[0].logprobs
assert len(logprobs.content) == whole.usage.completion_tokens

text = client.completions.create(**TEXT).choices[0].text
assert text.startswith(" Paris.")
assert "".join(chunk.choices[0].text for chunk in client.completions.create(**TEXT, stream=True)) == text

fireworks.client.api_key, fireworks.client.base_url = at["api_key"], at["base_url"]
assert fireworks.client.Completion.create(**TEXT).choices[0].text == text


async def later():
    later = AsyncFireworks(**at)
    answer = await later.chat.completions.acreate(**CHAT, stream=False)  # it would stream by itself
    assert answer.choices[0].message.content == said
    assert content([chunk async for chunk in later.chat.completions.acreate(**CHAT, stream=True)]) == said


asyncio.run(later())

for broken in ({"model": "none"}, {"temperature": 3}):
    try:
        client.completions.create(**{**TEXT, **broken})
    except InvalidRequestError:
        pass
    else:
        raise AssertionError(broken)
