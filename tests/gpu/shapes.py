"""The shapes of the models that are made up here, and what serving them costs at least."""

from dataclasses import dataclass

# Bytes of a weight as the device stores it: GGUF's Q8_0 and Q4_0 are packed with a scale and an offset of 16 bits for
# every 32 numbers.
WEIGHT_BYTES = {"bf16": 2.0, "w8a16": 1.125, "w4a16": 0.625}


@dataclass(frozen=True)
class Shape:
    """A Llama-like decoder."""

    layers: int
    width: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    tied: bool

    @property
    def matrices(self):
        """Numbers in the layers' matrices."""
        attention = self.width * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.width * self.hidden)

    @property
    def head(self):
        """Numbers in the matrix that makes logits."""
        return self.vocab * self.width

    @property
    def kv_bytes(self):
        """Bytes of a token's keys and values, in 16 bits."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim

    def step_bytes(self, weight):
        """Bytes of weights that a decode step reads. A tied table stays bf16 whatever the layers are."""
        head = WEIGHT_BYTES["bf16" if self.tied else weight]
        return self.matrices * WEIGHT_BYTES[weight] + self.head * head

    def prefill_operations(self, tokens):
        """Of one prompt: products, causal attention, the last token's logits."""
        attention = 2 * self.layers * self.heads * self.head_dim * tokens**2
        return 2 * self.matrices * tokens + attention + 2 * self.head

    def stream_seconds(self, weight, tokens, bandwidth):
        """The least time of one stream's token, with so many tokens before it."""
        return (self.step_bytes(weight) + self.kv_bytes * tokens) / bandwidth

    def load_seconds(self, streams, prompt, output, bandwidth, rate):
        """The time model of `streams` equal requests side by side, bf16: their operations over the matrix rate, and the
        keys and values that decoding reads over the bandwidth."""
        decode = 2 * (self.matrices + self.head) * streams * output
        operations = streams * self.prefill_operations(prompt) + decode
        read = self.kv_bytes * streams * output * (prompt + output / 2)
        return operations / rate + read / bandwidth


LLAMA_8B = Shape(32, 4096, 14336, 32, 8, 128, 128_256, 16_384, tied=False)
LLAMA_1B = Shape(16, 2048, 8192, 32, 8, 64, 128_256, 16_384, tied=True)
TINY = Shape(2, 128, 256, 4, 2, 64, 2048, 4096, tied=False)
