"""What a request says its answer must be, it is: formats, forced calls, and that a move changes nothing."""

import http.client
import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, Optional

import jsonschema  # kubernetes-validate brings it
import pytest
from openai import OpenAI
from pydantic import BaseModel

from schemas import SCHEMAS
from volley import MODEL, eventually

ASK = dict(model=MODEL, messages=[{"role": "user", "content": "Tell me about a person."}], max_tokens=400, seed=5)


class Pet(BaseModel):
    name: str
    kind: Literal["cat", "dog", "früher"]


class Person(BaseModel):
    """Recursive, with options, lists and a pattern."""

    name: str
    age: int
    married: bool
    pets: list[Pet]
    friend: Optional["Person"] = None


TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 30}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
        },
    },
}
WEATHER = dict(
    model=MODEL, messages=[{"role": "user", "content": "How is the weather in Paris?"}], max_tokens=300, seed=3
)


def test_a_pydantic_model_is_parsed_from_the_answer(client):
    # Some seeds run into max_tokens, which the helper takes for a failure; all that end are valid.
    answer = client.chat.completions.create(**ASK, response_format={"type": "json_schema", "json_schema": {
        "name": "person", "schema": Pet.model_json_schema()}})
    assert Pet.model_validate_json(answer.choices[0].message.content)
    with OpenAI(base_url=str(client.base_url), api_key="key") as lenient:
        parsed = lenient.chat.completions.parse(**ASK | {"temperature": 0}, response_format=Pet)
    assert isinstance(parsed.choices[0].message.parsed, Pet)


def test_a_recursive_model_is_valid_or_cut(client):
    for seed in range(3):
        ask = ASK | {"seed": seed}
        schema = {"name": "person", "schema": Person.model_json_schema()}
        choice = client.chat.completions.create(
            **ask, response_format={"type": "json_schema", "json_schema": schema}
        ).choices[0]
        if choice.finish_reason == "stop":
            Person.model_validate_json(choice.message.content)
        else:
            assert choice.finish_reason == "length" and choice.message.content.startswith("{")


@pytest.mark.parametrize("extra, pattern", [
    ({"response_format": {"type": "json_object"}, "max_tokens": 600}, r"\{.*"),
    ({"guided_regex": "[A-Z][a-z]{2,8} [0-9]{3}"}, "[A-Z][a-z]{2,8} [0-9]{3}"),
    ({"guided_choice": ["perhaps", "never", "yes, indeed"]}, "perhaps|never|yes, indeed"),
    ({"response_format": {"type": "grammar", "grammar": 'root ::= ("ab" | "cd"){2,3} "."'}}, r"(ab|cd){2,3}\."),
])
def test_an_answer_is_of_its_form(server, extra, pattern):
    for stream in False, True:
        body = {**ASK, "temperature": 1, **extra, "stream": stream}
        status, _, answer = server.request("POST", "/v1/chat/completions", body)
        assert status == 200, answer
        if stream:
            events = [json.loads(e[6:]) for e in answer.decode().split("\n\n") if e.startswith("data: {")]
            streamed = "".join(e["choices"][0]["delta"].get("content", "") for e in events)
            assert streamed == text, "streamed or not, it is the same"
        else:
            text = answer["choices"][0]["message"]["content"]
            assert re.fullmatch(pattern, text, re.DOTALL), text
            if answer["choices"][0]["finish_reason"] == "stop" and "json_object" in str(extra):
                assert isinstance(json.loads(text), dict)


def test_a_mix_of_schemas_gives_valid_documents_only(server):
    def one(number):
        schema = SCHEMAS[number % len(SCHEMAS)]
        body = {"model": MODEL, "prompt": "Answer with JSON: ", "max_tokens": 200, "temperature": 1, "seed": number,
                "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}
        choice = server.post("completions", body)["choices"][0]
        if choice["finish_reason"] == "stop":
            jsonschema.validate(json.loads(choice["text"]), schema)
        return choice["finish_reason"]

    with ThreadPoolExecutor(16) as pool:
        reasons = list(pool.map(one, range(48)))
    assert reasons.count("stop") >= 40


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_forced_call_is_valid(client, choice):
    ask = WEATHER | {"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False}
    whole = client.chat.completions.create(**ask).choices[0]
    assert whole.finish_reason == "tool_calls" and whole.message.content is None
    (call,) = whole.message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert call.function.name == "get_weather" and set(arguments) == {"city", "unit"}
    assert arguments["unit"] in ("C", "F") and len(arguments["city"]) <= 30

    with client.chat.completions.stream(**ask) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert streamed.message.tool_calls[0].function.arguments == call.function.arguments
    assert streamed.finish_reason == "tool_calls"


def test_a_conversation_with_calls_goes_on(client):
    first = client.chat.completions.create(**WEATHER, tools=[TOOL], tool_choice="required").choices[0].message
    messages = WEATHER["messages"] + [first.model_dump()] + [
        {"role": "tool", "tool_call_id": call.id, "content": "Sunny, 25 C"} for call in first.tool_calls
    ]
    answer = client.chat.completions.create(**WEATHER | {"messages": messages, "max_tokens": 30}, tools=[TOOL])
    assert answer.choices[0].message.content or answer.choices[0].message.tool_calls


def test_guided_answers_together_are_what_each_is_alone(server):
    def ask(number):
        schema = SCHEMAS[number % len(SCHEMAS)]
        return server.post("completions", {
            "model": MODEL, "prompt": f"{number}: ", "max_tokens": 60, "temperature": 1, "seed": number, "logprobs": 1,
            "response_format": {"type": "json_object", "schema": schema}})["choices"]

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, range(8)))
    assert together == [ask(number) for number in range(8)]


def test_a_guided_stream_survives_the_death_of_its_worker(cluster):
    first = cluster.worker()
    cluster.scheduler(), cluster.router()
    cluster.wait()
    body = {"model": MODEL, "prompt": "A list: ", "max_tokens": 400, "temperature": 1, "seed": 4, "stream": True,
            "guided_regex": "([a-z]{3,9}, ){300}end"}

    def text(stream):
        lines = (line[6:] for line in stream.decode().split("\n\n") if line.startswith("data: {"))
        return "".join(json.loads(line)["choices"][0]["text"] for line in lines)

    def start():
        connection = http.client.HTTPConnection("127.0.0.1", cluster.port, timeout=120)
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        return connection.getresponse()

    alone = text(start().read())
    assert re.fullmatch("([a-z]{3,9}, )*[a-z]*,? ?", alone)
    cluster.worker()
    eventually(lambda: cluster.metric("volley_scheduler_workers") == 2, "two workers claimed", cluster.parts)
    response = start()
    head = response.read1()
    cluster.gone(first, kill=True)
    assert text(head + response.read()) == alone
