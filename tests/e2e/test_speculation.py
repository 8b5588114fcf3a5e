"""Tokens are guessed where that pays: answers come sooner, and are the same to the byte."""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from volley import BINARY, HOME, MODEL, ROOT, Serve, spent

TEXT = (
    "The committee met on the second Tuesday of March to decide how the old harbour should be rebuilt. Its chair, a "
    "retired engineer named Okafor, had brought three drawings, and the third, which nobody liked at first, flooded "
    "the lower car park and made a basin of it."
)
COPY = f"Here is a text:\n\n{TEXT}\n\nHere is the same text again, word by word:\n\nThe committee met on"
HEADER = "fireworks-speculation-acceptance"


@pytest.fixture(scope="module", params=["always", "always, with a draft model", "where it pays, several workers"])
def guessing(request):
    """What `auto` guesses follows from how long steps take, so what is counted is counted with `always`."""
    # Its own draft model is the best there is, and the slowest.
    flags = {"always": ["--speculation=always"]}
    flags["always, with a draft model"] = [*flags["always"], "--draft-model=smollm2-135m-instruct"]
    running = Serve(*flags.get(request.param, ["--workers=2"]))
    running.always = request.param in flags
    yield running
    running.close()


@pytest.fixture(scope="module")
def plain():
    running = Serve("--speculation=off")
    yield running
    running.close()


def complete(server, **fields):
    body = {"model": MODEL, "prompt": COPY, "max_tokens": 60, "temperature": 0, "logprobs": 3} | fields
    status, headers, answer = server.request("POST", "/v1/completions", body)
    assert status == 200, answer
    return answer["choices"], answer["usage"], headers.get(HEADER)


def right_and_made(told):
    """Of `0:12/30,1:5/30`, summed over places, which count from 0."""
    places, counts = zip(*(place.split(":") for place in told.split(",")))
    assert list(map(int, places)) == list(range(len(places)))
    right, made = zip(*(map(int, count.split("/")) for count in counts))
    assert all(a <= b for a, b in zip(right, made)) and list(made) == sorted(made, reverse=True)
    return sum(right), sum(made)


def test_a_text_that_repeats_its_prompt_is_guessed_and_says_the_same(guessing, plain):
    before = [guessing.metric(f"volley_scheduler_{name}_tokens_total") for name in ("draft", "accepted")]
    said, usage, told = complete(guessing)
    right, made = right_and_made(told) if told or guessing.always else (0, 0)
    assert right > 20 or not guessing.always, told
    after = [guessing.metric(f"volley_scheduler_{name}_tokens_total") for name in ("draft", "accepted")]
    assert [b - a for a, b in zip(before, after)] >= [made, right], "what was guessed beyond the end counts too"
    undisturbed, used, nothing = complete(plain)
    assert nothing is None
    assert said == undisturbed and spent(usage) == spent(used)


def test_a_prediction_is_followed_and_counted(guessing, plain):
    ask = {"model": MODEL, "messages": [{"role": "user", "content": "Tell me of a river."}], "max_tokens": 60}
    ask |= {"temperature": 0, "logprobs": True, "perf_metrics_in_response": True}
    told = plain.post("chat/completions", ask)
    text = told["choices"][0]["message"]["content"]
    predicted = ask | {"prediction": {"type": "content", "content": text.replace(" the ", " that ", 1)}}
    answer = guessing.post("chat/completions", predicted)
    assert answer["choices"] == told["choices"]
    assert "accepted_prediction_tokens" not in told["usage"]["completion_tokens_details"]
    if not guessing.always:
        return
    details = answer["usage"]["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] > 20 and details["rejected_prediction_tokens"] >= 0
    metrics = answer["perf_metrics"]
    assert metrics["speculation-prompt-matched-tokens"] == details["accepted_prediction_tokens"]
    assert right_and_made(metrics["speculation-acceptance"])[1] == metrics["speculation-generated-tokens"]


def test_every_way_of_drawing_is_the_same_with_guesses(guessing, plain):
    asks = [
        {"temperature": 0.7, "seed": 5, "n": 3},
        {"temperature": 0.5, "seed": 6, "frequency_penalty": 0.3, "repetition_penalty": 1.1},
        {"logit_bias": {"260": 2, "28": -3}, "min_tokens": 20, "echo": True},
        {"stop": ["engineer named"], "include_stop_str_in_output": False},
        {"temperature": 1, "mirostat_target": 3.0, "seed": 4},
        {"ignore_eos": True, "max_tokens": 90},
        {"speculation": TEXT, "prompt": "The committee met on"},
    ]
    with ThreadPoolExecutor(len(asks)) as pool:
        guessed = list(pool.map(lambda ask: complete(guessing, **ask), asks))
    for ask, (said, usage, _) in zip(asks, guessed):
        ask.pop("speculation", None)
        undisturbed, used, _ = complete(plain, **ask)
        assert said == undisturbed, ask
        details = used["completion_tokens_details"] | usage["completion_tokens_details"]
        assert spent(usage) == spent(used | {"completion_tokens_details": details})


def test_a_draft_model_of_another_vocabulary_is_refused_at_the_start():
    draft = ROOT / "worker" / "tests" / "fixtures" / "tiny-llama"
    flags = ["serve", "--listen", "127.0.0.1:0", "--draft-model", draft]
    done = subprocess.run([BINARY, *flags], capture_output=True, text=True, timeout=300, env=os.environ | {"VOLLEY_HOME": str(HOME)})
    assert done.returncode != 0 and "the draft model has another vocabulary" in done.stderr, done.stderr
