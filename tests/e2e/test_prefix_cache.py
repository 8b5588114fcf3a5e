"""What was computed for one request isn't computed again for another that begins alike: usage says so, the bytes are
the same, and nobody finds what is another's."""

from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest

from volley import MODEL, Serve, eventually, spent

BLOCK = 16
NUMBERS = count()
STORY = "The river ran past the old mill, and every winter the engine in its cellar froze. " * 6


def fresh():
    """A prompt that no test asks for but this: some 130 tokens, different from the first on."""
    return f"{next(NUMBERS)} winters ago. {STORY}"


def complete(server, prompt, headers=None, **fields):
    """(what it says, its usage, what the header says of the cache)."""
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 24, "temperature": 1, "seed": 7, "logprobs": 3} | fields
    status, headers, answer = server.request("POST", "/v1/completions", body, headers)
    assert status == 200, answer
    usage = answer["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert headers["fireworks-cached-prompt-tokens"] == str(cached)
    return answer["choices"], usage, cached


def whole(usage):
    """What can be cached of a prompt: whole blocks, and never its last token."""
    return (usage["prompt_tokens"] - 1) // BLOCK * BLOCK


def test_an_equal_request_finds_its_prompt_and_says_the_same(server):
    prompt = fresh()
    before = server.metric("volley_prefix_cache_hit_tokens_total")
    first, usage, cached = complete(server, prompt)
    assert cached == 0 and usage["prompt_tokens"] > 100
    again, used, cached = complete(server, prompt)
    assert cached == whole(usage) > 100
    assert again == first and spent(used) == spent(usage)
    assert server.metric("volley_prefix_cache_hit_tokens_total") - before == cached
    # Computed whole once more, in company or not.
    assert complete(server, prompt, prompt_cache_max_len=0)[::2] == (first, 0)
    assert complete(server, prompt, prompt_cache_max_len=50)[::2] == (first, 48)


def test_a_scored_prompt_is_computed_as_far_as_its_scores_need(server):
    prompt = fresh()
    first, _, _ = complete(server, prompt, echo=True)
    again, _, cached = complete(server, prompt, echo=True)
    assert (again, cached) == (first, 0)


def test_the_next_turn_finds_the_last_ones_answer(server):
    def chat(messages):
        body = {"model": MODEL, "messages": messages, "max_tokens": 40, "temperature": 0, "ignore_eos": True}
        answer = server.post("chat/completions", body)
        return answer["choices"][0]["message"], answer["usage"]

    messages = [{"role": "user", "content": fresh() + "What happened?"}]
    said, usage = chat(messages)
    told = usage["prompt_tokens"] + usage["completion_tokens"]
    _, used = chat([*messages, said, {"role": "user", "content": "And then?"}])
    cached = used["prompt_tokens_details"]["cached_tokens"]
    # The answer's text may be cut into other tokens than it was generated in, but not from its beginning.
    assert whole(usage) < cached <= told, (usage, used)


def test_equal_requests_that_arrive_together_are_computed_once(server):
    prompt = fresh()
    before = server.metric("volley_prefix_cache_hit_tokens_total")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: complete(server, prompt), range(8)))
    assert all(choices == answers[0][0] for choices, _, _ in answers)
    assert sorted(cached for *_, cached in answers) == [0] + [whole(answers[0][1])] * 7
    assert server.metric("volley_prefix_cache_hit_tokens_total") - before == 7 * whole(answers[0][1])


def test_choices_that_share_their_prompt_say_what_they_say_without(server):
    prompt = fresh()
    shared, usage, cached = complete(server, prompt, n=4)
    assert cached == 0, "it is the first to compute it"
    alone, used, cached = complete(server, prompt, n=4, prompt_cache_max_len=0)
    assert (alone, cached) == (shared, 0) and used == usage
    assert len({choice["text"] for choice in shared}) > 1


def test_isolation_keys_share_nothing(server):
    prompt, header = fresh(), "x-prompt-cache-isolation-key"
    asks = [{}, {"prompt_cache_isolation_key": "a"}, {"prompt_cache_isolation_key": "b"}, {"headers": {header: "c"}}]
    first = [complete(server, prompt, **ask)[::2] for ask in asks]
    assert first == [(first[0][0], 0)] * 4
    assert all(complete(server, prompt, **ask)[2] > 100 for ask in asks)
    assert complete(server, prompt, prompt_cache_isolation_key="c")[2] > 100, "the field and the header mean the same"


def test_other_apis_say_what_was_cached(server):
    text = fresh()
    ask = {"model": MODEL, "input": text, "max_output_tokens": 4, "temperature": 0}
    first, second = [server.post("responses", ask)["usage"]["input_tokens_details"] for _ in range(2)]
    assert first["cached_tokens"] < BLOCK * 3 and second["cached_tokens"] > 100, "only the template's beginning is old"
    message = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 4}
    usage = server.post("messages", message)["usage"]
    assert usage["cache_read_input_tokens"] == second["cached_tokens"] and 0 < usage["input_tokens"] <= BLOCK


@pytest.fixture(scope="module")
def bare():
    running = Serve("--prefix-cache=off")
    yield running
    running.close()


def test_without_the_cache_the_bytes_are_the_same(server, bare):
    prompt = fresh()
    answers = [complete(at, prompt)[::2] for at in (bare, bare, server, server)]
    assert [cached for _, cached in answers[:3]] == [0] * 3 and answers[3][1] > 100
    assert all(choices == answers[0][0] for choices, _ in answers)


def test_api_keys_share_nothing():
    server = Serve(env={"VOLLEY_API_KEYS": "one,two"})
    try:
        prompt = fresh()
        key = lambda name: {"authorization": f"Bearer {name}"}  # noqa: E731
        asked = [complete(server, prompt, key(name))[2] for name in ("one", "two", "one")]
        assert asked[:2] == [0, 0] and asked[2] > 100
    finally:
        server.close()


def test_the_cache_outlives_its_scheduler(cluster):
    schedulers = [cluster.scheduler(), cluster.scheduler()]
    cluster.router()
    eventually(lambda: cluster.metric("volley_router_links") == 2, "two links", cluster.parts)
    cluster.worker()
    cluster.wait()
    body = {"model": MODEL, "max_tokens": 40, "temperature": 1, "seed": 5, "ignore_eos": True}

    def chat(messages, **fields):
        answer = cluster.post("chat/completions", {**body, "messages": messages, **fields})
        return answer["choices"][0]["message"], answer["usage"]

    messages = [{"role": "user", "content": fresh() + "What happened?"}]
    said, usage = chat(messages)
    messages += [said, {"role": "user", "content": "And then?"}]
    owner = next(s for s in schedulers if cluster.metric("volley_scheduler_workers", [s.admin]))
    cluster.gone(owner, kill=True)
    (other,) = (scheduler for scheduler in schedulers if scheduler is not owner)
    taken_over = lambda: cluster.metric("volley_scheduler_workers", [other.admin]) == 1  # noqa: E731
    eventually(taken_over, "the worker taken over", cluster.parts)
    cluster.wait()
    again, used = chat(messages)
    told = usage["prompt_tokens"] + usage["completion_tokens"]
    assert again == chat(messages, prompt_cache_max_len=0)[0]
    assert whole(usage) < used["prompt_tokens_details"]["cached_tokens"] <= told, (usage, used)
