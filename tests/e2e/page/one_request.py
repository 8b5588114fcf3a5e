import openai

# api_base and api_key can be passed to any of the supported APIs
chat_completion = openai.ChatCompletion.create(
    api_base="https://api.fireworks.ai/inference/v1",
    api_key = "<YOUR_FIREWORKS_API_KEY",
    model="accounts/fireworks/models/llama-v2-7b-chat",
    messages=[{"role": "user", "content": "Say this is a test"}],
)
print(chat_completion.choices[0].message.content)
