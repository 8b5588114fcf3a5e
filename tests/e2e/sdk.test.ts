// The newest Node SDK against the server at VOLLEY_BASE; run by test_openai_node.py.
import assert from "node:assert/strict";
import test from "node:test";
import OpenAI from "openai";

const model = process.env.VOLLEY_MODEL!;
const openai = new OpenAI({ baseURL: process.env.VOLLEY_BASE, apiKey: "key", maxRetries: 0 });
const chat = { model, messages: [{ role: "user" as const, content: "Count to five." }], max_tokens: 24, seed: 7 };
const text = { model, prompt: "The capital of France is", max_tokens: 12, temperature: 0 };

// How much of a prompt was cached hangs on what was asked before.
const spent = (usage: any) => ({ ...usage, prompt_tokens_details: null });

test("a streamed chat says what the whole one says", async () => {
  const whole = await openai.chat.completions.create(chat);
  let content = "";
  let usage = null;
  for await (const chunk of await openai.chat.completions.create({ ...chat, stream: true })) {
    assert.equal(usage, null);
    content += chunk.choices[0].delta.content ?? "";
    usage = chunk.usage;
  }
  assert.equal(content, whole.choices[0].message.content);
  assert.deepEqual(spent(usage), spent(whole.usage));
});

test("the helper assembles the message", async () => {
  const whole = await openai.chat.completions.create(chat);
  // The fourth version has it under `beta`.
  const completions = "stream" in openai.chat.completions ? openai.chat.completions : (openai as any).beta.chat.completions;
  const helped = await completions.stream(chat).finalChatCompletion();
  assert.equal(helped.choices[0].message.content, whole.choices[0].message.content);
});

test("a streamed completion says what the whole one says", async () => {
  const whole = await openai.completions.create(text);
  let streamed = "";
  for await (const chunk of await openai.completions.create({ ...text, stream: true })) {
    streamed += chunk.choices[0].text;
  }
  assert.equal(streamed, whole.choices[0].text);
});

test("a model is found by its name with slashes", async () => {
  assert.equal((await openai.models.retrieve(model)).id, model);
  for await (const listed of openai.models.list()) assert.equal(listed.object, "model");
});

test("an error has its class, code and parameter", async () => {
  await assert.rejects(openai.chat.completions.create({ ...chat, model: "none" }), (error: any) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.deepEqual([error.code, error.param], ["NOT_FOUND", "model"]);
    return true;
  });
});

test("a streamed response says what the whole one says, and the next goes on from it", async (context) => {
  if (!openai.responses) return context.skip("the first of the fourth versions have no responses");
  const ask = { model, input: "Count to five.", max_output_tokens: 24, temperature: 0 };
  const whole = await openai.responses.create(ask);
  let text = "";
  let last: any;
  for await (const event of await openai.responses.create({ ...ask, stream: true })) {
    if (event.type === "response.output_text.delta") text += event.delta;
    last = event;
  }
  assert.equal(text, whole.output_text);
  assert.equal(last.response.usage.total_tokens, whole.usage!.total_tokens);
  const next = await openai.responses.create({ ...ask, input: "And on.", previous_response_id: last.response.id });
  assert.ok(next.usage!.input_tokens > whole.usage!.input_tokens);
  const helped = await openai.responses.stream(ask).finalResponse();
  // The fourth version's helper leaves `output_text` out.
  const said = helped.output.flatMap((item: any) => item.content.map((part: any) => part.text));
  assert.equal(said.join(""), whole.output_text);
});

test("embeddings are refused by name where none are served", async () => {
  await assert.rejects(openai.embeddings.create({ model, input: "x" }), (error: any) => error.param === "model");
});

test("leaving a stream early ends it", async () => {
  const stream = await openai.chat.completions.create({ ...chat, max_tokens: 4000, stream: true });
  for await (const _ of stream) break;
  assert.ok(stream.controller.signal.aborted);
});
