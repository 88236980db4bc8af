#!/usr/bin/env python3
"""Writes a checkpoint of exactly a published structure, with random weights: for measuring and tests.

    make_published.py OUT                                     Qwen-72B-Chat-Int4, 41 GB
    make_published.py OUT --shape qwen-7b-chat --bits 8 --layers 4 --vocabulary qwen.tiktoken
    make_published.py OUT --bits 16                           Qwen-72B-Chat in bf16, 145 GB
    make_published.py --list --shape qwen-72b-chat            names, dtypes and shapes; writes nothing

Names, shapes, dtypes, shards with an index, config.json, quantize_config.json and
generation_config.json are the published ones (`src/quant.rs` has the layout of the linears); shards
hold about 2 GB. Codes are uniform, zero points in the middle, groups in order; scales are such that a
matrix keeps the size of what goes through it, so that logits are finite. The same arguments give the
same bytes.

Needs numpy only. Shards are written by as many processes as there are cores, in pieces: 41 GB take as
long as the disk does.
"""

import argparse
import functools
import json
import multiprocessing
import pathlib
import shutil
import struct
import zlib

import numpy as np

# Layers, heads, FFN, rows of the vocabulary, rotary base, seq_length, NTK and log-n.
SHAPES = {
    "qwen-1.8b-chat": (24, 16, 5504, 151936, 10000, 8192, True),
    "qwen-7b-chat": (32, 32, 11008, 151936, 10000, 8192, True),
    "qwen-14b-chat": (40, 40, 13696, 152064, 10000, 2048, True),
    "qwen-72b-chat": (80, 64, 24576, 152064, 1000000, 32768, False),
    # None that was published: the same structure at a size for tests.
    "small": (2, 2, 384, 304, 1000000, 32768, False),
}
HEAD_DIM, GROUP_SIZE = 128, 128
SHARD_BYTES = 2 << 30
PIECE_BYTES = 64 << 20
DTYPES = {"BF16": np.dtype("<u2"), "F16": np.dtype("<f2"), "I32": np.dtype("<i4")}
INDEX = "model.safetensors.index.json"


def tensors(shape, bits):
    """(name, dtype, shape, kind) of every tensor, in the order of the model. `kind` says what is in it."""
    layers, heads, ffn, rows, *_ = shape
    hidden, half = HEAD_DIM * heads, "BF16" if bits == 16 else "F16"
    yield "transformer.wte.weight", half, (rows, hidden), ("normal", 0.02)
    for index in range(layers):
        block = f"transformer.h.{index}"
        yield f"{block}.ln_1.weight", half, (hidden,), ("norm",)
        yield from linear(f"{block}.attn.c_attn", 3 * hidden, hidden, bits, ("normal", 0.3))
        yield from linear(f"{block}.attn.c_proj", hidden, hidden, bits)
        yield f"{block}.ln_2.weight", half, (hidden,), ("norm",)
        yield from linear(f"{block}.mlp.w1", ffn, hidden, bits)
        yield from linear(f"{block}.mlp.w2", ffn, hidden, bits)
        yield from linear(f"{block}.mlp.c_proj", hidden, ffn, bits)
    yield "transformer.ln_f.weight", half, (hidden,), ("norm",)
    yield "lm_head.weight", half, (rows, hidden), ("normal", 2 / hidden**0.5)


