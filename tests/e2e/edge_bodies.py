"""Bodies that are refused, and odd ones that are served, each with its number in the contract's list of edge cases."""

import json

from volley import MODEL

INVALID = "invalid_request_error"
GONE = object()  # a field that is left out


def chat(**fields):
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    return "chat/completions", {k: v for k, v in (body | fields).items() if v is not GONE}


def text(**fields):
    body = {"model": MODEL, "prompt": "Hi", "max_tokens": 1}
    return "completions", {k: v for k, v in (body | fields).items() if v is not GONE}


def user(content):
    return chat(messages=[{"role": "user", "content": content}])


def form(**response_format):
    return chat(response_format=response_format)


def schema(schema):
    return form(type="json_schema", json_schema={"name": "a", "schema": schema})


def grammar(text):
    return form(type="grammar", grammar=text)


def tool(name, parameters=GONE):
    function = {"name": name} if parameters is GONE else {"name": name, "parameters": parameters}
    return {"type": "function", "function": function}


def tools(**fields):
    return chat(**{"tools": [tool("f")], "max_tokens": 40, **fields})


def calls(arguments):
    """A conversation in which the assistant has called a tool, and was answered twice."""
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    answer = {"role": "tool", "tool_call_id": "call_1", "content": "5"}
    other = answer | {"tool_call_id": "unknown"}
    asked = {"role": "assistant", "content": None, "tool_calls": [call]}
    return tools(messages=[{"role": "user", "content": "Hi"}, asked, answer, answer, other])


def deep(levels):
    return "completions", b'{"a":' + b"[" * levels + b"]" * levels + b"}"


