#!/usr/bin/env python3
"""Writes tests/data/golden_tokens.jsonl: texts and their ids by Python `tiktoken`.

The first line records the versions used. Each other line is `[text, ids]`, with surface forms of
special tokens taken as text, or `[text, ids, other ids]` where parsing them gives other ids. The
texts are drawn from a fixed seed: Chinese, English, code, emoji, digits, white space, random
Unicode, look-alikes of special tokens. Run it with tiktoken 0.14 installed, after
fetch_vocabulary.py.

Which code points compose under NFC, and which are letters, depends on the version of Unicode. The
tables of Python, of tiktoken's regex engine and of the library are three versions, so the random
texts take only code points that Unicode 3.2 had assigned, which Python's `unicodedata.ucd_3_2_0`
knows: those have kept their category and normal form ever since, but for the few dropped by
`is_stable`.
"""

import json
import pathlib
import random
import sys
import unicodedata

import tiktoken

sys.dont_write_bytecode = True
import qwen_oracle

TARGET = pathlib.Path(__file__).with_name("golden_tokens.jsonl")
SEED = 20231130
PER_KIND = 450

ENGLISH = (
    "the of and to in that model attention tokens You're I'VE don't it's we'll they'd WHO'S "
    "Hello, world! (see above) e.g. naïve café résumé über Straße façade internationalization "
    "antidisestablishmentarianism HTTP/1.1 x86_64 C++ foo_bar camelCase SCREAMING_CASE 3.14159 "
    "don’t “quoted” – — … 50% $19.99 user@example.com https://example.org/a?b=c&d=e#f"
).split()
CHINESE = (
    "你好 世界 今天 天气 怎么样 人工智能 大语言模型 通义千问 请 帮我 写 一首 关于 春天 的 诗 ， 。 ！ ？ 、 ； ： “ ” 《 》 "
    "二〇二三年 北京市 繁體中文 龍 鬱 囍 㐀 𠀀 𪚥 第1章 ３２１ Ａ ｂ ￥ ・ ー 日本語 カタカナ ひらがな 한국어 안녕하세요"
).split()
CODE = [
    "def f(x):\n    return x**2\n", "for (int i = 0; i < n; ++i) {\n\ta[i] += b[i];\n}\n",
    "if __name__ == '__main__':\r\n    main()\r\n", "fn main() -> Result<(), Error> { Ok(()) }",
    "SELECT * FROM t WHERE a >= 10 AND b != 'x';", "#include <stdio.h>\n", "// comment   \n",
    "x = {'a': [1, 2, 3], \"b\": None}", "<div class=\"c\">&nbsp;</div>\n", "0xDEADBEEF", "\\d+\\s*",
    "Thought: I should call it.\nAction: search\nAction Input: {\"q\": \"a\"}\nObservation:",
]
EMOJI = "😀 👍🏽 👨‍👩‍👧‍👦 🇨🇳 ❤️ ✈️ 🏳️‍🌈 ☺ ♥ ⚡ 🀄 🤖 🎉🎉🎉 ©️ 1️⃣ ‼".split()
NUMBERS = "0 7 42 2023 1000000 3.14 -1e-9 1,234 ٣٤٥ १२३ ½ ² Ⅷ ① ㈠ 〇 一二三 𝟙𝟚 0x1F 12:34:56".split()
SPACES = [
    " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\r", " \n", "\n ", "\u00A0", "\u3000", "\u2028",
    "\u2003", "\u0085", "\v", "\f", "\x1C", "\x1F", "\u200B", "\uFEFF", "        ", "\t\t\t",
]
SPECIAL = qwen_oracle.SPECIALS[:6] + [
    "<|extra_204|>", "<|extra_205|>", "<|im_end", "|>", "<|", "<|<|im_end|>|>", "<|IM_END|>",
    "< |im_end|>", "<|im_end|>\u0338", "<|im_start|>system\n", "<|endoftext|><|endoftext|>", "<||>",
]
COMBINING = [
    "e\u0301", "a\u0308\u0323", "A\u030A", "\u1100\u1161\u11A8", "\u0344", "\u2126", "\u212B", "\uFB01",
    "q\u0307\u0323", "\u0958", "\uF900", "s\u0307\u0323", "\u0301", "\u1E9B\u0323", "n\u0303", "'\u017F",
]
ODD = ["\u0000", "\uFFFD", "\uFFFF", "\U0010FFFF", "\uE000", "\x7F", "\u00AD", "\u202E"]


