"""lm-eval's local-completions: choices are scored by echoed prompts' log-probabilities. Run by test_old_clients.py.

Its tokenizer is made of the very file that the server serves, so both must cut texts alike.
"""

import json
import os
import sys
from pathlib import Path

import lm_eval
import numpy as np
from gguf import GGUFReader
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

QUESTIONS = [
    ("The capital of France is", [" Paris", " Berlin", " Madrid"], 0),
    ("The sky is", [" green", " blue", " eleven"], 1),
    ("One, two, three,", [" nine", " zero", " four"], 2),
    ("The opposite of hot is", [" cold", " tall", " paper"], 0),
    ("Bees make", [" steel", " honey", " rain"], 1),
]
TASK = """
task: local
dataset_path: json
dataset_kwargs: {data_files: {test: "%s"}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def tokenizer(gguf, folder):
    fields = GGUFReader(gguf).fields
    strings = lambda name: [bytes(fields[name].parts[i]).decode() for i in fields[name].data]  # noqa: E731
    tokens = strings("tokenizer.ggml.tokens")
    types = [int(fields["tokenizer.ggml.token_type"].parts[i][0]) for i in fields["tokenizer.ggml.token_type"].data]
    merges = [tuple(merge.split(" ")) for merge in strings("tokenizer.ggml.merges")]
    made = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([token for token, kind in zip(tokens, types) if kind == 3])
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "model_max_length": 8192}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def main():
    folder, gguf = map(Path, sys.argv[1:])
    tokenizer(gguf, folder)
    lines = [json.dumps({"question": q, "choices": c, "answer": a}) for q, c, a in QUESTIONS]
    (folder / "questions.jsonl").write_text("\n".join(lines))
    (folder / "local.yaml").write_text(TASK % (folder / "questions.jsonl"))
    results = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": os.environ["VOLLEY_MODEL"],
            "base_url": os.environ["VOLLEY_BASE"] + "/completions",
            "tokenizer": str(folder),
            "tokenizer_backend": "huggingface",
            "num_concurrent": 4,
        },
        tasks=["local"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        log_samples=True,
    )
    scores = [[float(np.ravel(r[0])[0]) for r in sample["resps"]] for sample in results["samples"]["local"]]
    assert all(score < 0 for row in scores for score in row)
    print(json.dumps({"acc": results["results"]["local"]["acc,none"], "scores": scores}))


if __name__ == "__main__":
    main()
