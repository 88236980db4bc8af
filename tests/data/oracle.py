#!/usr/bin/env python3
"""Qwen-1 in plain numpy and float64: what the library's numbers and words are judged by.

    oracle.py golden                      writes golden.safetensors beside each tiny checkpoint, and
                                          hidden.safetensors beside those of HIDDEN
    oracle.py chat FOLDER "question"      one greedy ChatML reply, token ids and text
    oracle.py logits FOLDER 1,2,3 [--prompt-tokens P] [--emulate]   logits, one JSON list a row

demo_greedy.json is what `oracle.py chat --emulate demo/chat-model "What are the planets of the
solar system, in order?"` printed. Each of its tokens leads the next best by at least 0.22, four
times the rounding noise of bf16 in this model's logits (0.055 rms): no right forward pass differs.

demo_int4_greedy.json is what `oracle.py chat demo/chat-model-int4 "How do plants make food?" --max-tokens
48` printed. Each of its tokens leads by at least 0.03; rounding everything to f16, of which the library
rounds only the cache, moves these logits by 0.0097 rms.

Written to be read next to the definition of the model, with no cache and no batching: a longer
sequence is simply computed again. Every position's logits come from one causal pass; the only
thing that depends on where the prompt ended is the dynamic NTK factor, which is chosen by the
prompt's length and then stays.

`--emulate` rounds, to the weights' dtype, what a backend with 2-byte weights rounds: the input of
every linear layer, and q, k, v as they enter attention. Sums stay wide. With f32 weights it does
nothing. Without it nothing is ever rounded.

golden.safetensors holds, for T tokens of which P are the prompt:
    <kind>.<P>+<T-P>.tokens   I32 [T]
    <kind>.<P>+<T-P>.logits   F32 [rows, vocab]; the rows are the last positions, ending with T-1:
                              kind `exact` and `emulated` with T = P: all T positions,
                              with T > P: positions P-1 and later.
f32 checkpoints have `exact` only; the others `emulated`, and `exact` at two lengths.

hidden.safetensors holds the hidden states behind the last norm of whole prompts:
    <kind>.<T>.tokens   I32 [T]
    <kind>.<T>.hidden   F32 [T, hidden]; kind `exact`, for 2-byte weights also `emulated`
"""

import argparse
import base64
import json
import pathlib

import ml_dtypes
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

