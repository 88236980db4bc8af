#!/usr/bin/env python3
"""Writes quantised checkpoints of random codes: the committed ones, and large ones of a published shape.

    make_quantised.py --tiny                                  tests/data/quantised/, with oracles
    make_quantised.py OUT --shape qwen-72b-chat --bits 4      names, shapes, index and configurations
                                                              of Qwen-72B-Chat-Int4, 41 GB
    make_quantised.py OUT --shape qwen-72b-chat --bits 8 --layers 2

A tiny folder holds, besides the checkpoint, dequantised.safetensors (each linear [outputs, inputs] in
f32, from the codes before they were packed) and golden.safetensors (as oracle.py describes it; the
oracle unpacks what was written in its own way). Between them the folders have both widths,
groups of 32 and of all inputs, a last group cut short, both conventions of zeros and zeros that wrap
a word, inputs in order of activation, and biases that are zero and are not.

The codes are uniform, the scales such that a matrix keeps the size of what goes through it.
"""

import argparse
import pathlib
import shutil
import sys
import zlib

import numpy as np
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(HERE.parent.parent / "examples"))

import make_checkpoint
import oracle
from quantise_model import INDEX, LINEARS, linear, quantisation, write_configs, write_shards

# name: (heads, head_dim, ffn, shards, settings, symmetric, with biases)
TINY = {
    "int4": (4, 16, 128, 2, quantisation(4, 32), True, False),
    "int8-v2": (2, 32, 64, 1, quantisation(8, 32, checkpoint_format="gptq_v2"), True, True),
    "int4-zeros": (4, 12, 72, 1, quantisation(4, 32, sym=False), False, False),
    "int8-one-group": (2, 16, 40, 1, quantisation(8, -1, sym=False), False, True),
    "int4-order": (4, 16, 96, 1, quantisation(4, 32, desc_act=True), True, True),
    "int8-order": (2, 24, 72, 1, quantisation(8, 32, desc_act=True, sym=False), False, False),
}
LAYERS, SEQ_LENGTH = 1, 16
TINY_PROMPTS = [(1, 1), (17, 17), (40, 40), (20, 30)]

# Layers, heads, FFN, rows of the vocabulary, rotary base, seq_length, NTK and log-n.
SHAPES = {
    "qwen-1.8b-chat": (24, 16, 5504, 151936, 10000, 8192, True),
    "qwen-7b-chat": (32, 32, 11008, 151936, 10000, 8192, True),
    "qwen-14b-chat": (40, 40, 13696, 152064, 10000, 2048, True),
    "qwen-72b-chat": (80, 64, 24576, 152064, 1000000, 32768, False),
}
SHARD_BYTES = 2 << 30


def generator_of(name):
    return np.random.default_rng(zlib.crc32(name.encode()))


def extents(hidden, ffn):
    """(outputs, inputs) of the five linears."""
    shapes = ((3 * hidden, hidden), (hidden, hidden), (ffn, hidden), (ffn, hidden), (hidden, ffn))
    return dict(zip(LINEARS, shapes))


