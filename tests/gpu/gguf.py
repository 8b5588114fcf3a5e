"""Writes a GGUF file (version 3) of random numbers in the shape of a model, in 16, 8 or 4 bits."""

import struct

import torch

from shapes import Shape
from vocabulary import vocabulary

ALIGNMENT = 32
CHUNK = 1 << 26  # numbers that are made at a time
# By the number of GGML's type; block: numbers, and the bytes that they take.
F32, BF16, Q8_0, Q4_0 = 0, 30, 8, 2
BLOCKS = {F32: (1, 4), BF16: (1, 2), Q8_0: (32, 34), Q4_0: (32, 18)}
TYPES = {"bf16": BF16, "w8a16": Q8_0, "w4a16": Q4_0}
FILE_TYPES = {"bf16": 32, "w8a16": 7, "w4a16": 2}


def value(item):
    """A metadata value with its type: u32, f32 or string, or a list of i32 or strings."""
    match item:
        case int():
            return struct.pack("<II", 4, item)
        case float():
            return struct.pack("<If", 6, item)
        case str():
            return struct.pack("<I", 8) + string(item)
        case [int(), *_]:
            return struct.pack(f"<IIQ{len(item)}i", 9, 5, len(item), *item)
        case [str(), *_]:
            return struct.pack("<IIQ", 9, 8, len(item)) + b"".join(string(each) for each in item)
    raise TypeError(type(item))


def string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def metadata(name, shape: Shape, weight):
    tokens, merges = vocabulary(shape.vocab)
    return {
        "general.architecture": "llama",
        "general.name": name,
        "general.file_type": FILE_TYPES[weight],
        "llama.context_length": shape.context,
        "llama.embedding_length": shape.width,
        "llama.block_count": shape.layers,
        "llama.feed_forward_length": shape.hidden,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.attention.key_length": shape.head_dim,
        "llama.attention.value_length": shape.head_dim,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": shape.head_dim,
        "llama.rope.freq_base": 500_000.0,
        "llama.vocab_size": shape.vocab,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3] + [1] * (shape.vocab - 2),  # control, normal
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in merges],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }


def tensors(shape: Shape, weight):
    """(name, rows, columns, type); norms have one row."""
    kind = TYPES[weight]
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield "token_embd.weight", shape.vocab, shape.width, kind
    for n in range(shape.layers):
        for name, rows, columns in (
            ("attn_q", queries, shape.width),
            ("attn_k", keys, shape.width),
            ("attn_v", keys, shape.width),
            ("attn_output", shape.width, queries),
            ("ffn_gate", shape.hidden, shape.width),
            ("ffn_up", shape.hidden, shape.width),
            ("ffn_down", shape.width, shape.hidden),
        ):
            yield f"blk.{n}.{name}.weight", rows, columns, kind
        yield f"blk.{n}.attn_norm.weight", 1, shape.width, F32
        yield f"blk.{n}.ffn_norm.weight", 1, shape.width, F32
    yield "output_norm.weight", 1, shape.width, F32
    if not shape.tied:
        yield "output.weight", shape.vocab, shape.width, kind


def size(rows, columns, kind):
    numbers, length = BLOCKS[kind]
    return rows * columns // numbers * length


def numbers(count, columns, kind, device):
    """Bytes of so many random numbers whose deviation keeps what they multiply in its range."""
    deviation = 1.3 / columns**0.5
    if kind == F32:
        return torch.ones(count, device=device)
    if kind == BF16:
        return torch.empty(count, dtype=torch.bfloat16, device=device).normal_(0, deviation)
    bits = 8 if kind == Q8_0 else 4
    # Even numbers of b bits have the deviation 2^b / √12.
    scale = torch.full((count // 32, 1), deviation * 12**0.5 / 2**bits, dtype=torch.float16, device=device)
    codes = torch.randint(0, 256, (count // 32, 4 * bits), dtype=torch.uint8, device=device)
    return torch.cat([scale.view(torch.uint8), codes], 1)


def write(path, name, shape: Shape, weight, device):
    """Writes the file; `device` makes the numbers."""
    pad = lambda at: -at % ALIGNMENT  # noqa: E731
    entries = metadata(name, shape, weight)
    all_tensors = list(tensors(shape, weight))
    head = b"GGUF" + struct.pack("<IQQ", 3, len(all_tensors), len(entries))
    head += b"".join(string(key) + value(item) for key, item in entries.items())
    at = 0
    for tensor, rows, columns, kind in all_tensors:
        dimensions = [columns] if rows == 1 else [columns, rows]
        head += string(tensor) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, at)
        at += size(rows, columns, kind)
        at += pad(at)
    with open(path, "wb") as file:
        file.write(head + bytes(pad(len(head))))
        for _, rows, columns, kind in all_tensors:
            left = rows * columns
            while left:
                count = min(left, CHUNK)
                data = numbers(count, columns, kind, device)
                file.write(data.cpu().view(torch.uint8).numpy().data)
                left -= count
            file.write(bytes(pad(size(rows, columns, kind))))
