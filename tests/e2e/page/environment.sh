export OPENAI_API_BASE="https://api.fireworks.ai/inference/v1"
export OPENAI_API_KEY="<YOUR_FIREWORKS_API_KEY>"
exec "$PYTHON" -c '
import openai

completion = openai.Completion.create(
  model="accounts/fireworks/models/llama-v2-7b",
  prompt="The quick brown fox",
)
print(completion.choices[0].text)
'
