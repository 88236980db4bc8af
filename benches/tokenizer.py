#!/usr/bin/env python3
"""The Python side of benches/tokenizer.rs, which starts it.

    tokenizer.py corpus FOLDER    writes texts of 1 MiB, english.txt, chinese.txt and code.txt, and
                                  mixed.txt, which is all of them
    tokenizer.py encode FILE      encodes one with `tiktoken` on one thread, writes the ids beside it
                                  as native u32 (.ids) and prints the seconds of each of five runs

The texts are made of what every machine with Python has, so that it is real text and needs no
download: the standard library's sources are the code, its docstrings and licences the English. The
Chinese is sentences of the vocabulary's own words, drawn with a fixed seed.
"""

import array
import ast
import base64
import pathlib
import random
import sys
import time
import unicodedata

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests/data"))
import qwen_oracle

BYTES_PER_KIND = 1 << 20
SEED = 72


def sources() -> list[str]:
    folder = pathlib.Path(ast.__file__).parent
    return [path.read_text("utf-8", "ignore") for path in sorted(folder.glob("*.py"))]


def docstrings(source: str) -> str:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds))
    return "\n\n".join(filter(None, map(ast.get_docstring, nodes)))


def chinese(rng: random.Random) -> str:
    """Sentences of words that the vocabulary holds, so that their lengths are those of real text."""
    lines = map(bytes.split, qwen_oracle.VOCABULARY.read_bytes().splitlines())
    tokens = (base64.b64decode(token) for token, _ in lines)
    texts = (token.decode("utf-8", "ignore") for token in tokens)
    words = [text for text in texts if text and all("\u4e00" <= char <= "\u9fff" for char in text)]
    written, length = [], 0
    while length < BYTES_PER_KIND:
        sentence = "".join(rng.choices(words, k=rng.randint(3, 9))) + rng.choice("，，。！？；")
        written.append(sentence)
        length += len(sentence.encode())
    return "".join(written)


def head(text: str) -> str:
    return text.encode()[:BYTES_PER_KIND].decode("utf-8", "ignore")


def write_corpus(folder: pathlib.Path) -> None:
    code = sources()
    english = "\n\n".join(map(docstrings, code))
    texts = {
        "english": head(english),
        "chinese": head(chinese(random.Random(SEED))),
        "code": head("\n".join(code)),
    }
    texts["mixed"] = "\n\n".join(texts.values())
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_bytes(unicodedata.normalize("NFC", text).encode())


def encode(path: pathlib.Path) -> None:
    text = path.read_bytes().decode()
    oracle = qwen_oracle.encoding()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        ids = oracle.encode_ordinary(text)
        seconds.append(time.perf_counter() - start)
    path.with_suffix(".ids").write_bytes(array.array("I", ids).tobytes())
    print(*seconds)


if __name__ == "__main__":
    action = {"corpus": write_corpus, "encode": encode}[sys.argv[1]]
    action(pathlib.Path(sys.argv[2]))
