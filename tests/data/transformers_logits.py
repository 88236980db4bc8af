#!/usr/bin/env python3
"""Compares the library's logits on a GPU with those of `transformers`.

    transformers_logits.py TEST_BINARY [CASE...]

TEST_BINARY is the built test `cuda` (`cargo test --features cuda --test cuda --no-run` names it);
its tool `write_logits` runs the library. Needs torch, transformers (5.17 was used) and safetensors.

Qwen-1's arithmetic is that of `transformers`' Qwen2 without grouped heads, as long as neither
dynamic NTK nor log-n is on: so a random Qwen-1 checkpoint is written, and its tensors, renamed, are
run by Qwen2ForCausalLM in float64 (norms and softmax in float32, as its code has it). One case has
the width of the 72B model.

Tolerance, relative to the rms of the logits: the library rounds to 16 bits about 8 times a layer
where float64 does not round: sqrt(8 layers) eps / sqrt(12) with eps 2^-7 (bf16) or 2^-10 (fp16);
twice that is allowed, and eight times that for the largest single error.
"""

import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

# layers, heads, head_dim, width of the MLP, rows of the vocabulary, dtype, rotary base
CASES = {
    "heads-of-128": (3, 4, 128, 1000, 1000, torch.bfloat16, 1e6),
    "heads-of-64": (3, 3, 64, 520, 1008, torch.float16, 1e4),
    "width-of-7b": (2, 32, 128, 11008, 2000, torch.bfloat16, 1e4),
    "width-of-72b": (1, 64, 128, 24576, 2048, torch.bfloat16, 1e6),
}
TOKENS, CHUNKS = 224, (129, 71)


def tensors(case):
    """(published name, tensor) of every weight."""
    layers, heads, head_dim, width, vocab, dtype, _ = case
    hidden = heads * head_dim
    generator = torch.Generator(device="cuda").manual_seed(1)

    def normal(shape, mean, deviation):
        values = torch.randn(shape, generator=generator, device="cuda", dtype=torch.float32)
        return (mean + deviation * values).to(dtype)

    yield "transformer.wte.weight", normal((vocab, hidden), 0, 1)
    for index in range(layers):
        layer = f"transformer.h.{index}"
        yield f"{layer}.ln_1.weight", normal((hidden,), 1, 0.1)
        yield f"{layer}.attn.c_attn.weight", normal((3 * hidden, hidden), 0, hidden**-0.5)
        yield f"{layer}.attn.c_attn.bias", normal((3 * hidden,), 0, 0.4)
        yield f"{layer}.attn.c_proj.weight", normal((hidden, hidden), 0, 0.7 * hidden**-0.5)
        yield f"{layer}.ln_2.weight", normal((hidden,), 1, 0.1)
        yield f"{layer}.mlp.w1.weight", normal((width, hidden), 0, hidden**-0.5)
        yield f"{layer}.mlp.w2.weight", normal((width, hidden), 0, hidden**-0.5)
        yield f"{layer}.mlp.c_proj.weight", normal((hidden, width), 0, 0.7 * width**-0.5)
    yield "transformer.ln_f.weight", normal((hidden,), 1, 0.1)
    yield "lm_head.weight", normal((vocab, hidden), 0, 2 * hidden**-0.5)


def write_checkpoint(folder, case, weights):
    layers, heads, head_dim, width, vocab, dtype, base = case
    config = {
        "architectures": ["QWenLMHeadModel"],
        "model_type": "qwen",
        "hidden_size": heads * head_dim,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "kv_channels": head_dim,
        "layer_norm_epsilon": 1e-6,
        "rotary_emb_base": base,
        "seq_length": 8192,
        "use_dynamic_ntk": False,
        "use_logn_attn": False,
        "vocab_size": vocab,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
    }
    (folder / "config.json").write_text(json.dumps(config))
    on_host = {name: tensor.cpu() for name, tensor in weights.items()}
    save_file(on_host, folder / "model.safetensors")


