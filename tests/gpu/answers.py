"""Asks a Volley server for greedy completions, and compares what several servers said.

answers.py ask URL STREAMS FILE      STREAMS requests at once, over the prompts below in turns, into FILE
answers.py same FILE FILE            fails unless a prompt has one text in both, byte for byte
answers.py alike FILE FILE           fails unless most texts begin alike: rounding may part them later
"""

import json
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor

PROMPTS = [
    "The capital of France is",
    "Once upon a time, there was a little",
    "def fibonacci(n):\n",
    "Water boils at 100 degrees Celsius because",
    "The three primary colours are red,",
    "In 1969, the first human being",
    "A list of fruits: apple, banana,",
    "To be, or not to be,",
]
ALIKE = 16  # characters: some four tokens


def call(url, body=None):
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def ask(url, streams, file):
    model = call(url + "/v1/models")["data"][0]["id"]

    def text(prompt):
        body = {"model": model, "prompt": prompt, "max_tokens": 48, "temperature": 0, "ignore_eos": True}
        return call(url + "/v1/completions", body)["choices"][0]["text"]

    asked = [PROMPTS[i % len(PROMPTS)] for i in range(max(streams, len(PROMPTS)))]
    with ThreadPoolExecutor(streams) as pool:
        texts = list(pool.map(text, asked))
    answers = {prompt: sorted({said for to, said in zip(asked, texts) if to == prompt}) for prompt in PROMPTS}
    with open(file, "w", encoding="utf-8") as out:
        json.dump(answers, out, indent=1)


def read(*files):
    for file in files:
        with open(file, encoding="utf-8") as texts:
            yield json.load(texts)


def same(one, other):
    several = [prompt for prompt, texts in [*one.items(), *other.items()] if len(texts) > 1]
    differ = [prompt for prompt in PROMPTS if one[prompt] != other[prompt]]
    if several or differ:
        sys.exit(f"not one text: {several}; other texts: {differ}")
    print(f"{len(PROMPTS)} prompts have the same bytes")


def alike(one, other):
    begins = [one[prompt][0][:ALIKE] == other[prompt][0][:ALIKE] for prompt in PROMPTS]
    whole = [one[prompt][0] == other[prompt][0] for prompt in PROMPTS]
    print(f"of {len(PROMPTS)} texts {sum(begins)} begin alike, {sum(whole)} are the same to their end")
    if sum(begins) < 0.75 * len(PROMPTS):
        sys.exit(json.dumps({prompt: [one[prompt], other[prompt]] for prompt in PROMPTS}, indent=1))


match sys.argv[1:]:
    case ["ask", url, streams, file]:
        ask(url, int(streams), file)
    case ["same", one, other]:
        same(*read(one, other))
    case ["alike", one, other]:
        alike(*read(one, other))
    case _:
        sys.exit(__doc__)