def is_stable(char: str) -> bool:
    """Is `char` one that every Unicode version since 3.2 treats alike?"""
    old, new = unicodedata.ucd_3_2_0, unicodedata
    if old.category(char) in ("Cn", "Cs", "Co"):
        return False
    same_kind = old.category(char)[0] == new.category(char)[0]
    same_form = old.normalize("NFC", char) == new.normalize("NFC", char)
    return same_kind and same_form and old.combining(char) == new.combining(char)


STABLE = [char for char in map(chr, range(0x30000)) if is_stable(char)]
LOW = [char for char in STABLE if ord(char) < 0x3000]


def join(rng: random.Random, parts: list[str], most: int, gaps: list[str]) -> str:
    chosen = (rng.choice(parts) for _ in range(rng.randint(1, most)))
    return "".join(part + rng.choice(gaps) for part in chosen)


def random_unicode(rng: random.Random) -> str:
    pool = rng.choice([STABLE, LOW, [chr(code) for code in range(128)]])
    return "".join(rng.choice(pool) for _ in range(rng.randint(1, 30)))


def runs(rng: random.Random) -> str:
    units = ["a", " ", "\n", "ab", "=", "-", "哈", "!", "0", "\t", "aA", "\u3000", ".", "😀"]
    repeated = (rng.choice(units) * rng.randint(1, 70) for _ in range(rng.randint(1, 4)))
    return "".join(repeated)


KINDS = [
    lambda rng: join(rng, ENGLISH, 20, [" ", " ", " ", ", ", ". ", "\n"]),
    lambda rng: join(rng, CHINESE, 20, ["", "", "", " "]),
    lambda rng: join(rng, CODE, 3, ["", "\n", "    ", "\n\n"]),
    lambda rng: join(rng, EMOJI, 10, ["", "", " "]),
    lambda rng: join(rng, NUMBERS, 10, ["", " ", ", ", "年"]),
    lambda rng: join(rng, SPACES, 10, ["", "", "x", "好", "1", "."]),
    lambda rng: join(rng, SPECIAL, 6, ["", "", " ", "\n", "a", "你好"]),
    lambda rng: join(rng, COMBINING, 8, ["", "", " ", "t"]),
    random_unicode,
    random_unicode,
    runs,
    lambda rng: join(rng, ENGLISH + CHINESE + CODE + EMOJI + NUMBERS + SPACES + ODD, 12, ["", " "]),
]


def main() -> None:
    rng = random.Random(SEED)
    oracle = qwen_oracle.encoding()
    texts = dict.fromkeys(kind(rng) for kind in KINDS for _ in range(PER_KIND))
    versions = f"tiktoken {tiktoken.__version__}, Unicode {unicodedata.unidata_version}"
    with TARGET.open("w", encoding="utf-8") as file:
        file.write(json.dumps(f"golden_tokens.py, seed {SEED}: {versions}") + "\n")
        for text in ["", *texts]:
            as_text = qwen_oracle.encode(oracle, text, parse_specials=False)
            parsed = qwen_oracle.encode(oracle, text, parse_specials=True)
            line = [text, as_text] if parsed == as_text else [text, as_text, parsed]
            file.write(json.dumps(line, ensure_ascii=True, separators=(",", ":")) + "\n")
    print(f"{len(texts) + 1} texts, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
