// The newest Node SDK against the server at VOLLEY_BASE; run by test_openai_node.py.
import assert from "node:assert/strict";
import test from "node:test";
import OpenAI from "openai";

const model = process.env.VOLLEY_MODEL!;
const openai = new OpenAI({ baseURL: process.env.VOLLEY_BASE, apiKey: "key", maxRetries: 0 });
const chat = { model, messages: [{ role: "user" as const, content: "Count to five." }], max_tokens: 24, seed: 7 };
const text = { model, prompt: "The capital of France is", max_tokens: 12, temperature: 0 };

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
  assert.deepEqual(usage, whole.usage);
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

test("leaving a stream early ends it", async () => {
  const stream = await openai.chat.completions.create({ ...chat, max_tokens: 4000, stream: true });
  for await (const _ of stream) break;
  assert.ok(stream.controller.signal.aborted);
});
