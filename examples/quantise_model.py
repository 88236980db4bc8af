#!/usr/bin/env python3
"""Quantises a Qwen-1 checkpoint to Int4 or Int8 in the layout of the published ones (GPTQ).

    quantise_model.py --bits 4                        demo/chat-model -> demo/chat-model-int4
    quantise_model.py IN OUT --bits 8 --group-size 128

Reads any unquantised folder of the family and writes qweight, qzeros, scales, g_idx and bias for the
five linears of each layer, the rest in f16, the same shards, an index, and both configurations, as
the published Int4 and Int8 checkpoints have them (`src/quant.rs` has the layout). Symmetric, inputs
in their own order.

Int4 is GPTQ: inputs are quantised one after another, and the error of each is made up for in those
that follow, by how the inputs of the linear go together in a forward pass over a little chat text.
Groups of 64 by default, because they divide the demo model's widths (576 and 1536); the published
checkpoints have groups of 128. Int8, and Int4 with `--nearest`, take the nearest code for each weight.
The forward pass is numpy: for models much larger than the demo model only `--nearest` ends in time.

The folder appears under its final name only when complete.
"""

import argparse
import json
import pathlib
import shutil
import sys
import tempfile

import ml_dtypes  # noqa: F401  (numpy learns bfloat16 from it)
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
LINEARS = ("attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2", "mlp.c_proj")
INDEX = "model.safetensors.index.json"
DAMPING = 0.01
# One exchange each; what the model is asked to keep in mind while it is being quantised.
TEXT = [
    (
        "What is the capital of Italy?",
        "The capital of Italy is Rome. It lies on the river Tiber, and almost three million people "
        "live there.",
    ),
    (
        "Why do leaves change colour in autumn?",
        "In autumn the days grow shorter and colder. Trees stop making chlorophyll, which is green, "
        "and the yellow and orange colours that were hidden before can be seen.",
    ),
    (
        "List the months of the year, in order.",
        "January, February, March, April, May, June, July, August, September, October, November and "
        "December.",
    ),
    (
        "Tell me a short story about a fox.",
        "Once upon a time a fox lived at the edge of a forest. One cold night she found a lost lamb. "
        "She was hungry, but the lamb was afraid, and so she led it home. From that day on the farmer "
        "left her a bowl of milk by the gate.",
    ),
    (
        "How does a bicycle stay upright?",
        "When a bicycle begins to fall to one side, its front wheel turns to that side. The wheels "
        "then move under the weight of the rider again, as long as the bicycle rolls fast enough.",
    ),
    (
        "Write a function in Python that adds two numbers.",
        "Here is a function that adds two numbers:\n\ndef add(a, b):\n    return a + b\n\nYou can call "
        "it with `add(2, 3)`, which returns 5.",
    ),
    (
        "What is the difference between a planet and a star?",
        "A star makes its own light by joining small atoms into larger ones in its core. A planet is "
        "smaller and colder: it travels around a star and shines only in the light of that star. The "
        "Earth and Mars are planets, and the Sun is a star.",
    ),
    (
        "Who wrote Romeo and Juliet?",
        "Romeo and Juliet was written by William Shakespeare, an English poet and playwright, near "
        "the end of the sixteenth century.",
    ),
]
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


def scales_of(part, middle):
    """The scale of each output of part [inputs, outputs], as stored: the one among a few that gives
    the nearest codes the smallest squared error."""
    widest = np.maximum(np.abs(part).max(axis=0), 1e-5) * 2 / (2 * middle - 1)
    best, chosen = np.full(part.shape[1], np.inf), widest
    for clip in CLIPS:
        scale = (clip * widest).astype(np.float16).astype(np.float64)
        error = np.square((nearest(part, scale, middle) - middle) * scale - part).sum(axis=0)
        chosen = np.where(error < best, scale, chosen)
        best = np.minimum(error, best)
    return chosen


def nearest(weights, scale, middle):
    """The nearest code to each weight."""
    return np.clip(np.rint(weights / scale) + middle, 0, 2 * middle - 1)


