#!/usr/bin/env python3
"""Quantises a Qwen-1 checkpoint to Int4 or Int8 in the layout of the published ones (GPTQ).

    quantise_model.py --bits 4                        demo/chat-model -> demo/chat-model-int4
    quantise_model.py IN OUT --bits 8 --group-size 128

Reads any unquantised folder of the family and writes qweight, qzeros, scales, g_idx and bias for the
five linears of each layer, the rest in f16, the same shards, an index, and both configurations, as
the published Int4 and Int8 checkpoints have them (`src/quant.rs` has the layout). Symmetric, inputs
in their own order.

The codes are the nearest ones to each weight, under the scale of each group that gives the smallest
squared error among a few. That is less than GPTQ proper does, which adjusts later weights to the
errors of earlier ones on sample text; the files look the same. Groups of 64 by default, because they
divide the demo model's widths (576 and 1536); the published checkpoints have groups of 128.

The folder appears under its final name only when complete.
"""

import argparse
import json
import pathlib
import shutil
import tempfile

import ml_dtypes  # noqa: F401  (numpy learns bfloat16 from it)
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
LINEARS = ("attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2", "mlp.c_proj")
INDEX = "model.safetensors.index.json"
# Fractions of the scale that just holds a group's largest weight.
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)


def pack_inputs(codes, bits):
    """Codes [inputs, outputs] as words [inputs * bits / 32, outputs], the first input lowest."""
    per_word = 32 // bits
    blocks = codes.astype(np.uint32).reshape(-1, per_word, codes.shape[1])
    shifts = (bits * np.arange(per_word, dtype=np.uint32))[None, :, None]
    return np.bitwise_or.reduce(blocks << shifts, axis=1).view(np.int32)


def pack_outputs(codes, bits):
    """Codes [groups, outputs] as words [groups, outputs * bits / 32], the first output lowest."""
    return np.ascontiguousarray(pack_inputs(np.ascontiguousarray(codes.T), bits).T)


def quantisation(bits, group_size, **changes):
    """The settings that both configuration files have."""
    return {
        "bits": bits,
        "group_size": group_size,
        "damp_percent": 0.01,
        "desc_act": False,
        "static_groups": False,
        "sym": True,
        "true_sequential": True,
        "model_name_or_path": None,
        "model_file_base_name": "model",
        **changes,
    }


def linear(name, codes, zeros, scales, groups, bias, settings):
    """The tensors of a quantised linear from its parts: codes [inputs, outputs], zeros and scales
    [groups, outputs], the group of each input, bias [outputs]."""
    bits = settings["bits"]
    stored = zeros - (0 if settings.get("checkpoint_format") == "gptq_v2" else 1)
    return {
        f"{name}.bias": bias.astype(np.float16),
        f"{name}.g_idx": groups.astype(np.int32),
        f"{name}.qweight": pack_inputs(codes, bits),
        f"{name}.qzeros": pack_outputs(stored, bits),
        f"{name}.scales": scales.astype(np.float16),
    }


def round_to_codes(weight, bits, group_size):
    """weight [outputs, inputs] -> codes [inputs, outputs], scales [groups, outputs]."""
    inputs, middle = weight.shape[1], 1 << bits - 1
    group_size = inputs if group_size == -1 else group_size
    codes = np.empty((inputs, weight.shape[0]), np.uint8)
    scales = []
    for start in range(0, inputs, group_size):
        part = weight[:, start : start + group_size].T
        widest = np.maximum(np.abs(part).max(axis=0), 1e-5) * 2 / (2 * middle - 1)
        best, chosen = np.full(part.shape[1], np.inf), None
        for clip in CLIPS:
            # What is stored is what the codes are rounded for.
            scale = (clip * widest).astype(np.float16).astype(np.float32)
            found = np.clip(np.rint(part / scale) + middle, 0, 2 * middle - 1)
            error = np.square((found - middle) * scale - part).sum(axis=0)
            better = error < best
            if chosen is None:
                chosen = found, scale
            best = np.where(better, error, best)
            chosen = np.where(better, found, chosen[0]), np.where(better, scale, chosen[1])
        codes[start : start + group_size] = chosen[0]
        scales.append(chosen[1])
    return codes, np.stack(scales)


def convert(tensors, settings):
    """The tensors of one shard, by their new names."""
    result = {}
    for name, values in tensors.items():
        stem, _, kind = name.rpartition(".")
        if not stem.endswith(LINEARS):
            result[name] = values.astype(np.float16)
        elif kind == "weight":
            weight = values.astype(np.float32)
            codes, scales = round_to_codes(weight, settings["bits"], settings["group_size"])
            zeros = np.full(scales.shape, 1 << settings["bits"] - 1)
            groups = np.arange(len(codes)) // -(-len(codes) // len(scales))
            if settings["group_size"] != -1:
                groups = np.arange(len(codes)) // settings["group_size"]
            bias = tensors.get(f"{stem}.bias", np.zeros(len(weight)))
            result.update(linear(stem, codes, zeros, scales, groups, bias, settings))
    return result


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_configs(folder, config, settings):
    """config.json and quantize_config.json."""
    changes = {"bf16": False, "fp16": True, "fp32": False, "torch_dtype": "float16"}
    inner = {**settings, "quant_method": "gptq"}
    write_json(folder / "config.json", {**config, **changes, "quantization_config": inner})
    write_json(folder / "quantize_config.json", settings)


def write_shards(folder, shards):
    """Writes (file name, tensors) pairs, and an index where there are several files."""
    weight_map, total_size = {}, 0
    for file, tensors in shards:
        save_file(tensors, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)
        weight_map.update(dict.fromkeys(tensors, file))
        total_size += sum(array.nbytes for array in tensors.values())
    if len(set(weight_map.values())) > 1:
        index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
        write_json(folder / INDEX, index)


def read_shards(folder, settings):
    """(file name, quantised tensors) of each file of an unquantised checkpoint."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        yield path.name, convert(tensors, settings)


def quantise(source, out, settings):
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        write_shards(partial, read_shards(source, settings))
        write_configs(partial, json.loads((source / "config.json").read_text()), settings)
        for name in ("generation_config.json", "qwen.tiktoken"):
            shutil.copyfile(source / name, partial / name)
        partial.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description="Quantise a Qwen-1 checkpoint to Int4 or Int8.")
    model = ROOT / "demo" / "chat-model"
    parser.add_argument("source", nargs="?", type=pathlib.Path, default=model)
    parser.add_argument("out", nargs="?", type=pathlib.Path)
    parser.add_argument("--bits", type=int, choices=(4, 8), default=4)
    parser.add_argument("--group-size", type=int, default=64, help="inputs of a group; -1: all")
    options = parser.parse_args()
    source = options.source.absolute()
    out = options.out or source.with_name(f"{source.name}-int{options.bits}")
    quantise(source, out.absolute(), quantisation(options.bits, options.group_size))
    print(f"quantised model: {out} is ready")


if __name__ == "__main__":
    main()
