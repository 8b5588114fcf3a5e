"""Anthropic's own SDK against /messages: whole, streamed, counted, refused."""

import anthropic
import pytest

from volley import MODEL

ASK = dict(model=MODEL, max_tokens=24, messages=[{"role": "user", "content": "Name three colours."}], extra_body={"temperature": 0})


@pytest.fixture
def claude(server):
    base = server.url + "/inference"  # the SDK appends /v1
    with anthropic.Anthropic(
        base_url=base, api_key="key", max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


def test_a_message(claude, client):
    message = claude.messages.create(**ASK)
    chat = client.chat.completions.create(**ASK)
    assert message.id.startswith("msg_") and message.role == "assistant" and message.model == MODEL
    assert [block.text for block in message.content] == [chat.choices[0].message.content]
    usage = message.usage
    assert (usage.input_tokens + usage.cache_read_input_tokens, usage.output_tokens) == (
        chat.usage.prompt_tokens,
        chat.usage.completion_tokens,
    )
    assert message.stop_reason == {"length": "max_tokens", "stop": "end_turn"}[chat.choices[0].finish_reason]


def test_a_streamed_message_says_what_the_whole_one_says(claude):
    claude.messages.create(**ASK)  # from now on it finds as much of the prompt in the cache each time
    whole = claude.messages.create(**ASK)
    with claude.messages.stream(**ASK) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert (final.stop_reason, final.usage) == (whole.stop_reason, whole.usage)


def test_the_events_come_in_order(claude):
    events = [event.type for event in claude.messages.create(**ASK, stream=True)]
    assert events[:2] == ["message_start", "content_block_start"]
    assert set(events[2:-3]) == {"content_block_delta"}
    assert events[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_a_stop_sequence_ends_the_message_and_is_not_part_of_it(claude):
    text = claude.messages.create(**ASK).content[0].text
    stop = text.split()[3]
    message = claude.messages.create(**ASK, stop_sequences=["never said", stop])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert message.content[0].text == text[: text.index(stop)]


def test_system_and_blocks_are_the_conversation(claude):
    blocks = [{"type": "text", "text": "Name three ", "cache_control": {"type": "ephemeral"}}]
    blocks.append({"type": "text", "text": "colours."})
    ask = ASK | {"messages": [{"role": "user", "content": blocks}]}
    assert claude.messages.create(**ask).content[0].text == claude.messages.create(**ASK).content[0].text
    short, long = (
        claude.messages.count_tokens(model=MODEL, messages=ASK["messages"], system=system).input_tokens
        for system in ("Hi.", "You answer at length, and with care.")
    )
    assert short < long
    counted = claude.messages.count_tokens(model=MODEL, messages=ASK["messages"]).input_tokens
    usage = claude.messages.create(**ASK).usage
    assert counted == usage.input_tokens + usage.cache_read_input_tokens


def test_a_call_goes_back_as_the_sdk_writes_it_out(claude):
    schema = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
    ask = ASK | {"max_tokens": 60, "tools": [{"name": "paint", "input_schema": schema}]}
    called = claude.messages.create(**ask, tool_choice={"type": "any"})
    assert called.stop_reason == "tool_use" and called.content[0].input["colour"] in ("red", "blue")
    result = {"type": "tool_result", "tool_use_id": called.content[0].id, "content": "done"}
    said = [{"role": "assistant", "content": [block.model_dump() for block in called.content]}]
    messages = [*ASK["messages"], *said, {"role": "user", "content": [result]}]
    assert claude.messages.create(**ask | {"messages": messages}).role == "assistant"


def test_errors_are_the_sdks_own(claude):
    with pytest.raises(anthropic.NotFoundError) as missing:
        claude.messages.create(**ASK | {"model": "none"})
    assert missing.value.body["error"]["type"] == "not_found_error" and missing.value.request_id
    with pytest.raises(anthropic.BadRequestError) as bad:
        claude.messages.create(**ASK | {"extra_body": {"temperature": 9}})
    assert bad.value.body["type"] == "error" and "temperature must be between" in str(bad.value)
