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
import pydantic

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
        # What runs when the signal comes is answered whole; what comes later is not.
        stream = cls.client.chat.completions.create(
            messages=QUESTION, stream=True, max_tokens=150, model="demo",
            stream_options={"include_usage": True}, extra_body={"ignore_eos": True},
        )  # fmt: skip
        next(stream)
        cls.server.send_signal(signal.SIGTERM)
        *_, last = stream
        assert last.usage.completion_tokens == 150, last
        status = cls.server.wait(timeout=30)
        assert status == 0, f"the server ended with {status}"
        try:
            cls.client.models.list()
            raise AssertionError("it still answers")
        except openai.APIConnectionError:
            pass

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
        # The role, the text in one piece or more, the reason, and the usage.
        self.assertGreaterEqual(len(chunks), 4)
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

    def test_logprobs(self):
        chat = self.client.chat.completions.create(
            messages=QUESTION, logprobs=True, top_logprobs=3, **GREEDY
        )
        content = chat.choices[0].logprobs.content
        self.assertEqual("".join(token.token for token in content[:-1]), ANSWER[: -len(".")])
        self.assertTrue(all(token.logprob == token.top_logprobs[0].logprob for token in content))
        text = "The capital of France is"
        made = self.client.completions.create(
            prompt=text, echo=True, logprobs=2, max_tokens=0, model="demo"
        )
        self.assertEqual(made.choices[0].text, text)
        lists = made.choices[0].logprobs
        self.assertEqual("".join(lists.tokens), text)
        self.assertIsNone(lists.token_logprobs[0])
        self.assertTrue(all(value < 0 for value in lists.token_logprobs[1:]))

    def test_structured_output(self):
        class Answer(pydantic.BaseModel):
            city: str
            is_capital: bool

        made = self.client.chat.completions.parse(
            messages=QUESTION, response_format=Answer, max_tokens=200, **GREEDY
        )
        self.assertIsInstance(made.choices[0].message.parsed, Answer)

    def test_tools(self):
        tool = {
            "name": "weather", "description": "The weather in a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        }  # fmt: skip
        choice = {"type": "function", "function": {"name": "weather"}}
        made = self.client.chat.completions.create(
            messages=QUESTION, tools=[{"type": "function", "function": tool}],
            tool_choice=choice, max_tokens=60, **GREEDY,
        )  # fmt: skip
        call = made.choices[0].message.tool_calls[0]
        self.assertEqual((call.function.name, made.choices[0].finish_reason), ("weather", "tool_calls"))
        told = {"role": "tool", "tool_call_id": call.id, "content": "Sunny, 21 degrees"}
        messages = [*QUESTION, made.choices[0].message, told]
        again = self.client.chat.completions.create(messages=messages, max_tokens=20, **GREEDY)
        self.assertIn(again.choices[0].finish_reason, ("stop", "length"))

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
