"""Models of random numbers, made where they are missed: Hugging Face directories by transformers, GGUF files by
gguf.py."""

import gc
import hashlib
import json
import shutil
import time
from pathlib import Path

import torch
import transformers

import gguf
from shapes import LLAMA_1B, LLAMA_8B, TINY, Shape
from vocabulary import tokenizer

# Long contexts of small models are stretched as Llama 3's are, so that this is checked too.
STRETCHED = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}


def llama(shape: Shape, rope):
    return transformers.LlamaConfig(
        num_hidden_layers=shape.layers,
        hidden_size=shape.width,
        intermediate_size=shape.hidden,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab,
        max_position_embeddings=shape.context,
        tie_word_embeddings=shape.tied,
        rms_norm_eps=1e-5,
        rope_parameters=rope,
    )


def sizes(cpu, width, hidden, heads, kv_heads):
    """What most families call alike: few layers of a model's own sizes, or tiny ones."""
    return {
        "num_hidden_layers": 2 if cpu else 4,
        "hidden_size": 128 if cpu else width,
        "intermediate_size": 256 if cpu else hidden,
        "num_attention_heads": 2 if cpu else heads,
        "num_key_value_heads": 1 if cpu else kv_heads,
        "vocab_size": 2048 if cpu else 32_768,
        "max_position_embeddings": 4096,
    }


def qwen(kind, width, heads, kv_heads, hidden, cpu):
    """Qwen2 has biases, Qwen3 norms of queries and keys."""
    extra = {"head_dim": 64 if cpu else 128} if kind is transformers.Qwen3Config else {"use_sliding_window": False}
    return kind(
        **sizes(cpu, width, hidden, heads, kv_heads),
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        **extra,
    )


def phi(cpu):
    """Stacked matrices: query, key and value are one, gate and up another."""
    return transformers.Phi3Config(
        **sizes(cpu, 2048, 8192, 16, 4),
        original_max_position_embeddings=4096,
    )


def phi_long(cpu):
    """Rotations that were stretched from a context of 32, less than any text here: transformers takes the long factors."""
    settings = phi(cpu)
    settings.original_max_position_embeddings = 32
    pairs = settings.hidden_size // settings.num_attention_heads * 3 // 8
    settings.rope_parameters = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 32,
        "short_factor": [1.0 + 0.01 * pair for pair in range(pairs)],
        "long_factor": [1.0 + 0.5 * pair for pair in range(pairs)],
    }
    return settings


def gemma(kind, cpu):
    """Norms before and after, layers with a window among others without; Gemma 2 has soft caps."""
    three = kind is transformers.Gemma3TextConfig
    rotations = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    }
    return kind(
        **sizes(cpu, 2304, 9216, 8, 4) | ({"num_hidden_layers": 6} if three else {}),
        head_dim=64 if cpu else 256,
        query_pre_attn_scalar=64 if cpu else 256,
        sliding_window=512,
        rope_parameters=rotations if three else {"rope_type": "default", "rope_theta": 10_000.0},
    )


def olmo(cpu):
    """Norms after only; queries and keys are normed with all heads together."""
    return transformers.Olmo2Config(
        **sizes(cpu, 2048, 8192, 16, 4),
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
    )


def starcoder(cpu):
    """Layer norms, a bias everywhere, no gate."""
    return transformers.Starcoder2Config(
        **sizes(cpu, 3072, 12_288, 24, 2),
        use_bias=True,
    )


def bigcode(cpu):
    """The same with learned positions and one head of keys and values."""
    return transformers.GPTBigCodeConfig(
        n_layer=2 if cpu else 4,
        n_embd=128 if cpu else 2048,
        n_head=2 if cpu else 16,
        n_positions=4096,
        vocab_size=2048 if cpu else 32_768,
        multi_query=True,
    )


def config(name, cpu):
    """The configuration of a model by its name."""
    match name:
        case "llama":
            few = Shape(4, 4096, 14336, 32, 8, 128, 32_768, 4096, tied=False)
            return llama(TINY if cpu else few, STRETCHED)
        case "qwen2":
            return qwen(transformers.Qwen2Config, 1536, 12, 2, 8960, cpu)
        case "qwen3":
            return qwen(transformers.Qwen3Config, 2048, 16, 8, 6144, cpu)
        case "phi3":
            return phi(cpu)
        case "phi4-mini":
            return phi_long(cpu)
        case "gemma2":
            return gemma(transformers.Gemma2Config, cpu)
        case "gemma3":
            return gemma(transformers.Gemma3TextConfig, cpu)
        case "olmo2":
            return olmo(cpu)
        case "starcoder2":
            return starcoder(cpu)
        case "gpt-bigcode":
            return bigcode(cpu)
        case "8b" | "1b":
            return llama(shape(name, cpu), {"rope_type": "default", "rope_theta": 500_000.0})
    raise ValueError(name)


def shape(name, cpu):
    return TINY if cpu else {"8b": LLAMA_8B, "1b": LLAMA_1B}[name]


def randomize(model, width):
    """Numbers that let every part speak: transformers would begin with gains of 1 and biases of 0."""
    deviation = 1.3 / width**0.5
    gain = 0 if model.config.model_type.startswith("gemma") else 1  # Gemma leaves out a 1
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, deviation)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.3)
            else:
                parameter.uniform_(gain - 0.5, gain + 0.5)


def directory(stage, name):
    """A Hugging Face directory in bf16; made on the stage's device if it isn't there."""

    def make(folder):
        torch.manual_seed(7)
        settings = config(name, stage.cpu)
        settings.bos_token_id, settings.eos_token_id, settings.pad_token_id = 0, 1, None
        with torch.device(stage.device):
            model = transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16)
        randomize(model, settings.hidden_size)
        model.save_pretrained(folder)
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer(settings.vocab_size)))
        kind = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(kind))

    return made(stage, stage.scratch / name, make)


def file(stage, name, weight):
    """A GGUF file; made if it isn't there."""

    def make(folder):
        folder.mkdir()
        torch.manual_seed(7)
        gguf.write(folder / f"{name}-{weight}.gguf", name, shape(name, stage.cpu), weight, stage.device)

    return made(stage, stage.scratch / f"{name}-{weight}", make) / f"{name}-{weight}.gguf"


def made(stage, folder, make):
    """The folder, whole and as these scripts make it: what was cut short, or is another's, is made anew."""
    scripts = [Path(__file__).with_name(f"{name}.py") for name in ("checkpoints", "gguf", "shapes", "vocabulary")]
    maker = hashlib.sha256(b"".join(script.read_bytes() for script in scripts)).hexdigest()
    mark = folder / "made-by"
    if not mark.exists() or mark.read_text() != maker:
        shutil.rmtree(folder, ignore_errors=True)
        started = time.monotonic()
        make(folder)
        size = sum(path.stat().st_size for path in folder.iterdir())
        mark.write_text(maker)
        stage.note(f"made {folder.name}: {size / 1e9:.2f} GB in {time.monotonic() - started:.1f} s")
        if not stage.cpu:
            gc.collect()
            torch.cuda.empty_cache()
    return folder
