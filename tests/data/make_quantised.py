#!/usr/bin/env python3
"""Writes the committed quantised checkpoints of random codes, tests/data/quantised/, with oracles.
`make_published.py` writes large ones of a published shape.

A folder holds, besides the checkpoint, dequantised.safetensors (each linear [outputs, inputs] in
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
from quantise_model import LINEARS, linear, quantisation, write_configs, write_shards

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


def main():
    argparse.ArgumentParser(description="Write the committed quantised checkpoints.").parse_args()
    shutil.rmtree(HERE / "quantised", ignore_errors=True)
    for name in TINY:
        tiny(name)


if __name__ == "__main__":
    main()
