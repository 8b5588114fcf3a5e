"""Other people's clients, as their users write them: Fireworks' own, LangChain's two, LiteLLM."""

import asyncio
import os
from typing import Literal

import pytest
from pydantic import BaseModel

from volley import MODEL

os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false"}  # nothing leaves the machine

QUESTION = "Name three colours."
CHAT = dict(model=MODEL, messages=[{"role": "user", "content": QUESTION}], max_tokens=24, temperature=0)
TEXT = dict(model=MODEL, prompt="The capital of France is", max_tokens=12, temperature=0)


@pytest.fixture
def said(client):
    """What the chat says, and its usage, by the newest OpenAI client."""
    answer = client.chat.completions.create(**CHAT)
    return answer.choices[0].message.content, answer.usage


class Weather(BaseModel):
    """The weather."""

    sky: Literal["clear", "cloudy"]
    warm: bool


# --- Fireworks ----------------------------------------------------------------------------------------------


@pytest.fixture(params=["/inference", "/inference/v1"])  # it appends /v1, and people give the documented address
def fireworks(request, server):
    from fireworks import Fireworks

    with Fireworks(base_url=server.url + request.param, api_key="key", max_retries=0) as client:
        yield client


def test_fireworks_own_client_chats(fireworks, said):
    answer = fireworks.chat.completions.create(**CHAT)
    assert answer.choices[0].message.content == said[0] and answer.usage.total_tokens == said[1].total_tokens
    chunks = list(fireworks.chat.completions.create(**CHAT, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == said[0]
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].usage.total_tokens == said[1].total_tokens


def test_fireworks_own_client_completes_and_has_its_own_parameters(fireworks):
    answer = fireworks.completions.create(**TEXT, top_k=1, min_p=0.1, perf_metrics_in_response=True, raw_output=True)
    assert answer.choices[0].text.startswith(" Paris.") and answer.choices[0].raw_output.completion
    assert answer.perf_metrics["prompt-tokens"]
    assert "".join(c.choices[0].text for c in fireworks.completions.create(**TEXT, stream=True)) == answer.choices[0].text


def test_fireworks_own_client_knows_its_errors(fireworks):
    from fireworks import BadRequestError, NotFoundError

    with pytest.raises(NotFoundError, match="not found, inaccessible, and/or not deployed"):
        fireworks.chat.completions.create(**CHAT | {"model": "accounts/fireworks/models/none"})
    with pytest.raises(BadRequestError, match="temperature must be between 0 and 2"):
        fireworks.chat.completions.create(**CHAT | {"temperature": 3})


def test_fireworks_asynchronous_client(server, said):
    from fireworks import AsyncFireworks

    async def ask():
        async with AsyncFireworks(base_url=server.url + "/inference", api_key="key") as client:
            whole = await client.chat.completions.create(**CHAT)
            text = ""
            async for chunk in await client.chat.completions.create(**CHAT, stream=True):
                text += chunk.choices[0].delta.content or ""
            return whole.choices[0].message.content, text

    assert asyncio.run(ask()) == (said[0], said[0])


# --- LangChain ----------------------------------------------------------------------------------------------


@pytest.fixture(params=["openai", "fireworks"])
def chain(request, server):
    common = dict(model=MODEL, api_key="key", temperature=0, max_retries=0)
    if request.param == "openai":
        from langchain_openai import ChatOpenAI

        return lambda **more: ChatOpenAI(base_url=server.base, **common, **{"max_tokens": 24, **more})
    from langchain_fireworks import ChatFireworks

    return lambda **more: ChatFireworks(base_url=server.base, **common, **{"max_tokens": 24, **more})


def test_langchain_invokes_and_streams_and_counts_usage_once(chain, said):
    answer = chain().invoke(QUESTION)
    expected = {"input_tokens": said[1].prompt_tokens, "output_tokens": said[1].completion_tokens}
    assert answer.content == said[0] and expected.items() <= answer.usage_metadata.items()
    for usage in ({}, {"stream_usage": True}):
        whole = None
        for chunk in chain(**usage).stream(QUESTION):
            whole = chunk if whole is None else whole + chunk
        assert whole.content == said[0]
        assert expected.items() <= whole.usage_metadata.items()
        assert whole.response_metadata["finish_reason"] in ("stop", "length")


def test_langchain_streams_asynchronously_and_in_batches(chain, said):
    async def stream():
        return "".join([chunk.content async for chunk in chain().astream(QUESTION)])

    assert asyncio.run(stream()) == said[0]
    assert [answer.content for answer in chain().batch([QUESTION] * 3)] == [said[0]] * 3


def test_langchain_forces_a_tool(chain):
    bound = chain(max_tokens=200).bind_tools([Weather], tool_choice="Weather")
    [call] = bound.invoke("How is the weather?").tool_calls
    assert call["name"] == "Weather" and Weather(**call["args"]) and call["id"]
    whole = None
    for chunk in bound.stream("How is the weather?"):
        whole = chunk if whole is None else whole + chunk
    assert [(c["name"], c["args"]) for c in whole.tool_calls] == [(call["name"], call["args"])]


@pytest.mark.parametrize("method", ["function_calling", "json_schema", "json_mode"])
def test_langchain_gives_structured_output(chain, method):
    model = chain(max_tokens=200)
    if method == "json_mode":
        # Fireworks' form of it, which takes a schema: JSON of any form need not end in time.
        form = {"type": "json_object", "schema": Weather.model_json_schema()}
        Weather.model_validate_json(model.bind(response_format=form).invoke("How is the weather?").content)
        return
    assert isinstance(model.with_structured_output(Weather, method=method).invoke("How is the weather?"), Weather)


# --- LiteLLM ------------------------------------------------------------------------------------------------


@pytest.fixture(params=["openai", "fireworks_ai"])
def litellm(request, server):
    import litellm

    at = {"model": f"{request.param}/{MODEL}", "api_base": server.base, "api_key": "key", "num_retries": 0}
    return litellm, at


def test_litellm_chats(litellm, said):
    module, at = litellm
    answer = module.completion(**CHAT | at)
    assert answer.choices[0].message.content == said[0] and answer.usage.total_tokens == said[1].total_tokens
    streamed = module.completion(**CHAT | at, stream=True, stream_options={"include_usage": True})
    chunks = list(streamed)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == said[0]
    assert [u.total_tokens for c in chunks if (u := getattr(c, "usage", None))] == [said[1].total_tokens]


def test_litellm_calls_a_tool(litellm):
    module, at = litellm
    tool = {"type": "function", "function": {"name": "weather", "parameters": Weather.model_json_schema()}}
    answer = module.completion(
        **CHAT | at | {"max_tokens": 200}, tools=[tool], tool_choice="required",
        allowed_openai_params=["tools", "tool_choice"],  # its list of Fireworks' models ends here
    )
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "weather" and Weather.model_validate_json(call.function.arguments)


def test_litellm_knows_our_errors(litellm):
    module, at = litellm
    long = [{"role": "user", "content": "word " * 9000}]
    with pytest.raises(module.ContextWindowExceededError):
        module.completion(**CHAT | at | {"messages": long})
    with pytest.raises(module.NotFoundError):
        module.completion(**CHAT | at | {"model": at["model"] + "-none"})