ROUNDING = {"BF16": ml_dtypes.bfloat16, "F16": np.float16}
TINY = pathlib.Path(__file__).resolve().parent / "tiny"
HIDDEN = ["plain-f32", "ntk-logn-f32", "ntk-logn-bf16"]
# The published split pattern of Qwen-1's tokenizer, a fact of the file format.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Model:
    """A checkpoint folder and its forward pass."""

    def __init__(self, folder, emulate=False):
        self.folder = pathlib.Path(folder)
        self.config = json.loads((self.folder / "config.json").read_text())
        self.files = self.find_tensors()
        self.heads = self.config["num_attention_heads"]
        self.head_dim = self.config["kv_channels"]
        self.train_length = self.config["seq_length"]
        self.dtype = self.open_tensor("lm_head.weight")[1]
        self.rounding = ROUNDING.get(self.dtype) if emulate else None

    def find_tensors(self):
        """Tensor name -> path of the file that holds it."""
        index = self.folder / "model.safetensors.index.json"
        if index.exists():
            weight_map = json.loads(index.read_text())["weight_map"]
            return {name: self.folder / file for name, file in weight_map.items()}
        path = self.folder / "model.safetensors"
        with safe_open(path, "numpy") as file:
            return {name: path for name in file.keys()}

    def open_tensor(self, name):
        with safe_open(self.files[name], "numpy") as file:
            return file.get_tensor(name), file.get_slice(name).get_dtype()

    def weight(self, name):
        stem = name.removesuffix(".weight")
        if f"{stem}.qweight" in self.files:
            return self.dequantised(stem)
        return self.open_tensor(name)[0].astype(np.float64)

    def dequantised(self, stem):
        """The quantised linear `stem` as [outputs, inputs]: scale * (code - zero)."""
        settings = self.config["quantization_config"]
        offset = 0 if settings.get("checkpoint_format") == "gptq_v2" else 1
        words, zeros, scales, groups = (
            self.open_tensor(f"{stem}.{part}")[0]
            for part in ("qweight", "qzeros", "scales", "g_idx")
        )
        # Both are packed lowest first: along inputs, and along outputs.
        codes = unpacked(words.T, settings["bits"])
        zeros = unpacked(zeros, settings["bits"]).T + offset
        return scales.T[:, groups].astype(np.float64) * (codes - zeros[:, groups])

    def round(self, values):
        """What a backend keeps of `values` where it keeps the weights' dtype."""
        if self.rounding is None:
            return values
        return values.astype(self.rounding).astype(np.float64)

    def linear(self, values, name):
        """values [T, in] times weight [out, in] transposed, plus the bias of a quantised one."""
        product = self.round(values) @ self.weight(name).T
        bias = name.removesuffix("weight") + "bias"
        # c_attn's, which every model has, is added where it is used.
        if bias in self.files and not bias.endswith("c_attn.bias"):
            product = product + self.weight(bias)
        return product

    def norm(self, values, name):
        """RMSNorm over the last axis."""
        mean_square = np.mean(values**2, axis=-1, keepdims=True)
        scale = 1.0 / np.sqrt(mean_square + self.config["layer_norm_epsilon"])
        return values * scale * self.weight(name)

    def rotary(self, num_tokens, prompt_tokens):
        """cos and sin [T, head_dim / 2] at positions 0..T-1."""
        base = self.config["rotary_emb_base"]
        if self.config["use_dynamic_ntk"]:
            alpha = ntk_alpha(prompt_tokens, self.train_length)
            base *= alpha ** (self.head_dim / (self.head_dim - 2))
        frequencies = base ** (-np.arange(0, self.head_dim, 2) / self.head_dim)
        angles = np.outer(np.arange(num_tokens), frequencies)
        return np.cos(angles), np.sin(angles)

    def log_n(self, num_tokens):
        """The query factor [T]: 1 up to the training length S, then ln(position + 1) / ln(S)."""
        count = np.arange(1, num_tokens + 1)
        factor = np.log(count) / np.log(self.train_length)
        return np.where(count <= self.train_length, 1.0, factor)

    def attention(self, values, layer, prompt_tokens):
        """values [T, hidden] -> [T, hidden], each token seeing itself and those before it."""
        num_tokens = len(values)
        qkv = self.linear(values, f"{layer}.attn.c_attn.weight")
        qkv = qkv + self.weight(f"{layer}.attn.c_attn.bias")
        # [3, heads, T, head_dim]
        qkv = qkv.reshape(num_tokens, 3, self.heads, self.head_dim).transpose(1, 2, 0, 3)
        cos, sin = self.rotary(num_tokens, prompt_tokens)
        query, key, value = rotate(qkv[0], cos, sin), rotate(qkv[1], cos, sin), qkv[2]
        if self.config["use_logn_attn"]:
            query = query * self.log_n(num_tokens)[:, None]
        query, key, value = self.round(query), self.round(key), self.round(value)
        scores = query @ key.transpose(0, 2, 1) / np.sqrt(self.head_dim)
        scores[:, np.triu(np.ones((num_tokens, num_tokens), bool), 1)] = -np.inf
        mixed = softmax(scores) @ value
        mixed = mixed.transpose(1, 0, 2).reshape(num_tokens, -1)
        return self.linear(mixed, f"{layer}.attn.c_proj.weight")

    def mlp(self, values, layer):
        up = self.linear(values, f"{layer}.mlp.w1.weight")
        gate = self.linear(values, f"{layer}.mlp.w2.weight")
        return self.linear(up * silu(gate), f"{layer}.mlp.c_proj.weight")

    def logits(self, tokens, prompt_tokens=None, rows=None):
        """Logits [rows, vocab] of the last `rows` positions (all, if not given) of `tokens`, whose
        first `prompt_tokens` (all, if not given) were the prompt."""
        hidden = self.hidden(tokens, prompt_tokens or len(tokens))
        return self.linear(hidden[-(rows or len(tokens)) :], "lm_head.weight")

    def hidden(self, tokens, prompt_tokens):
        """The states behind the last norm [T, hidden]."""
        hidden = self.weight("transformer.wte.weight")[tokens]
        for index in range(self.config["num_hidden_layers"]):
            layer = f"transformer.h.{index}"
            normed = self.norm(hidden, f"{layer}.ln_1.weight")
            hidden = hidden + self.attention(normed, layer, prompt_tokens)
            hidden = hidden + self.mlp(self.norm(hidden, f"{layer}.ln_2.weight"), layer)
        return self.norm(hidden, "transformer.ln_f.weight")


def unpacked(words, bits):
    """Words [rows, n] of codes -> [rows, n * 32 / bits] as float64."""
    bytes_of = np.ascontiguousarray(words).view(np.uint8).astype(np.float64)
    if bits == 8:
        return bytes_of
    high, low = np.divmod(bytes_of, 16)
    return np.stack([low, high], axis=-1).reshape(len(words), -1)


def ntk_alpha(prompt_tokens, train_length):
    """1 up to the training length, then 3 up to twice it, 7 up to four times, and so on."""
    return max(1.0, 2.0 ** np.ceil(np.log2(prompt_tokens / train_length) + 1) - 1)