# (number, (path, body), status, code or ..., param or ..., a part of the message); ... = whatever it is.
REFUSED = [
    (1, ("completions", b""), 400, "invalid_json", ..., "Request body is empty; expected a JSON object"),
    (2, ("completions", b'{"model": "m",'), 400, "invalid_json", ..., "line 1"),
    (3, ("completions", b"[]"), 400, "invalid_type", ..., ""),
    (3, ("completions", b'"text"'), 400, "invalid_type", ..., ""),
    (3, ("completions", b"1"), 400, "invalid_type", ..., ""),
    (3, ("chat/completions", b"null"), 400, "invalid_type", ..., ""),
    (4, ("completions", b'{"temperature": NaN}'), 400, "invalid_json", ..., ""),
    (4, ("completions", b'{"temperature": -Infinity}'), 400, "invalid_json", ..., ""),
    (6, deep(200), 400, "json_too_deep", ..., ""),
    (6, deep(1_000_000), 400, "json_too_deep", ..., ""),
    (7, ("completions", b'{"prompt": "\xff"}'), 400, "invalid_utf8", ..., ""),
    (8, ("completions", '{"prompt": "a"}'.encode("utf-16")), 400, ..., ..., ""),
    (28, text(model="accounts/other/models/smollm2-135m-instruct"), 404, "NOT_FOUND", "model", "Model not found"),
    (30, text(model=GONE), 400, "missing_required_parameter", "model", ""),
    (30, chat(model=""), 400, "missing_required_parameter", "model", ""),
    (31, text(model="none"), 404, "NOT_FOUND", "model", "Model not found, inaccessible, and/or not deployed"),
    (32, text(model=5), 400, ..., "model", ""),
    (35, ("embeddings", {"model": MODEL, "input": "Hi"}), 400, ..., "model", ""),
    (36, chat(messages=GONE), 400, ..., "messages", "Field required"),
    (36, chat(messages=[]), 400, "invalid_value", "messages", "must contain at least one message"),
    (37, chat(messages="Hi"), 400, ..., "messages", ""),
    (37, chat(messages={}), 400, ..., "messages", ""),
    (38, chat(messages=["Hi"]), 400, ..., "messages[0]", ""),
    (38, chat(messages=[{"content": "Hi"}]), 400, ..., "messages[0].role", ""),
    (38, chat(messages=[{"role": "robot", "content": "Hi"}]), 400, ..., "messages[0].role", ""),
    (39, user(5), 400, ..., "messages[0].content", ""),
    (39, user(True), 400, ..., "messages[0].content", ""),
    (39, user({"a": 1}), 400, ..., "messages[0].content", ""),
    (41, user(None), 400, ..., "messages[0].content", ""),
    (43, user([]), 400, ..., "messages[0].content", ""),
    (43, user([{"type": "hologram"}]), 400, ..., ..., "hologram"),
    (43, user([{"type": "image_url", "image_url": {"url": "data:,"}}]), 400, ..., ..., "image"),
    (44, chat(messages=[{"role": "tool", "content": "5"}]), 400, ..., "messages[0].tool_call_id", ""),
    (48, chat(messages=[{"role": "user", "content": "Hi", "x": 1}]), 400, ..., "messages[0].x",
     "Extra inputs are not permitted, field: 'messages[0].x', value: 1"),
    (51, chat(messages=[{"role": "user", "content": "a"}] * 100_000), 400, "context_length_exceeded", "messages", ""),
    (51, text(prompt="word " * 1_900_000), 400, "context_length_exceeded", "prompt", ""),
    (51, text(prompt="x" * 30_000_000), 413, "payload_too_large", ..., "Payload Too Large"),
    (52, text(prompt=GONE), 400, ..., "prompt", ""),
    (52, text(prompt=None), 400, ..., "prompt", ""),
    (52, text(prompt=""), 400, ..., "prompt", ""),
    (53, text(prompt=[]), 400, ..., "prompt", ""),
    (53, text(prompt=[[]]), 400, ..., "prompt", ""),
    (53, text(prompt=[1, "a"]), 400, ..., "prompt", ""),
    (54, text(prompt=[49152]), 400, ..., "prompt", "49152"),
    (54, text(prompt=[-1]), 400, ..., "prompt", "-1"),
    (54, text(prompt=[1.5]), 400, ..., ..., "1.5"),
    (55, text(prompt=["a"] * 100, n=100), 400, ..., ..., ""),
    (56, text(prompt=[504] * 8192), 400, "context_length_exceeded", "prompt",
     "The prompt is too long: 8192, model maximum context length: 8192. This model's maximum context length is 8192"),
    (56, user("word " * 9000), 400, "context_length_exceeded", "messages", "model maximum context length: 8192"),
    (57, text(max_tokens=9000, context_length_exceeded_behavior="error"), 400, "context_length_exceeded", ..., ""),
    (57, text(context_length_exceeded_behavior="shrug"), 400, ..., "context_length_exceeded_behavior", ""),
    (58, text(max_tokens=-1), 400, ..., "max_tokens", ""),
    (58, text(max_tokens="10"), 400, ..., "max_tokens", ""),
    (58, text(max_tokens=10.5), 400, ..., "max_tokens", ""),
    (59, chat(max_completion_tokens=5), 400, ..., ..., "max_completion_tokens"),
    (60, text(temperature=-0.1), 400, ..., "temperature", "temperature must be between 0 and 2"),
    (60, text(temperature=2.1), 400, ..., "temperature", "temperature must be between 0 and 2"),
    (60, text(temperature="hot"), 400, ..., "temperature", ""),
    (61, text(top_p=-1), 400, ..., "top_p", ""),
    (61, text(top_p=1.1), 400, ..., "top_p", ""),
    (62, text(top_k=-2), 400, ..., "top_k", ""),
    (63, text(min_p=1.5), 400, ..., "min_p", ""),
    (63, text(typical_p=1.5), 400, ..., "typical_p", ""),
    (64, text(frequency_penalty=2.1), 400, ..., "frequency_penalty", ""),
    (64, chat(presence_penalty=-2.1), 400, ..., "presence_penalty", ""),
    (64, text(repetition_penalty=0), 400, ..., "repetition_penalty", ""),
    (64, text(mirostat_target=0), 400, ..., "mirostat_target", ""),
    (65, text(n=0), 400, ..., "n", ""),
    (65, text(n=-1), 400, ..., "n", ""),
    (65, text(n=129), 400, ..., "n", ""),
    (65, text(n="5"), 400, ..., "n", ""),
    (66, text(seed=2**63), 400, ..., "seed", ""),
    (67, text(logprobs=6), 400, ..., "logprobs", "logprobs must be between 0 and 5: 6"),
    (67, chat(logprobs=True, top_logprobs=21), 400, ..., "top_logprobs", ""),
    (67, chat(top_logprobs=2), 400, ..., "top_logprobs", ""),
    (68, text(logit_bias={"x": 1}), 400, ..., "logit_bias", ""),
    (68, text(logit_bias={"49152": 1}), 400, ..., "logit_bias", "49152"),
    (68, chat(logit_bias={"1": 101}), 400, ..., "logit_bias", ""),
    (68, chat(logit_bias=[1]), 400, ..., "logit_bias", ""),
    (68, text(logit_bias={str(i): 1 for i in range(1025)}), 400, ..., "logit_bias", "1024"),
    (69, text(best_of=1, n=2), 400, ..., "best_of", ""),
    (69, text(best_of=2, stream=True), 400, ..., "best_of", ""),
    (69, text(suffix="x"), 400, "unsupported_parameter", "suffix", ""),
    (70, text(stop=["a", "b", "c", "d", "e"]), 400, ..., "stop", ""),
    (70, text(stop=""), 400, ..., "stop", ""),
    (70, text(stop=[""]), 400, ..., ..., ""),
    (70, text(stop=5), 400, ..., "stop", ""),
    (70, text(stop="x" * 1025), 400, ..., ..., ""),
    (73, form(type="poem"), 400, ..., "response_format.type", "poem"),
    (73, form(type="json_schema"), 400, ..., ..., ""),
    (73, form(type="json_schema", json_schema={"name": "a"}), 400, ..., ..., ""),
    (73, schema("hiccup"), 400, ..., ..., ""),
    (73, schema(123), 400, ..., ..., ""),
    (73, schema({"type": "hiccup"}), 400, ..., ..., "JSON Schema not supported: could not understand the instance"),
    (73, schema({"$ref": "https://schemas.test/a.json"}), 400, ..., ..., ""),
    (73, schema({"$ref": "#/$defs/none"}), 400, ..., ..., ""),
    (73, schema({"$ref": "#"}), 400, ..., ..., ""),
    (73, schema({"enum": [f"{i:05}" for i in range(10_001)]}), 400, ..., ..., ""),
    (73, schema({"type": "string", "pattern": "(a"}), 400, ..., ..., ""),
    (73, schema({"type": "string", "pattern": "(?<=a)b"}), 400, ..., ..., ""),
    (74, grammar('root := "a"'), 400, ..., ..., ""),
    (74, grammar('root ::= "a" | ('), 400, ..., ..., "line 1"),
    (74, grammar('root ::= "a"\nother ::= nothing'), 400, ..., ..., "nothing"),
    (74, grammar("root ::= root"), 400, ..., ..., ""),
    (75, tools(tool_choice="required", response_format={"type": "json_object"}), 400, ..., ..., ""),
    (76, chat(tools=[tool(f"f{i}") for i in range(129)]), 400, ..., "tools", "128"),
    (77, chat(tools=[tool("f"), tool("f")]), 400, ..., "tools[1].function.name", ""),
    (77, chat(tools=[tool("not a name")]), 400, ..., "tools[0].function.name", ""),
    (77, chat(tools=[tool("f" * 65)]), 400, ..., "tools[0].function.name", ""),
    (77, chat(tools=[tool("f", {"type": "string"})]), 400, ..., "tools[0].function.parameters", ""),
    (78, tools(tool_choice={"type": "function", "function": {"name": "other"}}), 400, ..., "tool_choice", "other"),
    (78, chat(tool_choice="required"), 400, ..., "tool_choice", ""),
    (78, chat(tool_choice={"type": "function", "function": {"name": "f"}}), 400, ..., "tool_choice", ""),
    (80, tools(functions=[{"name": "g", "parameters": {"type": "object"}}]), 400, ..., ..., ""),
    (81, text(stream="true"), 400, ..., "stream", ""),
    (81, chat(stream=1), 400, ..., "stream", ""),
    (82, text(stream_options={"include_usage": True}), 400, ..., "stream_options", ""),
    (82, text(stream=True, stream_options={"include_everything": True}), 400, ..., ..., "include_everything"),
    (92, text(x=1), 400, ..., "x", "Extra inputs are not permitted, field: 'x', value: 1"),
    (93, chat(modalities=["text", "audio"]), 400, "unsupported_parameter", "modalities", ""),
    (93, text(prediction={"type": "sketch"}), 400, ..., "prediction.type", ""),
    (94, chat(reasoning_effort="low", thinking={"type": "enabled"}), 400, ..., ..., ""),
    (94, chat(thinking={"type": "enabled", "budget_tokens": 10}), 400, ..., ..., ""),
    (94, chat(reasoning_effort="some"), 400, ..., "reasoning_effort", ""),
    (95, chat(metadata={"a": 1}), 400, ..., "metadata.a", ""),
    (95, text(metadata={str(i): "" for i in range(17)}), 400, ..., "metadata", ""),
    (95, text(metadata={"a": "x" * 513}), 400, ..., "metadata", ""),
    (95, text(user=5), 400, ..., "user", ""),
    (97, ("responses", {"model": MODEL, "input": "Hi", "previous_response_id": "resp_none"}), 404, "not_found", ..., ""),
]  # fmt: skip

