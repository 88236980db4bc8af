#!/usr/bin/env python3
"""The server as OpenAI's own Python client meets it: openai_test.py SERVER-PROGRAM MODEL-FOLDER.

Starts the server on a free port with an API key, runs what users run, and ends it with SIGTERM.
`make go-test` runs this with the demo model; what the answers are is tested in Go, beside.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import unittest

import openai

SERVER, MODEL = sys.argv[1:3]
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = {"model": "demo", "temperature": 0, "extra_body": {"repetition_penalty": 1.0}}
ANSWER = "The capital of France is Paris."


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class OpenAIClient(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        port = free_port()
        cls.url = f"http://127.0.0.1:{port}/v1"
        command = [SERVER, "--model", MODEL, "--name", "demo", "--listen", f"127.0.0.1:{port}"]
        environment = os.environ | {"QWEN_API_KEY": "secret"}
        cls.server = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        cls.client = openai.OpenAI(base_url=cls.url, api_key="secret", max_retries=0)
        for _ in range(300):
            try:
                cls.client.models.list()
                return
            except openai.APIConnectionError:
                time.sleep(0.1)
        raise RuntimeError("the server does not answer")

    @classmethod
    def tearDownClass(cls):
        cls.server.send_signal(signal.SIGTERM)
        status = cls.server.wait(timeout=30)
        assert status == 0, f"the server ended with {status}"

    def test_chat(self):
        made = self.client.chat.completions.create(messages=QUESTION, **GREEDY)
        self.assertEqual(made.choices[0].message.content, ANSWER)
        self.assertEqual(made.choices[0].finish_reason, "stop")
        self.assertEqual(made.usage.total_tokens, made.usage.prompt_tokens + 7)

    def test_stream(self):
        usage = {"include_usage": True}
        stream = self.client.chat.completions.create(
            messages=QUESTION, stream=True, stream_options=usage, **GREEDY
        )
        chunks = list(stream)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
        self.assertEqual(text, ANSWER)
        self.assertGreater(len(chunks), 4)
        self.assertEqual(chunks[-2].choices[0].finish_reason, "stop")
        self.assertEqual(chunks[-1].usage.completion_tokens, 7)

    def test_a_stream_that_is_left(self):
        stream = self.client.chat.completions.create(
            messages=[{"role": "user", "content": "Tell me a long story."}],
            stream=True, max_tokens=1500, model="demo", extra_body={"ignore_eos": True},
        )  # fmt: skip
        for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        stream.close()
        self.test_chat()

    def test_completions(self):
        prompts = ["The sky is", "Grass is"]
        made = self.client.completions.create(
            prompt=prompts, n=2, max_tokens=8, seed=3, echo=True, model="demo"
        )
        self.assertEqual([choice.index for choice in made.choices], [0, 1, 2, 3])
        for choice in made.choices:
            self.assertTrue(choice.text.startswith(prompts[choice.index // 2]), choice.text)

    def test_errors(self):
        chat = self.client.chat.completions
        with self.assertRaises(openai.BadRequestError) as refused:
            chat.create(messages=QUESTION, model="demo", temperature=9999)
        self.assertEqual(refused.exception.param, "temperature")
        with self.assertRaises(openai.NotFoundError):
            chat.create(messages=QUESTION, model="another")
        with self.assertRaises(openai.AuthenticationError):
            openai.OpenAI(base_url=self.url, api_key="wrong").models.list()
        self.assertEqual([model.id for model in self.client.models.list()], ["demo"])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
