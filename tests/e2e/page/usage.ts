import OpenAI from "openai";

const openai = new OpenAI({
  baseURL: "https://api.fireworks.ai/inference/v1",
  apiKey: "<YOUR_FIREWORKS_API_KEY>",
});

for await (const chunk of await openai.chat.completions.create({
  model: "accounts/fireworks/models/llama-v2-7b-chat",
  messages: [{ role: "user", content: "Say this is a test" }],
  max_tokens: 16,
  stream: true,
})) { console.log((chunk as any).usage); }