def rotate(values, cos, sin):
    """values [heads, T, head_dim]: pair (i, i + head_dim / 2) turns by angle i."""
    first, second = np.split(values, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def softmax(scores):
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def silu(values):
    return values / (1.0 + np.exp(-values))


def golden(folder):
    """Writes golden.safetensors: lengths on both sides of every threshold of NTK and log-n."""
    exact, emulated = Model(folder), Model(folder, emulate=True)
    length = exact.train_length
    prefills = [1, length - 1, length, length + 1, 2 * length, 2 * length + 1, 4 * length + 3]
    # Decoding past the training length, and past the next NTK step, with the prompt's factor.
    cases = [(prompt, prompt) for prompt in prefills] + [(10, 26), (20, 40)]
    generator = np.random.default_rng(len(exact.files))
    arrays = {}
    for prompt, total in cases:
        tokens = generator.integers(0, exact.config["vocab_size"], total)
        rows = total if total == prompt else total - prompt + 1
        models = {"exact": exact} if emulated.rounding is None else {"emulated": emulated}
        if total in (length + 1, 4 * length + 3):
            models["exact"] = exact
        for kind, model in models.items():
            name = f"{kind}.{prompt}+{total - prompt}"
            arrays[f"{name}.tokens"] = tokens.astype(np.int32)
            arrays[f"{name}.logits"] = model.logits(tokens, prompt, rows).astype(np.float32)
    save_file(arrays, folder / "golden.safetensors")
    (folder / "golden.safetensors").chmod(0o644)


def hidden_states(folder):
    """Writes hidden.safetensors: lengths on both sides of where NTK and log-n begin."""
    exact, emulated = Model(folder), Model(folder, emulate=True)
    length = exact.train_length
    generator = np.random.default_rng(1 + len(exact.files))
    arrays = {}
    for total in [1, length - 1, 2 * length + 1]:
        tokens = generator.integers(0, exact.config["vocab_size"], total)
        models = {"exact": exact}
        if emulated.rounding is not None:
            models["emulated"] = emulated
        for kind, model in models.items():
            arrays[f"{kind}.{total}.tokens"] = tokens.astype(np.int32)
            arrays[f"{kind}.{total}.hidden"] = model.hidden(tokens, total).astype(np.float32)
    save_file(arrays, folder / "hidden.safetensors")
    (folder / "hidden.safetensors").chmod(0o644)


def load_tokenizer(folder):
    """The folder's vocabulary in tiktoken: specials follow the ordinary tokens."""
    import tiktoken

    ranks = {}
    for line in (folder / "qwen.tiktoken").read_text().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    specials = {name: len(ranks) + index for index, name in enumerate(names)}
    return tiktoken.Encoding(
        "qwen", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=specials
    )


def chat_tokens(tokenizer, messages):
    """ChatML, each piece encoded by itself as the published chat() does."""
    start, end = (tokenizer.encode_single_token(name) for name in ("<|im_start|>", "<|im_end|>"))
    newline = tokenizer.encode_ordinary("\n")
    tokens = []
    for role, content in messages:
        pieces = tokenizer.encode_ordinary(role) + newline + tokenizer.encode_ordinary(content)
        tokens += [start, *pieces, end, *newline]
    return [*tokens, start, *tokenizer.encode_ordinary("assistant"), *newline]


def chat(folder, question, max_tokens, emulate):
    """A greedy reply to one question under the default system prompt."""
    model, tokenizer = Model(folder, emulate), load_tokenizer(folder)
    messages = [("system", "You are a helpful assistant."), ("user", question)]
    prompt = chat_tokens(tokenizer, messages)
    stops = [tokenizer.encode_single_token(name) for name in tokenizer.special_tokens_set]
    reply = []
    while len(reply) < max_tokens:
        logits = model.logits(prompt + reply, len(prompt), rows=1)[0]
        token = int(np.argmax(logits[: tokenizer.n_vocab]))
        if token in stops:
            break
        reply.append(token)
    print(json.dumps({"prompt": prompt, "reply": reply, "text": tokenizer.decode(reply)}))


def main():
    parser = argparse.ArgumentParser(description="Qwen-1 in numpy float64.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("golden")
    ask = commands.add_parser("chat")
    ask.add_argument("folder", type=pathlib.Path)
    ask.add_argument("question")
    ask.add_argument("--max-tokens", type=int, default=64)
    ask.add_argument("--emulate", action="store_true")
    show = commands.add_parser("logits")
    show.add_argument("folder", type=pathlib.Path)
    show.add_argument("tokens", help="ids separated by commas")
    show.add_argument("--prompt-tokens", type=int)
    show.add_argument("--emulate", action="store_true")
    options = parser.parse_args()
    if options.command == "golden":
        for folder in sorted(TINY.iterdir()):
            golden(folder)
        for name in HIDDEN:
            hidden_states(TINY / name)
    elif options.command == "chat":
        chat(options.folder, options.question, options.max_tokens, options.emulate)
    else:
        tokens = [int(token) for token in options.tokens.split(",")]
        for row in Model(options.folder, options.emulate).logits(tokens, options.prompt_tokens):
            print(json.dumps(row.tolist()))


if __name__ == "__main__":
    main()
