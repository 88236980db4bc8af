#!/usr/bin/env python3
"""The server as lm-eval asks it: lm_eval_test.py SERVER-PROGRAM MODEL-FOLDER LIBQWEN LM-EVAL-PROGRAM.

Makes three small tasks (multiple choice and perplexity by log-likelihood, and generation), has the real
lm-eval run them over HTTP with its `local-completions` model and the server's own tokenizer, and judges
what it logged: every other log-likelihood by `qwen_score` in this process, some and some greedy texts by
the float64 oracle with Python's tiktoken, and the accuracy by counting. `make go-test` runs this with the
demo model. Nothing is downloaded: lm-eval is offline, and behind a proxy that is not there.
"""

import concurrent.futures
import ctypes
import functools
import json
import math
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[4]
sys.path.insert(0, str(ROOT / "tests/data"))
import oracle  # noqa: E402

SERVER, MODEL, LIBRARY, LM_EVAL = sys.argv[1:5]

CAPITALS = """France Paris, Germany Berlin, Italy Rome, Spain Madrid, Japan Tokyo, China Beijing, Russia Moscow,
Egypt Cairo, Greece Athens, Austria Vienna, Ireland Dublin, Portugal Lisbon, Poland Warsaw, Norway Oslo,
Sweden Stockholm, Finland Helsinki, Cuba Havana, Peru Lima, Chile Santiago, Kenya Nairobi, Iran Tehran,
Iraq Baghdad, Syria Damascus, Canada Ottawa, Thailand Bangkok, Hungary Budapest, Belgium Brussels,
Romania Bucharest, Bulgaria Sofia, Ukraine Kyiv, Turkey Ankara, Vietnam Hanoi, Nepal Kathmandu, Ghana Accra"""
FORMS = [
    "The capital of {} is",
    "Question: What is the capital of {}?\nAnswer:",
    "{} is a country. Its capital is called",
    "{}の首都は😀",
    "When you travel to {}, you should first see",
    "Country: {}\nCapital:",
]
OPENINGS = ["Once upon a time, in {}", "The best food in {} is", "The flag of {} has the colours"]
TASKS = {
    "local_choices": {
        "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}",
        "doc_to_choice": "{{choices}}", "metric_list": [{"metric": "acc"}],
    },
    "local_texts": {
        "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 12, "repetition_penalty": 1.0},
        "metric_list": [{"metric": "exact_match"}],
    },
    "local_perplexity": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
}  # fmt: skip
# The rounding noise of bf16 in this model's logits, root mean square (tests/data/oracle.py). A
# log-probability is one logit and a mean of others, so it has that noise, too.
NOISE = 0.055


def items():
    """Task -> its documents."""
    chance = random.Random(5)
    pairs = [pair.split() for pair in CAPITALS.replace("\n", " ").split(",")]
    choices = []
    for form in FORMS:
        for country, capital in pairs:
            other = chance.choice([other for _, other in pairs if other != capital])
            offered = chance.sample([capital, other], 2)
            # Choices of several tokens and half characters, too. lm-eval puts a space before each.
            if form == FORMS[4]:
                offered = [f"{city}, naturellement é" for city in offered]
            answer = next(i for i, text in enumerate(offered) if capital in text)
            question = form.format(country)
            choices.append({"question": question, "choices": offered, "answer": answer})
    texts = [
        {"question": form.format(country), "answer": "x"} for form in OPENINGS for country, _ in pairs[:10]
    ]
    rolling = [{"text": f"{' '.join(form.format(*pair) for form in FORMS)} {pair[1]}."} for pair in pairs[:10]]
    return {"local_choices": choices, "local_texts": texts, "local_perplexity": rolling}


def write_tasks(folder):
    for name, documents in items().items():
        lines = [json.dumps(document, ensure_ascii=False) + "\n" for document in documents]
        (folder / f"{name}.jsonl").write_text("".join(lines))
        files = {"test": str(folder / f"{name}.jsonl")}
        task = TASKS[name] | {
            "task": name, "dataset_path": "json", "test_split": "test",
            "dataset_kwargs": {"data_files": files}, "metadata": {"version": 1},
        }  # fmt: skip
        # JSON is YAML.
        (folder / f"{name}.yaml").write_text(json.dumps(task))


def run_harness(url, folder):
    """Runs lm-eval and returns its results and, for each task, its log of the documents."""
    environment = os.environ | {
        "HF_HOME": str(folder / "hf"), "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1",
        "HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1", "OPENAI_API_KEY": "secret",
    }  # fmt: skip
    environment.pop("LD_LIBRARY_PATH", None)
    model = (
        f"model=demo,base_url={url}/v1/completions,tokenizer_backend=auto,auth_token=secret,"
        "num_concurrent=4,max_length=1024"
    )
    command = [
        LM_EVAL, "run", "--model", "local-completions", "--model_args", model, "--batch_size", "8",
        "--tasks", ",".join(TASKS), "--include_path", folder, "--log_samples", "--output_path", folder,
    ]  # fmt: skip
    # It takes a minute or two; a server that stops answering is not to hold up what runs this.
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-5000:]
    assert "Retrying" not in done.stderr, done.stderr[-5000:]
    (results,) = folder.glob("*/results_*.json")
    logs = {}
    for name in TASKS:
        (log,) = folder.glob(f"*/samples_{name}_*.jsonl")
        logs[name] = [json.loads(line) for line in log.read_text().splitlines()]
    return json.loads(results.read_text())["results"], logs


