#!/usr/bin/env python3
"""Writes tests/data/hostile/: copies of one minimal checkpoint with one defect each.

tests/hostile.rs opens every folder and demands that folder's own error. Only the files that can
matter to a defect are written. `sound` and `sound-sharded` have no defect; the `vocabulary-*`
folders have one in their vocabulary only. The `quantised-*` folders are of another minimal checkpoint,
whose linears are quantised to 4 bits.
"""

import base64
import copy
import json
import pathlib
import shutil
import struct

HOSTILE = pathlib.Path(__file__).resolve().parent / "hostile"
LAYERS, HEADS, HEAD_DIM, FFN, VOCAB = 1, 2, 2, 3, 8
HIDDEN = HEADS * HEAD_DIM
NUM_SPECIALS_WITH_ROWS = 3

CONFIG = {
    "architectures": ["QWenLMHeadModel"],
    "model_type": "qwen",
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "kv_channels": HEAD_DIM,
    "layer_norm_epsilon": 1e-6,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "seq_length": 16,
    "use_dynamic_ntk": False,
    "use_logn_attn": False,
    "vocab_size": VOCAB,
    "no_bias": True,
    "tie_word_embeddings": False,
}
GENERATION = {"chat_format": "chatml", "eos_token_id": 5, "top_p": 0.8, "max_new_tokens": 16}
BLOCK = "transformer.h.0"
SHAPES = {
    "transformer.wte.weight": [VOCAB, HIDDEN],
    f"{BLOCK}.ln_1.weight": [HIDDEN],
    f"{BLOCK}.attn.c_attn.weight": [3 * HIDDEN, HIDDEN],
    f"{BLOCK}.attn.c_attn.bias": [3 * HIDDEN],
    f"{BLOCK}.attn.c_proj.weight": [HIDDEN, HIDDEN],
    f"{BLOCK}.ln_2.weight": [HIDDEN],
    f"{BLOCK}.mlp.w1.weight": [FFN, HIDDEN],
    f"{BLOCK}.mlp.w2.weight": [FFN, HIDDEN],
    f"{BLOCK}.mlp.c_proj.weight": [HIDDEN, FFN],
    "transformer.ln_f.weight": [HIDDEN],
    "lm_head.weight": [VOCAB, HIDDEN],
}
BIAS = f"{BLOCK}.attn.c_attn.bias"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def header_of(names):
    """(header object, data bytes) of a file with these tensors, all F16."""
    header, end = {}, 0
    for name in names:
        size = 2
        for extent in SHAPES[name]:
            size *= extent
        header[name] = {"dtype": "F16", "shape": SHAPES[name], "data_offsets": [end, end + size]}
        end += size
    # Small numbers that differ from place to place.
    data = b"".join(struct.pack("<H", 0x2000 + 7 * index % 0x1000) for index in range(end // 2))
    return header, data


def pack(header, data):
    """A file's bytes; `header` may be an object, text or bytes."""
    if not isinstance(header, (str, bytes)):
        header = json.dumps(header, separators=(",", ":"))
    if isinstance(header, str):
        header = header.encode()
    return struct.pack("<Q", len(header)) + header + data


def vocabulary(num_tokens):
    """qwen.tiktoken with the tokens a, b, c..."""
    letters = (base64.b64encode(bytes([97 + rank])).decode() for rank in range(num_tokens))
    return "".join(f"{letter} {rank}\n" for rank, letter in enumerate(letters))


def write(name, files):
    """One case: the sound files with `files` instead (None leaves a file out)."""
    folder = HOSTILE / name
    folder.mkdir(parents=True)
    sound = {"config.json": json.dumps(CONFIG, indent=1), SINGLE: pack(*header_of(SHAPES))}
    for file, content in {**sound, **files}.items():
        if content is None:
            continue
        if not isinstance(content, bytes):
            content = content.encode()
        (folder / file).write_bytes(content)


def config_case(name, **changes):
    """A config.json with some values changed (None drops the key)."""
    config = {**CONFIG, **changes}
    config = {key: value for key, value in config.items() if value is not None}
    write(f"config-{name}", {"config.json": json.dumps(config, indent=1), SINGLE: None})


def generation_case(name, text):
    write(f"generation-{name}", {"generation_config.json": text, SINGLE: None})


def header_case(name, change):
    """A file whose header went through `change(header, data)`, which may return new data."""
    header, data = copy.deepcopy(header_of(SHAPES))
    data = change(header, data) or data
    write(name, {SINGLE: pack(header, data)})


def index_case(name, change=None, index=None, second=None):
    """A sharded checkpoint with a changed index, or a second shard of other tensors."""
    names = list(SHAPES)
    parts = [names[:5], names[5:]]
    weight_map = {name: file for file, part in zip(SHARDS, parts) for name in part}
    if change:
        change(weight_map)
    index = index or json.dumps({"metadata": {}, "weight_map": weight_map}, indent=1)
    shards = [pack(*header_of(parts[0])), pack(*header_of(second or parts[1]))]
    write(name, {SINGLE: None, INDEX: index, SHARDS[0]: shards[0], SHARDS[1]: shards[1]})


def config_cases():
    text = json.dumps(CONFIG, indent=1)
    write("config-missing", {"config.json": None, SINGLE: None})
    write("config-truncated", {"config.json": text[:100], SINGLE: None})
    write("config-not-an-object", {"config.json": "[1, 2]", SINGLE: None})
    config_case("nan", layer_norm_epsilon=float("nan"))
    config_case("wrong-architecture", architectures=["LlamaForCausalLM"])
    config_case("wrong-model-type", model_type="qwen2")
    config_case("key-missing", hidden_size=None)
    config_case("wrong-type", num_hidden_layers="two")
    config_case("negative", num_attention_heads=-2)
    config_case("zero-layers", num_hidden_layers=0)
    config_case("giant", hidden_size=2**62)
    config_case("giant-vocabulary", vocab_size=2**64 - 1)
    config_case("odd-head", num_attention_heads=4, kv_channels=3, hidden_size=12)
    config_case("heads-misfit", kv_channels=4)
    config_case("odd-width", intermediate_size=7)
    config_case("tied", tie_word_embeddings=True)
    config_case("biases", no_bias=False)
    config_case("part-rotary", rotary_pct=0.25)
    config_case("epsilon", layer_norm_epsilon=0)
    config_case("length-one", seq_length=1)


def generation_cases():
    generation_case("truncated", json.dumps(GENERATION)[:30])
    generation_case("format", json.dumps({**GENERATION, "chat_format": "alpaca"}))
    generation_case("top-p", json.dumps({**GENERATION, "top_p": 1.5}))
    generation_case("eos", json.dumps({**GENERATION, "eos_token_id": [5, -1]}))
    generation_case("stop-words", json.dumps({**GENERATION, "stop_words_ids": [[5], []]}))


def file_cases():
    header, data = header_of(SHAPES)
    sound = pack(header, data)
    text = json.dumps(header, separators=(",", ":"))
    length = len(text)
    write("weights-missing", {SINGLE: None})
    write("file-empty", {SINGLE: b""})
    write("file-cut-in-length", {SINGLE: sound[:5]})
    write("file-cut-in-header", {SINGLE: sound[: length // 2]})
    write("file-cut-in-data", {SINGLE: sound[:-10]})
    write("file-too-long", {SINGLE: sound + bytes(6)})
    write("header-huge", {SINGLE: struct.pack("<Q", 2**63) + sound[8:]})
    write("header-over-limit", {SINGLE: struct.pack("<Q", 100_000_001) + sound[8:]})
    write("header-past-end", {SINGLE: struct.pack("<Q", len(sound) - 7) + sound[8:]})
    write("header-bad-json", {SINGLE: pack(text[:40] + "!" + text[41:], data)})
    write("header-not-utf8", {SINGLE: pack(text.encode().replace(b"wte", b"w\xffe"), data)})
    write("header-not-an-object", {SINGLE: pack("[]", data)})
    bias = json.dumps(header[BIAS], separators=(",", ":"))
    write("tensor-twice", {SINGLE: pack(f'{text[:-1]},"{BIAS}":{bias}}}', data)})


def tensor_cases():
    def change_bias(key, value):
        return lambda header, data: header[BIAS].update({key: value})

    def shift(by):
        def change(header, data):
            for entry in list(header.values())[3:]:
                entry["data_offsets"] = [offset + by for offset in entry["data_offsets"]]
            return data + bytes(by) if by > 0 else data[:by]

        return change

    def transpose(header, data):
        header[f"{BLOCK}.mlp.c_proj.weight"].update(shape=[FFN, HIDDEN])

    def integers(header, data):
        header[BIAS].update(dtype="I8", shape=[6 * HIDDEN])

    def rename(header, data):
        header[f"{BLOCK}.attn.c_proj.bias"] = header.pop(BIAS)

    def drop_last(header, data):
        begin, end = header.pop("lm_head.weight")["data_offsets"]
        return data[:begin]

    def empty(header, data):
        end = header["lm_head.weight"]["data_offsets"][1]
        entry = {"dtype": "F16", "shape": [0, 2**63], "data_offsets": [end, end]}
        header["transformer.h.1.ln_1.weight"] = entry

    header_case("offsets-overlap", shift(-4))
    header_case("offsets-gap", shift(4))
    header_case("offsets-reversed", change_bias("data_offsets", [192, 168]))
    header_case("offsets-outside", change_bias("data_offsets", [10**6, 10**6 + 24]))
    header_case("offsets-overflow", change_bias("data_offsets", [2**64 - 24, 2**64 - 1]))
    header_case("offsets-negative", change_bias("data_offsets", [-24, 0]))
    header_case("shape-disagrees", change_bias("shape", [11]))
    header_case("shape-overflow", change_bias("shape", [2**40, 2**40, 2**40]))
    header_case("shape-transposed", transpose)
    header_case("shape-three-dimensions", change_bias("shape", [3, 2, 2]))
    header_case("dtype-integer", integers)
    header_case("dtype-invented", change_bias("dtype", "F12"))
    header_case("tensor-unknown", rename)
    header_case("tensor-missing", drop_last)
    header_case("tensor-empty", empty)


def index_cases():
    head = "lm_head.weight"

    def move_head(name, file):
        index_case(f"index-{name}", lambda weight_map: weight_map.update({head: file}))

    twice = f'{{"weight_map": {{"{head}": "{SHARDS[0]}", "{head}": "{SHARDS[1]}"}}}}'
    index_case("index-truncated", index='{"weight_map": {"lm_head.weight": "mo')
    index_case("index-no-map", index='{"metadata": {}}')
    index_case("index-empty-map", index='{"weight_map": {}}')
    index_case("index-twice", index=twice)
    index_case("index-shards-share", second=list(SHAPES)[4:])
    move_head("escape", "../sound/model.safetensors")
    move_head("absolute", "/dev/zero")
    move_head("parent", "..")
    move_head("shard-missing", "model-00003-of-00003.safetensors")
    move_head("misplaced", SHARDS[0])


def vocabulary_cases():
    fits = VOCAB - NUM_SPECIALS_WITH_ROWS
    write("vocabulary-over-rows", {"qwen.tiktoken": vocabulary(fits + 1)})
    write("vocabulary-missing", {})
    write("vocabulary-gap", {"qwen.tiktoken": vocabulary(fits).replace(" 2\n", " 3\n")})
    write("vocabulary-bad-base64", {"qwen.tiktoken": vocabulary(fits).replace("==", "*", 1)})


# A quantised checkpoint: two heads of 4, an MLP of 8, so that each linear has one word of inputs.
QUANT_CONFIG = {"bits": 4, "group_size": 32, "desc_act": False, "quant_method": "gptq"}
LINEARS = {"attn.c_attn": 24, "attn.c_proj": 8, "mlp.w1": 8, "mlp.w2": 8, "mlp.c_proj": 8}
OUTPUT = f"{BLOCK}.attn.c_proj"


def quantised_tensors():
    """Name -> (dtype, shape, bytes) of a sound quantised checkpoint."""
    half = struct.pack("<H", 0x2001)
    plain = {
        "transformer.wte.weight": [VOCAB, 8],
        f"{BLOCK}.ln_1.weight": [8],
        f"{BLOCK}.ln_2.weight": [8],
        "transformer.ln_f.weight": [8],
        "lm_head.weight": [VOCAB, 8],
    }
    tensors = {
        name: ("F16", shape, half * (8 * (VOCAB if len(shape) == 2 else 1)))
        for name, shape in plain.items()
    }
    for linear, outputs in LINEARS.items():
        words, name = outputs // 8, f"{BLOCK}.{linear}"
        tensors[f"{name}.bias"] = ("F16", [outputs], bytes(2 * outputs))
        tensors[f"{name}.g_idx"] = ("I32", [8], bytes(32))
        tensors[f"{name}.qweight"] = ("I32", [1, outputs], b"\x52\x71\x9a\xf3" * outputs)
        tensors[f"{name}.qzeros"] = ("I32", [1, words], b"\x77" * (4 * words))
        tensors[f"{name}.scales"] = ("F16", [1, outputs], half * outputs)
    return tensors


def quantised_case(name, settings=None, changes=None, files=None, config=None):
    """The sound one with other settings, tensors (None leaves one out), files or configuration."""
    tensors = {**quantised_tensors(), **(changes or {})}
    header, data = {}, b""
    for key, entry in tensors.items():
        if entry is None:
            continue
        dtype, shape, content = entry
        offsets = [len(data), len(data) + len(content)]
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += content
    settings = {**QUANT_CONFIG, **(settings or {})}
    settings = {key: value for key, value in settings.items() if value is not None}
    sizes = {"hidden_size": 8, "kv_channels": 4, "intermediate_size": 16}
    whole = {**CONFIG, **sizes, "quantization_config": settings, **(config or {})}
    write(
        name if name.startswith("sound") else f"quantised-{name}",
        {"config.json": json.dumps(whole, indent=1), SINGLE: pack(header, data), **(files or {})},
    )


def quantised_cases():
    quantised_case("sound-quantised")
    quantised_case("bits", {"bits": 3})
    quantised_case("bits-missing", {"bits": None})
    quantised_case("method", {"quant_method": "awq"})
    quantised_case("group-zero", {"group_size": 0})
    quantised_case("group-odd", {"group_size": 100})
    quantised_case("group-negative", {"group_size": -2})
    quantised_case("format", {"checkpoint_format": "marlin"})
    quantised_case("not-an-object", config={"quantization_config": "gptq"})
    other = json.dumps({**QUANT_CONFIG, "bits": 8})
    quantised_case("files-differ", files={"quantize_config.json": other})
    quantised_case("undeclared", config={"quantization_config": None})
    dense = pack(*header_of(SHAPES))
    hidden = {key: CONFIG[key] for key in ("hidden_size", "kv_channels", "intermediate_size")}
    quantised_case("nothing", files={SINGLE: dense}, config=hidden)
    quantised_tensor_cases()


def quantised_tensor_cases():
    def changed(case, part, dtype, shape, content):
        quantised_case(case, changes={f"{OUTPUT}.{part}": (dtype, shape, content)})

    def groups(last):
        return struct.pack("<8i", *[0] * 7, last)

    changed("codes-dtype", "qweight", "F16", [1, 16], bytes(32))
    changed("codes-wide", "qweight", "I64", [1, 4], bytes(32))
    changed("codes-transposed", "qweight", "I32", [8, 1], bytes(32))
    changed("codes-of-8-bits", "qweight", "I32", [2, 8], bytes(64))
    changed("zeros-shape", "qzeros", "I32", [2, 1], bytes(8))
    changed("scales-dtype", "scales", "F32", [1, 8], bytes(32))
    changed("scales-short", "scales", "F16", [1, 7], bytes(14))
    changed("groups-beyond", "g_idx", "I32", [8], groups(1))
    changed("groups-below-zero", "g_idx", "I32", [8], groups(-1))
    changed("groups-short", "g_idx", "I32", [7], bytes(28))
    changed("bias-length", "bias", "F16", [9], bytes(18))
    changed("bias-dtype", "bias", "I32", [8], bytes(32))
    changed("weight-too", "weight", "F16", [8, 8], bytes(128))
    quantised_case("codes-missing", changes={f"{OUTPUT}.qweight": None})
    quantised_case("scales-missing", changes={f"{OUTPUT}.scales": None})
    missing = {f"{OUTPUT}.g_idx": None}
    quantised_case("groups-missing", {"desc_act": True}, changes=missing)
    quantised_case("sound-quantised-no-groups", changes=missing)


def main():
    shutil.rmtree(HOSTILE, ignore_errors=True)
    tokens = vocabulary(VOCAB - NUM_SPECIALS_WITH_ROWS)
    write("sound", {"qwen.tiktoken": tokens, "generation_config.json": json.dumps(GENERATION)})
    index_case("sound-sharded")
    config_cases()
    generation_cases()
    file_cases()
    tensor_cases()
    index_cases()
    vocabulary_cases()
    quantised_cases()


if __name__ == "__main__":
    main()