# (number, (path, body)): odd, and answered.
SERVED = [
    (5, ("completions", json.dumps(text()[1]).replace("{", '{"prompt": 5, ', 1).encode())),
    (8, ("completions", b"\xef\xbb\xbf" + json.dumps(text()[1]).encode())),
    (7, ("chat/completions", json.dumps(user("\ud800")[1]).encode())),
    (40, user("")),
    (42, chat(messages=[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None}])),
    (44, calls("{}")),
    (45, calls("no JSON")),
    (45, calls({"a": 1})),
    (46, chat(messages=[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Oh"}])),
    (46, chat(messages=[{"role": "user", "content": "Hi"}, *[{"role": "assistant", "content": "Oh"}] * 2])),
    (47, chat(messages=[{"role": "system", "content": "Be brief."}])),
    (48, chat(messages=[
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Oh", "refusal": None, "annotations": [], "audio": None, "function_call": None,
         "tool_calls": None},
        {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "now?"}]},
    ])),
    (50, user("a\0b\x07")),
    (58, text(max_tokens=0)),
    (58, text(max_tokens=1.0)),
    (58, text(max_tokens=10**12, stop=["a", "e", "i", "o"])),
    (60, text(temperature=1e-9)),
    (61, text(top_p=0)),
    (62, text(top_k=-1)),
    (63, text(typical_p=0)),
    (64, text(frequency_penalty=-2, presence_penalty=2, repetition_penalty=2, mirostat_target=3, max_tokens=4)),
    (65, text(prompt=["a", "b"], n=2)),
    (66, text(seed=-1)),
    (67, chat(logprobs=False, top_logprobs=0)),
    (68, text(logit_bias={"1": -100, "49151": 100.0})),
    (69, text(best_of=2)),
    (70, text(stop=[])),
    (75, tools(response_format={"type": "json_object"})),
    (76, chat(tools=[])),
    (77, tools()),
    (78, chat(tool_choice="none")),
    (78, chat(tool_choice=None)),
    (78, tools(tool_choice="none")),
    (81, text(stream=None)),
    (93, chat(store=False, metadata={"a": "b"}, modalities=["text"], audio=None, user="me")),
]  # fmt: skip