def linear(name, outputs, inputs, bits, bias=("constant", 0)):
    """The five tensors of a quantised linear; in 16 bits its weight, and a bias that is not all 0."""
    if bits == 16:
        if bias != ("constant", 0):
            yield f"{name}.bias", "BF16", (outputs,), bias
        yield f"{name}.weight", "BF16", (outputs, inputs), ("normal", inputs**-0.5)
        return
    per_word, groups = 32 // bits, -(-inputs // GROUP_SIZE)
    # Stored zero points are one less.
    middle = 0x77777777 if bits == 4 else 0x7F7F7F7F
    scale = (12 / inputs) ** 0.5 / (1 << bits)
    yield f"{name}.bias", "F16", (outputs,), bias
    yield f"{name}.g_idx", "I32", (inputs,), ("groups",)
    yield f"{name}.qweight", "I32", (inputs // per_word, outputs), ("random",)
    yield f"{name}.qzeros", "I32", (groups, outputs // per_word), ("constant", middle)
    yield f"{name}.scales", "F16", (groups, outputs), ("uniform", scale)


def num_bytes(tensor):
    _, dtype, shape, _ = tensor
    return int(np.prod(shape)) * DTYPES[dtype].itemsize


def shards(all_tensors, limit):
    """Lists of tensors of at most `limit` bytes, or of one tensor."""
    lists, size = [[]], 0
    for tensor in all_tensors:
        if lists[-1] and size + num_bytes(tensor) > limit:
            lists.append([])
            size = 0
        lists[-1].append(tensor)
        size += num_bytes(tensor)
    return lists


@functools.lru_cache(maxsize=1)
def normals():
    """65536 numbers as a normal distribution has them, in an order that means nothing."""
    random = np.random.Generator(np.random.SFC64(1))
    return random.standard_normal(1 << 16, np.float32)


def encode(values, dtype):
    """Numbers in f32 as they are stored; bf16 by cutting off."""
    if dtype == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2")
    return values.astype(DTYPES[dtype])


def pieces(tensor):
    """The bytes of a tensor, a piece at a time."""
    name, dtype, shape, (kind, *value) = tensor
    dtype = DTYPES[dtype]
    random = np.random.Generator(np.random.SFC64(zlib.crc32(name.encode())))
    total, step = int(np.prod(shape)), PIECE_BYTES // dtype.itemsize
    for start in range(0, total, step):
        count = min(step, total - start)
        if kind == "random":
            yield random.bytes(4 * count)
        elif kind == "constant":
            yield np.full(count, value[0], dtype)
        elif kind == "groups":
            yield (np.arange(start, start + count) // GROUP_SIZE).astype(dtype)
        elif kind == "uniform":
            yield (value[0] * random.uniform(0.8, 1.2, count)).astype(dtype)
        else:
            mean, deviation = (1, 0.1) if kind == "norm" else (0, value[0])
            table = encode(mean + deviation * normals(), tensor[1])
            yield table[np.frombuffer(random.bytes(2 * count), np.uint16)]


def header(some):
    """What a safetensors file begins with; the data after it begins on a multiple of 8."""
    entries, end = {"__metadata__": {"format": "pt"}}, 0
    for tensor in some:
        name, dtype, shape, _ = tensor
        start, end = end, end + num_bytes(tensor)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write_shard(job):
    path, some = job
    with open(path, "wb") as file:
        file.write(header(some))
        for tensor in some:
            for piece in pieces(tensor):
                file.write(piece)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_configs(folder, shape, bits):
    layers, heads, ffn, rows, rope_base, seq_length, stretched = shape
    settings = {
        "bits": bits,
        "group_size": GROUP_SIZE,
        "damp_percent": 0.01,
        "desc_act": False,
        "static_groups": False,
        "sym": True,
        "true_sequential": True,
        "model_name_or_path": None,
        "model_file_base_name": "model",
    }
    config = {
        "architectures": ["QWenLMHeadModel"],
        "attn_dropout_prob": 0.0,
        "bf16": bits == 16,
        "emb_dropout_prob": 0.0,
        "fp16": bits != 16,
        "fp32": False,
        "hidden_size": HEAD_DIM * heads,
        "initializer_range": 0.02,
        "intermediate_size": 2 * ffn,
        "kv_channels": HEAD_DIM,
        "layer_norm_epsilon": 1e-6,
        "max_position_embeddings": 32768,
        "model_type": "qwen",
        "no_bias": True,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "onnx_safe": None,
        "quantization_config": {**settings, "quant_method": "gptq"},
        "rotary_emb_base": rope_base,
        "rotary_pct": 1.0,
        "scale_attn_weights": True,
        "seq_length": seq_length,
        "tie_word_embeddings": False,
        "tokenizer_class": "QWenTokenizer",
        "torch_dtype": "bfloat16" if bits == 16 else "float16",
        "transformers_version": "4.32.0",
        "use_cache": True,
        "use_dynamic_ntk": stretched,
        "use_flash_attn": "auto",
        "use_logn_attn": stretched,
        "vocab_size": rows,
    }
    # Of the vocabulary, <|endoftext|> has the first id behind the ordinary ones.
    end_of_text = 151643 if rows > 151643 else rows - 24
    generation = {
        "chat_format": "chatml",
        "do_sample": True,
        "eos_token_id": end_of_text,
        "max_new_tokens": 512,
        "max_window_size": 24000,
        "pad_token_id": end_of_text,
        "repetition_penalty": 1.1,
        "top_k": 0,
        "top_p": 0.8,
    }
    if bits == 16:
        del config["quantization_config"]
    else:
        write_json(folder / "quantize_config.json", settings)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", generation)


def write(folder, shape, options):
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("*.safetensors"), folder / INDEX]:
        old.unlink(missing_ok=True)
    lists = shards(tensors(shape, options.bits), options.shard_bytes)
    names = [f"model-{number:05}-of-{len(lists):05}.safetensors" for number in range(1, len(lists) + 1)]
    with multiprocessing.Pool(min(options.processes, len(lists))) as pool:
        jobs = [(folder / name, some) for name, some in zip(names, lists)]
        # The largest first, so that none is left alone at the end.
        jobs.sort(key=lambda job: -sum(map(num_bytes, job[1])))
        for _ in pool.imap_unordered(write_shard, jobs):
            pass
    weight_map = {tensor[0]: name for name, some in zip(names, lists) for tensor in some}
    total = sum(num_bytes(tensor) for some in lists for tensor in some)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    write_configs(folder, shape, options.bits)
    if options.vocabulary:
        shutil.copyfile(options.vocabulary, folder / "qwen.tiktoken")
    print(f"{folder}: {len(weight_map)} tensors, {total} bytes, {len(lists)} shards")


def main():
    parser = argparse.ArgumentParser(description="Write a checkpoint of a published structure.")
    parser.add_argument("out", nargs="?", type=pathlib.Path, help="folder to write")
    parser.add_argument("--list", action="store_true", help="print the tensors, write nothing")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen-72b-chat")
    parser.add_argument("--bits", type=int, choices=(4, 8, 16), default=4)
    parser.add_argument("--layers", type=int, help="fewer than the shape has")
    parser.add_argument("--shard-bytes", type=int, default=SHARD_BYTES)
    parser.add_argument("--vocabulary", type=pathlib.Path, help="a qwen.tiktoken to copy")
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count())
    options = parser.parse_args()
    layers, *rest = SHAPES[options.shape]
    shape = (options.layers or layers, *rest)
    if options.list:
        total = 0
        for tensor in tensors(shape, options.bits):
            name, dtype, extents, _ = tensor
            print(name, dtype, *extents)
            total += num_bytes(tensor)
        print(f"{total} bytes")
    elif options.out:
        write(options.out, shape, options)
    else:
        parser.error("give a folder, or --list")


if __name__ == "__main__":
    main()
