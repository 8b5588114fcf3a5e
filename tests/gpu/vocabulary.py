"""A byte-level vocabulary for models that are made up: text of `volley bench` is about a token a word, and every id has
text of its own, so that a stream of any tokens shows when each came."""

import re
from pathlib import Path

SPACE = "Ġ"  # how byte-level vocabularies write a space
PROMPTS = Path(__file__).resolve().parents[2] / "src/bench/prompts.rs"
BOS, EOS = "<s>", "</s>"


def alphabet():
    """The 256 bytes, each as the character that byte-level vocabularies show it by."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + n) for n in range(len(hidden))]


def words():
    """The words of the benchmark's prompts."""
    text = re.search(r'const WORDS: &str = "(.*?)";', PROMPTS.read_text(encoding="utf-8"), re.DOTALL)
    return text[1].replace("\\\n", "").split()


def vocabulary(size):
    """(tokens in the order of their ids, merges as pairs). A merge adds a letter to what began with a space, so at each
    moment one at most applies, and a word after a space becomes one token."""
    tokens, merges = [BOS, EOS, *alphabet()], {}
    for word in words():
        for end in range(1, len(word) + 1):
            merges[SPACE + word[: end - 1], word[end - 1]] = None
    tokens += [left + right for left, right in merges]
    assert len(tokens) <= size, f"{len(tokens)} tokens are the least, not {size}"
    # Nothing merges into the rest: only a model says it.
    tokens += [f"{SPACE}w{n}" for n in range(size - len(tokens))]
    return tokens, list(merges)


def tokenizer(size):
    """tokenizer.json."""
    tokens, merges = vocabulary(size)
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": n, "content": token, **special} for n, token in enumerate((BOS, EOS))],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: n for n, token in enumerate(tokens)},
            "merges": [list(merge) for merge in merges],
        },
    }
