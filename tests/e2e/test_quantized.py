"""A quantized Hugging Face checkpoint is served, and says what its numbers say, written out."""

import json
import re
import shutil
import struct
import subprocess

import pytest

from volley import BINARY, ROOT, Serve

PLAIN = ROOT / "worker/tests/fixtures/tiny-llama"
ASK = {"prompt": "the cat sat on", "max_tokens": 24, "temperature": 0, "logprobs": 1, "ignore_eos": True}


def read(path):
    """name → (shape, numbers)"""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = {name: info for name, info in json.loads(raw[8:start]).items() if name != "__metadata__"}
    assert {info["dtype"] for info in header.values()} == {"F32"}
    span = lambda first, end: raw[start + first : start + end]
    numbers = lambda info: [x for (x,) in struct.iter_unpack("<f", span(*info["data_offsets"]))]
    return {name: (info["shape"], numbers(info)) for name, info in header.items()}


def write(folder, tensors, **config):
    """A checkpoint of tensors (dtype, shape, bytes), with the fixture's tokenizer."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(PLAIN / name, folder)
    (folder / "config.json").write_text(json.dumps(json.loads((PLAIN / "config.json").read_text()) | config))
    header, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    header = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    return folder


def f32(numbers):
    return struct.pack(f"<{len(numbers)}f", *numbers)


def words(codes):
    """Eight codes in each, the first in its lowest bits."""
    eights = (codes[i : i + 8] for i in range(0, len(codes), 8))
    return b"".join(struct.pack("<I", sum(code << 4 * i for i, code in enumerate(word))) for word in eights)


def e4m3(code):
    exponent, fraction = code >> 3 & 15, code & 7
    return (-1) ** (code >> 7) * (2**-9 * fraction if exponent == 0 else 2.0 ** (exponent - 10) * (8 + fraction))


E4M3 = [code for code in range(256) if code & 127 != 127]


def fp8(layer, rows, cols, numbers):
    """A scale for each block of 16 × 16."""
    codes, made, scales = bytearray(), [], {}
    for i, x in enumerate(numbers):
        block = (i // cols // 16, i % cols // 16)
        if block not in scales:
            r, c = (16 * place for place in block)
            largest = max(abs(x) for row in range(r, r + 16) for x in numbers[row * cols + c : row * cols + c + 16])
            [scales[block]] = struct.unpack("<f", f32([largest / 448]))
        code = min(E4M3, key=lambda code: abs(e4m3(code) * scales[block] - x))
        codes.append(code)
        made.append(e4m3(code) * scales[block])
    shape = [rows // 16, cols // 16]
    by_block = [scales[r, c] for r in range(shape[0]) for c in range(shape[1])]
    return {
        f"{layer}.weight": ("F8_E4M3", [rows, cols], bytes(codes)),
        f"{layer}.weight_scale_inv": ("F32", shape, f32(by_block)),
    }, made


def gptq(layer, rows, cols, numbers):
    """Zero points and scales for each 16 inputs."""
    groups = cols // 16
    scales, zeros, codes = {}, {}, {}
    for row in range(rows):
        for group in range(groups):
            of = [numbers[row * cols + group * 16 + i] for i in range(16)]
            [scale] = struct.unpack("<e", struct.pack("<e", (max(of) - min(of)) / 15))
            zero = min(15, max(1, round(-min(of) / scale)))
            scales[group, row], zeros[group, row] = scale, zero
            for i, x in enumerate(of):
                codes[row, group * 16 + i] = min(15, max(0, round(x / scale) + zero))
    made = [scales[c // 16, r] * (codes[r, c] - zeros[c // 16, r]) for r in range(rows) for c in range(cols)]
    by_group = [(group, row) for group in range(groups) for row in range(rows)]
    ordered = [codes[r, 8 * word + i] for word in range(cols // 8) for r in range(rows) for i in range(8)]
    return {
        f"{layer}.qweight": ("I32", [cols // 8, rows], words(ordered)),
        f"{layer}.qzeros": ("I32", [groups, rows // 8], words([zeros[at] - 1 for at in by_group])),
        f"{layer}.scales": ("F16", [groups, rows], b"".join(struct.pack("<e", scales[at]) for at in by_group)),
        f"{layer}.g_idx": ("I32", [cols], struct.pack(f"<{cols}i", *(c // 16 for c in range(cols)))),
    }, made


FORMATS = {
    "fp8": (fp8, {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [16, 16]}),
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "sym": False}),
}


def say(model, *flags):
    server = Serve("--model", model, "--device=cpu", *flags)
    try:
        [served] = server.request("GET", "/v1/models")[2]["data"]
        [choice] = server.post("completions", ASK | {"model": served["id"], "return_token_ids": True})["choices"]
        return choice["text"], choice["token_ids"], choice["logprobs"]["token_logprobs"]
    finally:
        server.close()


@pytest.mark.parametrize("name", FORMATS)
def test_a_quantized_checkpoint_says_what_its_numbers_say(name, tmp_path):
    quantize, config = FORMATS[name]
    quantized, plain = {}, {}
    for tensor, (shape, numbers) in read(PLAIN / "model.safetensors").items():
        kept = {tensor: ("F32", shape, f32(numbers))}
        if re.search(r"layers\.\d+\.(self_attn|mlp)\.", tensor):
            parts, made = quantize(tensor.removesuffix(".weight"), *shape, numbers)
            quantized |= parts
            plain[tensor] = ("F32", shape, f32(made))
        else:
            quantized |= kept
            plain |= kept
    quantized = write(tmp_path / "quantized", quantized, quantization_config=config)
    said = say(quantized, "--activations=f32")
    assert said == say(write(tmp_path / "plain", plain), "--activations=f32")
    assert len(said[1]) == ASK["max_tokens"]


def test_plain_weights_are_made_eight_bits_on_request():
    text, tokens, logprobs = say(PLAIN)
    made = say(PLAIN, "--quantization=int8")
    assert made[1][0] == tokens[0] and made[2] != logprobs
    assert abs(made[2][0] - logprobs[0]) < 0.05
    refused = [BINARY, "serve", "--listen=127.0.0.1:0", "--model", PLAIN, "--device=cpu", "--quantization=fp8"]
    refused = subprocess.run(refused, capture_output=True, text=True, timeout=60)
    assert refused.returncode != 0 and "a CPU computes with 8-bit integers" in refused.stderr