def rename(name, tensor):
    """The names and tensors that Qwen2 has for a published one."""
    for old, new in [("transformer.wte", "model.embed_tokens"), ("transformer.ln_f", "model.norm")]:
        if name.startswith(old):
            return {name.replace(old, new): tensor}
    if name.startswith("lm_head"):
        return {name: tensor}
    for old, new in [
        ("transformer.h", "model.layers"),
        ("ln_1", "input_layernorm"),
        ("ln_2", "post_attention_layernorm"),
        ("mlp.w1", "mlp.up_proj"),
        ("mlp.w2", "mlp.gate_proj"),
        ("mlp.c_proj", "mlp.down_proj"),
        ("attn.c_proj", "self_attn.o_proj"),
    ]:
        name = name.replace(old, new)
    if "attn.c_attn" not in name:
        return {name: tensor}
    parts = zip("qkv", tensor.chunk(3))
    return {name.replace("attn.c_attn", f"self_attn.{part}_proj"): rows for part, rows in parts}


def expected(case, weights, tokens):
    """Logits of the last position of each of the library's steps, float64."""
    layers, heads, head_dim, width, vocab, _, base = case
    config = Qwen2Config(
        hidden_size=heads * head_dim,
        intermediate_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=vocab,
        rms_norm_eps=1e-6,
        rope_theta=base,
        rope_parameters={"rope_type": "default", "rope_theta": base},
        tie_word_embeddings=False,
        use_sliding_window=False,
        max_position_embeddings=8192,
        attn_implementation="eager",
    )
    # No memory is taken for what is replaced at once.
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config)
    renamed = {}
    for name, tensor in weights.items():
        renamed.update({key: part.double() for key, part in rename(name, tensor).items()})
    model.load_state_dict(renamed, strict=True, assign=True)
    rotary = type(model.model.rotary_emb)(config).cuda()
    wanted = torch.tensor(base ** (-2 / head_dim), dtype=torch.float32)
    assert torch.isclose(rotary.inv_freq[1].cpu(), wanted), "another rotary base was used"
    model.model.rotary_emb = rotary
    with torch.no_grad():
        logits = model.eval()(torch.tensor([tokens], device="cuda")).logits[0]
    first = CHUNKS[0] - 1
    rows = [first, *range(sum(CHUNKS) - 1, len(tokens))]
    assert logits.dtype == torch.float64, logits.dtype
    return logits[rows]


def compare(binary, name):
    """Prints the errors of a case; whether they are within the tolerance."""
    case = CASES[name]
    layers, _, _, _, vocab, dtype, _ = case
    tokens = torch.randint(vocab, (TOKENS,), generator=torch.Generator().manual_seed(2)).tolist()
    weights = dict(tensors(case))
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_checkpoint(folder, case, weights)
        (folder / "tokens.json").write_text(json.dumps(tokens))
        environment = dict(os.environ, QWEN_LOGITS_FOLDER=str(folder), QWEN_REQUIRE_GPU="1")
        command = [binary, "--ignored", "--exact", "logits::write_logits"]
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        if run.returncode != 0:
            print(run.stdout, run.stderr, sep="\n")
            return False
        raw = bytearray((folder / "logits.f32").read_bytes())
    got = torch.frombuffer(raw, dtype=torch.float32).reshape(-1, vocab).double().cuda()
    want = expected(case, weights, tokens)
    assert got.shape == want.shape, (got.shape, want.shape)
    size = want.square().mean().sqrt()
    rows = (got - want).square().mean(-1).sqrt() / size
    rms = rows.square().mean().sqrt().item()
    largest = ((got - want).abs().max() / size).item()
    epsilon = 2**-7 if dtype == torch.bfloat16 else 2**-10
    allowed = 2 * math.sqrt(8 * layers) * epsilon / math.sqrt(12)
    good = math.isfinite(rms) and rms < allowed and largest < 8 * allowed
    if not good:
        print("rms error of each row:", " ".join(f"{row:.1e}" for row in rows.tolist()))
    agree = (got.argmax(-1) == want.argmax(-1)).float().mean().item()
    print(
        f"{name:<14} rows {len(want)}: rms error {rms:.2e}, largest {largest:.2e}, "
        f"allowed {allowed:.2e}; same likeliest token {agree:.0%}: {'ok' if good else 'WRONG'}"
    )
    return good


def main():
    binary, *names = sys.argv[1:]
    results = [compare(binary, name) for name in names or CASES]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
