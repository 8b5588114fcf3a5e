"""What the check for a GPU computes, without one and without PyTorch."""

import json
import math
import random

import compare
import loads
import results
import stage
import watch
from shapes import LLAMA_1B, LLAMA_8B
from vocabulary import SPACE, alphabet, vocabulary, words


def difference(scale, gave_up=0.0, seed=1):
    """Of a thousand log-probabilities from exact ones, apart by so much."""
    rng = random.Random(seed)
    exact = [-rng.expovariate(0.2) for _ in range(1000)]
    values = [value + rng.gauss(0, scale) for value in exact]
    return compare.difference(values, exact, [-1.0 - gave_up, -2.0], [-1.0, -2.0])


def test_log_probabilities_pass_that_err_as_bf16_does():
    theirs = difference(0.02)
    assert compare.complaints(difference(0.02, seed=2), theirs) == []
    assert compare.complaints(difference(0.0), theirs) == []


def test_log_probabilities_fail_that_err_more():
    theirs = difference(0.02)
    assert [problem.split()[0] for problem in compare.complaints(difference(0.04), theirs)] == ["root"]
    assert len(compare.complaints(difference(0.2), theirs)) == 2
    assert "given up" in compare.complaints(difference(0.02, gave_up=1.0), theirs)[0]


def test_one_wrong_position_of_many_is_found():
    exact = [-3.0] * 1000
    ours = compare.difference([-3.001] * 999 + [-4.0], exact, [], [])
    theirs = compare.difference([-3.04] * 1000, exact, [], [])
    assert [problem.split()[0] for problem in compare.complaints(ours, theirs)] == ["largest"]


def test_nan_never_passes():
    wrong = compare.difference([math.nan, -1.0], [-1.0, -1.0], [], [])
    assert compare.complaints(wrong, compare.difference([-2.0, -9.0], [-1.0, -1.0], [], []))


def test_limits_are_those_of_the_models_sizes():
    assert LLAMA_8B.matrices + 2 * LLAMA_8B.head == 8_029_995_008  # Llama 3 8B has 8,030,261,248 with its norms
    assert LLAMA_1B.matrices + LLAMA_1B.head == 1_235_746_816
    assert LLAMA_8B.kv_bytes == 131_072
    # 15.0 GB a token at 3 TB/s.
    assert round(1 / LLAMA_8B.stream_seconds("bf16", 0, 3e12)) == 200
    # Products alone take 2 operations a number and token.
    assert 1.0 < LLAMA_8B.prefill_operations(8192) / (2 * LLAMA_8B.matrices * 8192) < 1.2
    seconds = LLAMA_8B.load_seconds(256, 512, 512, 3e12, 798e12)
    assert 14_000 < 256 * 512 / seconds < 14_500


def test_a_word_of_the_benchmark_is_one_token_and_every_id_has_text():
    tokens, merges = vocabulary(2048)
    assert len(tokens) == len(set(tokens)) == 2048 and all(tokens)
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    known = set(tokens)
    assert known >= set(alphabet()) and len(words()) > 200
    for word in words():
        parts = [SPACE, *word]
        while pairs := [pair for pair in zip(parts, parts[1:]) if pair in ranks]:
            at = list(zip(parts, parts[1:])).index(min(pairs, key=ranks.get))
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        assert parts == [SPACE + word] and parts[0] in known


def test_a_stage_is_run_again_unless_it_passed_with_this_very_tree():
    record = {"device": "a GPU", "stages": {}}
    results.mark(record, "models", "tree", 0, 12)
    results.mark(record, "speed-8b", "tree", 124, 480)
    results.mark(record, "peer-llama", "tree", stage.LEFT_OUT, 0)
    assert results.passed(record, "models", "tree")
    assert not results.passed(record, "models", "another")
    assert not results.passed(record, "speed-8b", "tree")
    assert not results.passed(record, "peer-llama", "tree")
    assert not results.passed(record, "kernels", "tree")


def test_the_report_says_what_failed_and_what_was_not_run():
    record = {"device": "a GPU", "stages": {"models": {"failures": ["qwen2: wrong"], "notes": ["a note"]}}}
    results.mark(record, "models", "tree", 1, 12)
    row = {"server": "Volley", "model": "8b, bf16", "streams": 1, "tok/s": 150.25}
    title = loads.table(loads.size(cpu=False))
    for name in ("speed-8b", "peer-llama"):
        record["stages"][name] = {"tables": {title: [row], "Goals": [{"what": name, "share": None}]}}
    text = results.report(record, "tests/gpu/run all")
    assert "\na GPU; " in text
    assert "| models | FAILED (1) after 12 s |" in text and "| kernels | not run |" in text
    assert "| speed-8b | not run to its end |" in text
    assert "qwen2: wrong" in text and "a note" in text
    # Tables of the same name stand together, the goals first.
    assert text.count(title) == 1 and text.count("| Volley | 8b, bf16 | 1 | 150 |") == 2
    assert text.index("## Goals") < text.index(title)


def test_a_record_is_whole_on_disk_after_each_row(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "BUNDLE", tmp_path)
    monkeypatch.setenv("VOLLEY_GPU_SCRATCH", str(tmp_path))
    one = stage.Stage("models", cpu=True)
    one.row("T", a=1, b=0.5)
    other = stage.Stage("failover", cpu=True)
    other.fail("broken")
    told = json.loads((tmp_path / "out-cpu/results.json").read_text())["stages"]
    assert told["models"]["tables"] == {"T": [{"a": 1, "b": 0.5}]} and told["failover"]["failures"] == ["broken"]
    assert other.rows("models", "T") == [{"a": 1, "b": 0.5}]


def test_nvidia_smi_s_lines_are_read():
    assert watch.parse("98, 70123, 81559") == (98.0, 70123 * 2**20, 81559 * 2**20)
