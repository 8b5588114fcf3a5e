import openai

openai.api_base = "https://api.fireworks.ai/inference/v1"
openai.api_key = "<YOUR_FIREWORKS_API_KEY>"

for chunk in openai.ChatCompletion.create(
    model="accounts/fireworks/models/llama-v2-7b-chat",
    messages=[{"role": "user", "content": "Say this is a test"}],
    max_tokens=16,
    stream=True,
): print(chunk["usage"])
