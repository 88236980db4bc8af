#!/usr/bin/env python3
"""Writes random Qwen-1 checkpoints of any shape: seeded, so the same options give the same bytes.

    make_checkpoint.py --tiny                    the committed ones, in tests/data/tiny/
    make_checkpoint.py OUT --layers 2 --heads 4 --head-dim 64 --ffn 512 --dtype bf16 --shards 3

The scales keep a random model lively: attention looks at something (scores have a standard
deviation around 1), the residual stream grows slowly, logits spread by about 2. Each tensor has
its own generator, so a checkpoint of any size is written one shard at a time.

The vocabulary is 256 single bytes in Qwen's order and a few merges; the three chat specials and
ten extras have rows. Writing the tiny ones again removes their golden logits: run oracle.py after.
"""

import argparse
import base64
import json
import pathlib
import zlib

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

DTYPES = {"bf16": ml_dtypes.bfloat16, "f16": np.float16, "f32": np.float32}

# Every token is two earlier ones joined, as byte-pair encoding makes them.
MERGES = (
    "he|in|re|on|er|at|st|en|ou|is|it| t| a| s|us| the|ing|ed|or|an| and|user|ist|ant"
).split("|")
NUM_ORDINARY = 256 + len(MERGES)
NUM_SPECIALS_WITH_ROWS = 13
VOCAB_ROWS = NUM_ORDINARY + NUM_SPECIALS_WITH_ROWS

# name: (layers, heads, head_dim, ffn, ntk, logn, dtype, shards). Between them every switch is on
# and off, every dtype occurs, heads divide by 4 and do not, head_dim is and is not a power of two.
# The training length is 16 tokens, so that the NTK and log-n thresholds lie at small lengths.
TINY = {
    "plain-f32": (2, 4, 8, 40, False, False, "f32", 1),
    "ntk-logn-f32": (2, 4, 8, 40, True, True, "f32", 3),
    "plain-bf16": (1, 1, 64, 75, False, False, "bf16", 1),
    "ntk-bf16": (2, 2, 16, 44, True, False, "bf16", 2),
    "ntk-logn-bf16": (2, 4, 12, 72, True, True, "bf16", 4),
    "logn-f16": (2, 4, 8, 52, False, True, "f16", 1),
}
TINY_SEQ_LENGTH = 16


