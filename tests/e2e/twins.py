"""Clusters whose workers' GPU is the twin: the CUDA backend and its kernels, run on the CPU."""

import json
import random
import shutil
import struct

from volley import ROOT, TARGET, Cluster, Process, eventually

TWIN = TARGET / "release/examples/twin"
WORDS = ROOT / "worker/tests/fixtures/tiny-llama"  # a tokenizer and a template


def tiny(folder, context):
    """A Llama of random numbers, in shapes that the kernels of GPUs know."""
    vocab, width, hidden, layers, heads, kv_heads, dim = 288, 64, 96, 2, 4, 2, 64
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "rms_norm_eps": 1e-5}
    config |= {"vocab_size": vocab, "hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": layers}
    config |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": dim}
    config |= {"max_position_embeddings": context, "rope_theta": 10000.0, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(WORDS / name, folder)

    shapes = {"model.embed_tokens.weight": (vocab, width), "model.norm.weight": (width,)}
    for layer in range(layers):
        of_layer = {"self_attn.q_proj": (heads * dim, width), "self_attn.k_proj": (kv_heads * dim, width)}
        of_layer |= {"self_attn.v_proj": (kv_heads * dim, width), "self_attn.o_proj": (width, heads * dim)}
        of_layer |= {"mlp.gate_proj": (hidden, width), "mlp.up_proj": (hidden, width), "mlp.down_proj": (width, hidden)}
        of_layer |= {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in of_layer.items()}
    numbers, header, data = random.Random(7), {}, bytearray()
    for name, shape in shapes.items():
        start = len(data)
        for _ in range(shape[0] * (shape[1] if len(shape) > 1 else 1)):
            # Wide enough that every part matters: attention is far from uniform, logits far from flat.
            number = numbers.gauss(0, 0.25) if len(shape) > 1 else numbers.gauss(1, 0.1)
            data += struct.pack("<f", number)[2:]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, len(data)]}
    header = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    return folder


class Twins(Cluster):
    """A cluster with workers on twins."""

    def __init__(self, folder, context=512):
        super().__init__()
        self.model = tiny(folder, context)
        self.scheduler(), self.router()

    def twin(self, *flags):
        process = Process("twin", TWIN, "--etcd", self.etcd.url, "--model", self.model, *flags)
        process.host, process.admin = self.network.host(), None
        self.parts.append(process)
        return process

    def workers(self, count):
        claimed = lambda: self.metric("volley_scheduler_workers") == count
        eventually(claimed, f"{count} workers", self.parts)
        self.wait()

    def moves(self):
        return sum(self.metric(f"volley_{part}_moves_total") for part in ("scheduler", "router"))