class Library:
    """An engine in this process, by the C ABI."""

    def __init__(self, folder):
        self.native = ctypes.CDLL(LIBRARY)
        for name in ("qwen_buf_data", "qwen_error_message"):
            getattr(self.native, name).restype = ctypes.c_void_p
        self.native.qwen_buf_len.restype = ctypes.c_uint64
        self.engine, error, path = ctypes.c_void_p(), ctypes.c_void_p(), folder.encode()
        self.check(
            self.native.qwen_engine_open(
                path, ctypes.c_uint64(len(path)), None, None, None,
                ctypes.byref(self.engine), ctypes.byref(error),
            ),
            error,
        )  # fmt: skip

    def check(self, status, error):
        assert status == 0, ctypes.string_at(self.native.qwen_error_message(error))

    def score(self, context, continuation):
        buffer, error = ctypes.c_void_p(), ctypes.c_void_p()
        texts = [text.encode() for text in (context, continuation)]
        sized = [part for text in texts for part in (text, ctypes.c_uint64(len(text)))]
        self.check(
            self.native.qwen_score(
                self.engine, *sized, None, ctypes.byref(buffer), ctypes.byref(error)
            ),
            error,
        )
        length = self.native.qwen_buf_len(buffer)
        made = json.loads(ctypes.string_at(self.native.qwen_buf_data(buffer), length))
        self.native.qwen_buf_free(buffer)
        return made


class Harness(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        command = [SERVER, "--model", MODEL, "--name", "demo", "--listen", url.removeprefix("http://")]
        environment = os.environ | {"QWEN_API_KEY": "secret"}
        server = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        try:
            wait_for(f"{url}/health")
            with tempfile.TemporaryDirectory() as folder:
                write_tasks(pathlib.Path(folder))
                cls.results, cls.logs = run_harness(url, pathlib.Path(folder))
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=30)
        cls.library = Library(MODEL)
        cls.oracle = oracle.Model(MODEL, emulate=True)
        cls.oracle.weight = functools.cache(cls.oracle.weight)
        cls.tokenizer = oracle.load_tokenizer(pathlib.Path(MODEL))

    def log_softmax(self, tokens):
        logits = self.oracle.logits(tokens)[:, : self.tokenizer.n_vocab]
        top = logits.max(axis=1, keepdims=True)
        return logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))

    def check_by_oracle(self, context, continuation, have):
        # As lm-eval splits them: the continuation is what the whole has behind the context's tokens, and
        # a text with nothing before it begins behind the token that ends texts.
        encode = self.tokenizer.encode_ordinary
        whole, begins = encode(context + continuation), len(encode(context))
        if begins == 0:
            whole, begins = [self.tokenizer.encode_single_token("<|endoftext|>"), *whole], 1
        logs = self.log_softmax(whole)
        want = sum(logs[at - 1, whole[at]] for at in range(begins, len(whole)))
        self.assertLess(abs(have - want), 4 * NOISE * math.sqrt(len(whole) - begins))

    def test_the_choices(self):
        log = self.logs["local_choices"]
        self.assertEqual(len(log), len(items()["local_choices"]))
        self.assertGreater(len(log), 200)
        asked = []
        for document in log:
            replies = [(float(value), greedy == "True") for [[value, greedy]] in document["resps"]]
            arguments = [
                (argument["arg_0"], argument["arg_1"]) for argument in document["arguments"].values()
            ]
            asked += zip(arguments, replies, strict=True)
        judged = asked[::2]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            scores = pool.map(lambda one: self.library.score(*one[0]), judged)
            for (texts, (value, greedy)), score in zip(judged, scores, strict=True):
                # Neither the batch nor the way through JSON changes a bit; only the order of the sum may.
                self.assertAlmostEqual(value, score["logprob"], delta=1e-9, msg=texts)
                self.assertEqual(greedy, score["is_greedy"], texts)
        for texts, (value, _) in asked[:4] + asked[-4:]:
            self.check_by_oracle(*texts, value)
        values = np.array([value for _, (value, _) in asked]).reshape(len(log), 2)
        right = values.argmax(axis=1) == [document["doc"]["answer"] for document in log]
        self.assertAlmostEqual(self.results["local_choices"]["acc,none"], right.mean())
        # By chance it would be a half, give or take 0.035.
        self.assertGreater(right.mean(), 0.7)

    def test_the_perplexity(self):
        log = self.logs["local_perplexity"]
        self.assertEqual(len(log), 10)
        values = []
        for document in log:
            [[value]] = document["resps"]
            values.append(float(value))
            text = document["doc"]["text"]
            self.assertAlmostEqual(values[-1], self.library.score("", text)["logprob"], delta=1e-9)
        self.check_by_oracle("", text, values[-1])
        size = sum(len(document["doc"]["text"].encode()) for document in log)
        bits = -sum(values) / size / math.log(2)
        self.assertAlmostEqual(self.results["local_perplexity"]["bits_per_byte,none"], bits)

    def test_the_texts(self):
        log = self.logs["local_texts"]
        self.assertEqual(len(log), 30)
        for document in log:
            [[text]] = document["resps"]
            self.assertTrue(text)
            self.assertNotRegex(text, "[\n.]")
        for document in log[::8]:
            [[text]] = document["resps"]
            encode = self.tokenizer.encode_ordinary
            prompt, reply = encode(document["doc"]["question"]), encode(text)
            logs = self.log_softmax(prompt + reply)[len(prompt) - 1 : -1]
            for row, token in zip(logs, reply, strict=True):
                self.assertGreater(row[token], row.max() - 4 * NOISE)


def wait_for(url):
    for _ in range(300):
        try:
            urllib.request.urlopen(url)
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("the server does not answer")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