def single_bytes():
    """The 256 bytes in GPT-2's order: printable ones first, as in the published vocabulary."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return visible + [byte for byte in range(256) if byte not in visible]


def write_vocabulary(path):
    tokens = [bytes([byte]) for byte in single_bytes()] + [text.encode() for text in MERGES]
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    path.write_text("".join(lines))


def shapes(shape):
    """(name, shape, mean, standard deviation) of every tensor, in the published order."""
    hidden, ffn = shape.heads * shape.head_dim, shape.ffn
    yield "transformer.wte.weight", (shape.vocab_rows, hidden), 0.0, 1.0
    for index in range(shape.layers):
        layer = f"transformer.h.{index}"
        yield f"{layer}.ln_1.weight", (hidden,), 1.0, 0.1
        yield f"{layer}.attn.c_attn.weight", (3 * hidden, hidden), 0.0, 1.0 / hidden**0.5
        yield f"{layer}.attn.c_attn.bias", (3 * hidden,), 0.0, 0.4
        yield f"{layer}.attn.c_proj.weight", (hidden, hidden), 0.0, 0.7 / hidden**0.5
        yield f"{layer}.ln_2.weight", (hidden,), 1.0, 0.1
        yield f"{layer}.mlp.w1.weight", (ffn, hidden), 0.0, 1.0 / hidden**0.5
        yield f"{layer}.mlp.w2.weight", (ffn, hidden), 0.0, 1.0 / hidden**0.5
        yield f"{layer}.mlp.c_proj.weight", (hidden, ffn), 0.0, 0.7 / ffn**0.5
    yield "transformer.ln_f.weight", (hidden,), 1.0, 0.1
    yield "lm_head.weight", (shape.vocab_rows, hidden), 0.0, 2.0 / hidden**0.5


def random_tensor(seed, name, size, mean, deviation, dtype):
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    values = generator.standard_normal(size, dtype=np.float32)
    return (mean + deviation * values).astype(dtype)


def write_weights(folder, shape):
    """One file, or `shards` files with runs of tensors and an index."""
    tensors = list(shapes(shape))
    bounds = np.linspace(0, len(tensors), shape.shards + 1).astype(int)
    weight_map, total_size = {}, 0
    for number in range(shape.shards):
        file = "model.safetensors"
        if shape.shards > 1:
            file = f"model-{number + 1:05}-of-{shape.shards:05}.safetensors"
        arrays = {
            name: random_tensor(shape.seed, name, size, mean, deviation, DTYPES[shape.dtype])
            for name, size, mean, deviation in tensors[bounds[number] : bounds[number + 1]]
        }
        save_file(arrays, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)
        weight_map.update(dict.fromkeys(arrays, file))
        total_size += sum(array.nbytes for array in arrays.values())
    if shape.shards > 1:
        index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def config(shape):
    return {
        "architectures": ["QWenLMHeadModel"],
        "model_type": "qwen",
        "hidden_size": shape.heads * shape.head_dim,
        "intermediate_size": 2 * shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "kv_channels": shape.head_dim,
        "layer_norm_epsilon": 1e-6,
        "rotary_emb_base": shape.rope_base,
        "rotary_pct": 1.0,
        "seq_length": shape.seq_length,
        "max_position_embeddings": 32768,
        "use_dynamic_ntk": shape.ntk,
        "use_logn_attn": shape.logn,
        "vocab_size": shape.vocab_rows,
        "no_bias": True,
        "tie_word_embeddings": False,
    }


def generation_config():
    return {
        "chat_format": "chatml",
        "eos_token_id": NUM_ORDINARY,
        "pad_token_id": NUM_ORDINARY,
        "max_window_size": 6144,
        "max_new_tokens": 512,
        "do_sample": True,
        "top_k": 0,
        "top_p": 0.8,
        "repetition_penalty": 1.1,
    }


def write_checkpoint(folder, shape):
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("*.safetensors"), *folder.glob("*.json")]:
        old.unlink()
    write_vocabulary(folder / "qwen.tiktoken")
    write_json(folder / "config.json", config(shape))
    write_json(folder / "generation_config.json", generation_config())
    write_weights(folder, shape)


def tiny_shape(defaults, name):
    layers, heads, head_dim, ffn, ntk, logn, dtype, shards = TINY[name]
    values = dict(vars(defaults), layers=layers, heads=heads, head_dim=head_dim, ffn=ffn, ntk=ntk)
    values.update(logn=logn, dtype=dtype, shards=shards, seq_length=TINY_SEQ_LENGTH)
    values.update(seed=sorted(TINY).index(name), vocab_rows=VOCAB_ROWS)
    # As published: models without NTK have the larger rotary base.
    values.update(rope_base=10000.0 if ntk else 1000000.0)
    return argparse.Namespace(**values)


def main():
    parser = argparse.ArgumentParser(description="Write random Qwen-1 checkpoints.")
    parser.add_argument("out", nargs="?", type=pathlib.Path, help="folder to write")
    parser.add_argument("--tiny", action="store_true", help="write the committed ones")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--ffn", type=int, default=512, help="width of w1 and w2 each")
    parser.add_argument("--vocab-rows", type=int, default=VOCAB_ROWS)
    parser.add_argument("--seq-length", type=int, default=8192)
    parser.add_argument("--rope-base", type=float, default=10000.0)
    parser.add_argument("--ntk", action="store_true")
    parser.add_argument("--logn", action="store_true")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.tiny:
        for name in TINY:
            folder = pathlib.Path(__file__).resolve().parent / "tiny" / name
            write_checkpoint(folder, tiny_shape(options, name))
    elif options.out:
        write_checkpoint(options.out, options)
    else:
        parser.error("give a folder, or --tiny")


if __name__ == "__main__":
    main()
