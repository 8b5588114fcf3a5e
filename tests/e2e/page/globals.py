import openai

# warning: it has a process-wide effect
openai.api_base = "https://api.fireworks.ai/inference/v1"
openai.api_key = "<YOUR_FIREWORKS_API_KEY>"

completion = openai.Completion.create(
  model="accounts/fireworks/models/llama-v2-7b",
  prompt="The quick brown fox",
)
print(completion.choices[0].text)

chat_completion = openai.ChatCompletion.create(
  model="accounts/fireworks/models/llama-v2-7b-chat",
  messages=[
    {
      "role": "system",
     	"content": "You are a helpful assistant.",
    },
    {
      "role": "user",
      "content": "Say this is a test",
    },
  ],
)
print(chat_completion.choices[0].message.content)