def random_parts(name, outputs, inputs, settings, symmetric, order):
    """Codes, zeros, scales and groups of one linear."""
    random, bits = generator_of(name), settings["bits"]
    levels = 1 << bits
    size = inputs if settings["group_size"] == -1 else settings["group_size"]
    num_groups = -(-inputs // size)
    codes = random.integers(0, levels, (inputs, outputs), np.uint8)
    zeros = np.full((num_groups, outputs), levels // 2)
    if not symmetric:
        first = 0 if settings.get("checkpoint_format") == "gptq_v2" else 1
        zeros = random.integers(first, first + levels, zeros.shape)
        # The largest that can be stored: one more than any code in `gptq`.
        zeros[:, 0] = first + levels - 1
    scales = (12 / inputs) ** 0.5 / levels * random.uniform(0.8, 1.2, zeros.shape)
    groups = np.arange(inputs) // size
    return codes, zeros, scales.astype(np.float16), random.permutation(groups) if order else groups


def plain(name, shape, mean, deviation):
    values = generator_of(name).standard_normal(shape, np.float32)
    return (mean + deviation * values).astype(np.float16)


def layer(index, hidden, ffn, settings, symmetric=True, biased=False):
    """The tensors of layer `index`, and its linears before packing."""
    block, dense = f"transformer.h.{index}", {}
    tensors = {f"{block}.{norm}.weight": plain(f"{index}{norm}", hidden, 1, 0.1) for norm in ("ln_1", "ln_2")}
    for short, (outputs, inputs) in extents(hidden, ffn).items():
        name = f"{block}.{short}"
        parts = random_parts(name, outputs, inputs, settings, symmetric, settings["desc_act"])
        has_bias = biased or short == "attn.c_attn"
        bias = plain(f"{name}.bias", outputs, 0, 0.3) if has_bias else np.zeros(outputs)
        tensors.update(linear(name, *parts, bias, settings))
        dense[f"{name}.weight"] = parts
    return tensors, dense


def dequantised(parts):
    """[outputs, inputs] in f32, where each product is exact."""
    codes, zeros, scales, groups = parts
    difference = codes.astype(np.float32) - zeros[groups].astype(np.float32)
    return np.ascontiguousarray((scales[groups].astype(np.float32) * difference).T)


def tiny(name):
    heads, head_dim, ffn, shards, settings, symmetric, biased = TINY[name]
    folder, hidden = HERE / "quantised" / name, heads * head_dim
    folder.mkdir(parents=True)
    rows = make_checkpoint.VOCAB_ROWS
    first, dense = layer(0, hidden, ffn, settings, symmetric, biased)
    last = {
        "transformer.wte.weight": plain("wte", (rows, hidden), 0, 1),
        "transformer.ln_f.weight": plain("ln_f", hidden, 1, 0.1),
        "lm_head.weight": plain("lm_head", (rows, hidden), 0, 2 / hidden**0.5),
    }
    files = [("model.safetensors", {**first, **last})]
    if shards == 2:
        files = [(f"model-0000{n}-of-00002.safetensors", part) for n, part in ((1, first), (2, last))]
    write_shards(folder, files)
    shape = argparse.Namespace(heads=heads, head_dim=head_dim, ffn=ffn, layers=LAYERS)
    vars(shape).update(ntk=True, logn=True, rope_base=10000.0, seq_length=SEQ_LENGTH, vocab_rows=rows)
    write_configs(folder, make_checkpoint.config(shape), settings)
    make_checkpoint.write_json(folder / "generation_config.json", make_checkpoint.generation_config())
    make_checkpoint.write_vocabulary(folder / "qwen.tiktoken")
    weights = {key: dequantised(parts) for key, parts in dense.items()}
    save_file(weights, folder / "dequantised.safetensors")
    golden(folder, weights)
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)


def golden(folder, weights):
    """golden.safetensors, after a look at whether the oracle unpacks what was packed."""
    exact, emulated = oracle.Model(folder), oracle.Model(folder, emulate=True)
    for name, weight in weights.items():
        assert np.array_equal(exact.weight(name), weight), f"{folder}: {name}"
    arrays, random = {}, generator_of(folder.name)
    for prompt, total in TINY_PROMPTS:
        tokens = random.integers(0, exact.config["vocab_size"], total)
        rows = total if total == prompt else total - prompt + 1
        for kind, model in (("exact", exact), ("emulated", emulated)):
            case = f"{kind}.{prompt}+{total - prompt}"
            arrays[f"{case}.tokens"] = tokens.astype(np.int32)
            arrays[f"{case}.logits"] = model.logits(tokens, prompt, rows).astype(np.float32)
    save_file(arrays, folder / "golden.safetensors")


def published_tensors(shape, layers, settings):
    """Dictionaries of tensors, in the order of the model."""
    _, heads, ffn, rows, *_ = shape
    hidden = 128 * heads
    yield {"transformer.wte.weight": plain("wte", (rows, hidden), 0, 0.02)}
    for index in range(layers):
        yield layer(index, hidden, ffn, settings)[0]
    yield {"transformer.ln_f.weight": plain("ln_f", hidden, 1, 0.1)}
    yield {"lm_head.weight": plain("lm_head", (rows, hidden), 0, 2 / hidden**0.5)}


def shards(pieces, limit):
    """Joins dictionaries of tensors to shards of about `limit` bytes."""
    shard, size = {}, 0
    for piece in pieces:
        nbytes = sum(array.nbytes for array in piece.values())
        if shard and size + nbytes > limit:
            yield shard
            shard, size = {}, 0
        shard.update(piece)
        size += nbytes
    yield shard


def published(folder, options):
    """A checkpoint of a published shape, one shard in memory at a time."""
    shape = SHAPES[options.shape]
    layers = options.layers or shape[0]
    settings = quantisation(options.bits, 128)
    folder.mkdir(parents=True, exist_ok=True)
    numbered = enumerate(shards(published_tensors(shape, layers, settings), options.shard_bytes), 1)
    write_shards(folder, ((f"shard-{number:05}", tensors) for number, tensors in numbered))
    rename_shards(folder)
    _, heads, ffn, rows, base, seq_length, stretched = shape
    sizes = argparse.Namespace(heads=heads, head_dim=128, ffn=ffn, layers=layers, vocab_rows=rows)
    vars(sizes).update(ntk=stretched, logn=stretched, rope_base=base, seq_length=seq_length)
    write_configs(folder, make_checkpoint.config(sizes), settings)
    defaults = {**make_checkpoint.generation_config(), "eos_token_id": 151643, "pad_token_id": 151643}
    make_checkpoint.write_json(folder / "generation_config.json", defaults)
    if options.vocabulary:
        shutil.copyfile(options.vocabulary, folder / "qwen.tiktoken")


def rename_shards(folder):
    """Gives the files the names that tell their number, known only at the end."""
    paths = sorted(folder.glob("shard-*"))
    index = folder / INDEX
    text = index.read_text() if index.exists() else ""
    for number, path in enumerate(paths, 1):
        name = f"model-{number:05}-of-{len(paths):05}.safetensors"
        if len(paths) == 1:
            name = "model.safetensors"
        text = text.replace(f'"{path.name}"', f'"{name}"')
        path.rename(folder / name)
    if text:
        index.write_text(text)


def main():
    parser = argparse.ArgumentParser(description="Write quantised checkpoints of random codes.")
    parser.add_argument("out", nargs="?", type=pathlib.Path, help="folder to write")
    parser.add_argument("--tiny", action="store_true", help="write the committed ones")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen-72b-chat")
    parser.add_argument("--bits", type=int, choices=(4, 8), default=4)
    parser.add_argument("--layers", type=int, help="fewer than the shape has")
    parser.add_argument("--shard-bytes", type=int, default=SHARD_BYTES)
    parser.add_argument("--vocabulary", type=pathlib.Path, help="a qwen.tiktoken to copy")
    options = parser.parse_args()
    if options.tiny:
        shutil.rmtree(HERE / "quantised", ignore_errors=True)
        for name in TINY:
            tiny(name)
    elif options.out:
        published(options.out, options)
    else:
        parser.error("give a folder, or --tiny")


if __name__ == "__main__":
    main()
