"""The newest Python SDK's Responses API, its types checked; kept responses from every router."""

import openai
import pytest

from volley import MODEL, Server, eventually, free_port

ASK = dict(model=MODEL, input="Name three colours.", max_output_tokens=24, temperature=0)


def test_a_response_says_what_a_chat_says(client):
    response = client.responses.create(**ASK, metadata={"kind": "test"})
    chat = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": ASK["input"]}], max_tokens=24, temperature=0
    )
    assert response.output_text == chat.choices[0].message.content
    assert response.id.startswith("resp_") and response.metadata == {"kind": "test"}
    assert response.usage.total_tokens == chat.usage.total_tokens
    ended = {"length": "incomplete", "stop": "completed"}[chat.choices[0].finish_reason]
    assert response.status == ended


def test_the_events_come_in_order_and_end_with_the_whole(client):
    events = list(client.responses.create(**ASK, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    types = [event.type for event in events]
    assert types[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"
    ]  # fmt: skip
    assert set(types[4:-4]) == {"response.output_text.delta"}
    assert types[-4:-1] == ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
    assert "".join(event.delta for event in events[4:-4]) == events[-1].response.output_text
    assert types[-1] == f"response.{events[-1].response.status}"


def test_the_streaming_helper_assembles_the_response(client):
    with client.responses.stream(**ASK | {"max_output_tokens": 200}) as stream:
        said = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert said == final.output_text and final.status == "completed"


def test_a_conversation_goes_on_from_a_kept_response(client):
    first = client.responses.create(**ASK)
    second = client.responses.create(**ASK | {"input": "Which is the darkest?"}, previous_response_id=first.id)
    said = [
        {"role": "user", "content": ASK["input"]},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "Which is the darkest?"},
    ]
    written_out = client.responses.create(**ASK | {"input": said})
    assert second.output_text == written_out.output_text and second.usage.total_tokens == written_out.usage.total_tokens
    # What a response has in its output may be sent back as it is.
    again = [said[0], *(item.model_dump() for item in first.output), said[2]]
    assert client.responses.create(**ASK | {"input": again}).output_text == second.output_text


def test_a_call_goes_back_as_the_sdk_writes_it_out(client):
    tool = {"type": "function", "name": "paint", "strict": True, "parameters": {
        "type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}}  # fmt: skip
    ask = ASK | {"max_output_tokens": 60}
    called = client.responses.create(**ask, tools=[tool], tool_choice="required")
    [call] = called.output
    assert call.type == "function_call" and call.name == "paint"
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    again = [{"role": "user", "content": ASK["input"]}, call.model_dump(), result]
    assert client.responses.create(**ask | {"input": again}).output_text


def test_a_response_is_kept_until_it_is_deleted(client):
    response = client.responses.create(**ASK)
    assert client.responses.retrieve(response.id) == response
    client.responses.delete(response.id)
    for gone in (client.responses.retrieve, client.responses.delete):
        with pytest.raises(openai.NotFoundError) as error:
            gone(response.id)
        assert error.value.code == "not_found"
    with pytest.raises(openai.NotFoundError):
        client.responses.create(**ASK, previous_response_id=response.id)


def test_a_running_response_can_be_cancelled(client):
    stream = client.responses.create(**ASK | {"max_output_tokens": 8000, "input": "Count to ten thousand."}, stream=True)
    created = next(iter(stream)).response
    assert client.responses.cancel(created.id).status == "cancelled"
    last = list(stream)[-1]
    assert last.response.status == "cancelled" and client.responses.retrieve(created.id) == last.response
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(created.id)


def test_a_kept_response_is_found_from_every_router_until_its_own_is_gone(cluster):
    cluster.worker(), cluster.scheduler()
    first, one = cluster.router(), Server(cluster.port)
    cluster.port = free_port()
    two = Server(cluster.port)
    cluster.router()
    for router in (one, two):
        eventually(router.ready, "ready", cluster.parts, 120)
    with openai.OpenAI(base_url=one.base, api_key="k") as a, openai.OpenAI(base_url=two.base, api_key="k") as b:
        response = a.responses.create(**ASK)
        assert b.responses.retrieve(response.id) == response
        further = b.responses.create(**ASK, previous_response_id=response.id)
        assert further.output_text and a.responses.retrieve(further.id) == further
        streamed = list(b.responses.create(**ASK, previous_response_id=response.id, stream=True))
        assert streamed[-1].response.output_text == further.output_text
        cluster.gone(first)
        with pytest.raises(openai.NotFoundError):
            b.with_options(max_retries=5).responses.retrieve(response.id)