def round_to_codes(weight, settings, moments):
    """weight [outputs, inputs] -> codes [inputs, outputs], scales [groups, outputs]. `moments`
    [inputs, inputs] is the sum of x x^T over inputs x of the linear, or None."""
    rest = weight.T.astype(np.float64)
    inputs, middle = len(rest), 1 << settings["bits"] - 1
    group_size = inputs if settings["group_size"] == -1 else settings["group_size"]
    spread = None if moments is None else spread_of(moments)
    codes, scales = np.empty(rest.shape, np.uint8), []
    for start in range(0, inputs, group_size):
        end = min(inputs, start + group_size)
        scale = scales_of(rest[start:end], middle)
        scales.append(scale)
        errors = np.zeros((end - start, rest.shape[1]))
        for k in range(start, end):
            codes[k] = nearest(rest[k], scale, middle)
            if spread is not None:
                error = (rest[k] - (codes[k] - float(middle)) * scale) / spread[k, k]
                errors[k - start] = error
                rest[k + 1 : end] -= np.outer(spread[k, k + 1 : end], error)
        if spread is not None:
            rest[end:] -= spread[start:end, end:].T @ errors
    return codes, np.stack(scales)


def spread_of(moments):
    """Upper triangle [inputs, inputs]: row k says how the error of input k, over the element at
    (k, k), is made up for in the inputs after it."""
    damped = moments + DAMPING * np.mean(np.diag(moments)) * np.eye(len(moments))
    return np.linalg.cholesky(np.linalg.inv(damped)).T


def moments_of(source):
    """Linear -> the sum of x x^T over its inputs x, in a forward pass over TEXT."""
    sys.path.append(str(ROOT / "tests" / "data"))
    import oracle

    class Recorder(oracle.Model):
        """A model that remembers what goes into its linears."""

        def __init__(self, folder):
            super().__init__(folder)
            self.moments = {}

        def linear(self, values, name):
            stem = name.removesuffix(".weight")
            self.moments[stem] = self.moments.get(stem, 0) + values.T @ values
            return super().linear(values, name)

    model, tokenizer = Recorder(source), oracle.load_tokenizer(source)
    end = tokenizer.encode_single_token("<|im_end|>")
    for question, answer in TEXT:
        messages = [("system", "You are a helpful assistant."), ("user", question)]
        prompt = oracle.chat_tokens(tokenizer, messages)
        model.logits([*prompt, *tokenizer.encode_ordinary(answer), end])
    return model.moments


def convert(tensors, settings, moments):
    """The tensors of one shard, by their new names."""
    result = {}
    for name, values in tensors.items():
        stem, _, kind = name.rpartition(".")
        if not stem.endswith(LINEARS):
            result[name] = values.astype(np.float16)
        elif kind == "weight":
            codes, scales = round_to_codes(values, settings, moments.get(stem))
            zeros = np.full(scales.shape, 1 << settings["bits"] - 1)
            size = settings["group_size"]
            groups = np.arange(len(codes)) // (len(codes) if size == -1 else size)
            bias = tensors.get(f"{stem}.bias", np.zeros(len(values)))
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


def read_shards(folder, settings, moments):
    """(file name, quantised tensors) of each file of an unquantised checkpoint."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        yield path.name, convert(tensors, settings, moments)


def quantise(source, out, settings, by_text):
    """Writes the folder `out`; with the help of TEXT if so."""
    moments = moments_of(source) if by_text else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        write_shards(partial, read_shards(source, settings, moments))
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
    parser.add_argument("--nearest", action="store_true", help="round each weight by itself")
    options = parser.parse_args()
    if options.group_size != -1 and (options.group_size < 32 or options.group_size % 32):
        parser.error("--group-size: -1 or a multiple of 32, as the library reads them")
    source = options.source.absolute()
    out = options.out or source.with_name(f"{source.name}-int{options.bits}")
    by_text = options.bits == 4 and not options.nearest
    quantise(source, out.absolute(), quantisation(options.bits, options.group_size), by_text)
    print(f"quantised model: {out} is ready")


if __name__ == "__main__":
    main()
