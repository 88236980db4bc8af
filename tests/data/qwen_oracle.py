"""Qwen-1's tokenizer by Python `tiktoken`: the independent oracle of the tests and benchmarks.

`encoding()` reads demo/vocabulary/qwen.tiktoken; `encode()` normalises to NFC first, as the model's
own tokenizer does.
"""

import base64
import pathlib
import unicodedata

import tiktoken

VOCABULARY = pathlib.Path(__file__).resolve().parents[2] / "demo/vocabulary/qwen.tiktoken"
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPECIALS += [f"<|extra_{index}|>" for index in range(205)]


def encoding() -> tiktoken.Encoding:
    lines = VOCABULARY.read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    specials = {surface: len(ranks) + index for index, surface in enumerate(SPECIALS)}
    return tiktoken.Encoding(
        "qwen", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=specials
    )


def encode(oracle: tiktoken.Encoding, text: str, parse_specials: bool) -> list[int]:
    allowed = "all" if parse_specials else set()
    nfc = unicodedata.normalize("NFC", text)
    return oracle.encode(nfc, allowed_special=allowed, disallowed_special=())
