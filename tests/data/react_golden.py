"""Prompts and replies with tools, as Qwen's published server makes and reads them: react_golden.json.

Usage: python3 tests/data/react_golden.py > tests/data/react_golden.json

States the format anew, apart from the library: plain strings, Python's own json and strip. Needs
Python 3.11 and nothing else. A prompt is a conversation in OpenAI's form and its whole text; a reply
is the model's text, and what is said, called and passed.
"""

import json

LINES = [
    "Answer the following questions as best you can. You have access to the following APIs:",
    "",
    "%TOOLS%",
    "",
    "Use the following format:",
    "",
    "Question: the input question you must answer",
    "Thought: you should always think about what to do",
    "Action: the action to take, should be one of [%NAMES%]",
    "Action Input: the input to the action",
    "Observation: the result of the action",
    "... (this Thought/Action/Action Input/Observation can be repeated zero or more times)",
    "Thought: I now know the final answer",
    "Final Answer: the final answer to the original input question",
    "",
    "Begin!",
    "",
    "Question: ",
]


def tool_line(tool):
    f = tool.get("function", tool)
    model = f.get("name_for_model", f.get("name", ""))
    human = f.get("name_for_human", f.get("name", ""))
    about = f.get("description_for_model", f.get("description", ""))
    parameters = json.dumps(f["parameters"], ensure_ascii=False)
    return (
        f"{model}: Call this tool to interact with the {human} API. What is the {human} API useful "
        f"for? {about} Parameters: {parameters}"
    )


def preamble(tools):
    names = [t.get("function", t) for t in tools]
    names = ", ".join(f.get("name_for_model", f.get("name", "")) for f in names)
    text = "\n".join(LINES).replace("%NAMES%", names)
    return text.replace("%TOOLS%", "\n\n".join(map(tool_line, tools)))


def strip(text):
    return text.lstrip("\n").rstrip()


def assistant(message, has_tools):
    content = strip(message.get("content") or "")
    calls = message.get("tool_calls")
    if calls:
        thought = content if content.startswith("Thought:") else "Thought: " + content
        f = calls[0]["function"]
        return f"{thought}\nAction: {f['name']}\nAction Input: {f['arguments']}"
    if has_tools:
        return "Thought: I now know the final answer.\nFinal Answer: " + content
    return content


def prompt(tools, messages):
    messages = list(messages)
    system = "You are a helpful assistant."
    if messages[0]["role"] == "system":
        system = strip(messages.pop(0)["content"])
    turns = []  # [question, answer or None]
    for m in messages:
        if m["role"] == "user":
            turns.append([strip(m["content"]), None])
        elif m["role"] == "tool":
            turns[-1][1] += "\nObservation: " + strip(m["content"])
        elif turns[-1][1] is None:
            turns[-1][1] = strip(assistant(m, bool(tools)))
        else:
            turns[-1][1] += "\n" + assistant(m, bool(tools))
    is_open = messages[-1]["role"] == "tool"
    if is_open:
        turns[-1][1] += "\nThought:"
    if tools:
        answered = [turn for turn in turns if turn[1] is not None]
        target = answered[-1] if answered else turns[-1]
        target[0] = preamble(tools) + target[0]
    text = f"<|im_start|>system\n{system}<|im_end|>"
    for question, answer in turns:
        text += f"\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        text += "" if answer is None else strip(answer) + "<|im_end|>"
    return text.removesuffix("<|im_end|>") if is_open else text


def say(role, content, **more):
    return {"role": role, "content": content, **more}


def call(name, arguments, thought=""):
    function = {"name": name, "arguments": arguments}
    calls = [{"id": "c", "type": "function", "function": function}]
    return say("assistant", thought, tool_calls=calls)


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_current_weather",
        "description": "Get the current weather in a given location.",
        "parameters": {
            "type": "object",
            "properties": {
                "location": {"type": "string", "description": "The city, e.g. \"Boston\" or 波士顿"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                "days": {"type": "number", "minimum": 1e-07, "maximum": 1e16, "default": 1.0},
            },
            "required": ["location"],
        },
    },
}
IMAGE = {
    "name_for_human": "文生图",
    "name_for_model": "image_gen",
    "description_for_model": "文生图是一个AI绘画服务。 Format the arguments as a JSON object.",
    "parameters": [
        {
            "name": "prompt",
            "description": "英文关键词",
            "required": True,
            "schema": {"type": "string"},
        }
    ],
}
BOTH = [WEATHER, IMAGE]
ASKED = say("user", "\n\n波士顿天气如何？ \n")
CALLED = call("get_current_weather", '{"location": "Boston"}\n', "我应该查天气。 ")
RESULT = say("tool", '\n{"temperature": 21}\n', tool_call_id="c")
CASES = [
    ([WEATHER], [ASKED]),
    (BOTH, [say("system", "\nBe brief. "), ASKED]),
    (BOTH, [ASKED, CALLED, RESULT]),
    (BOTH, [ASKED, CALLED, RESULT, say("assistant", "21 °C."), say("user", "谢谢")]),
    (BOTH, [ASKED, say("assistant", " Hi\n\n"), say("user", "Draw a cat"), call("image_gen", "{}")]
     + [say("tool", ""), call("image_gen", "", "Thought: again"), say("tool", "\x1ddone\x1d")]),
    ([WEATHER], [ASKED, say("assistant", "a"), say("assistant", "b"), say("user", "c")]),
    ([WEATHER], [ASKED, say("assistant", "a"), ASKED, say("assistant", "b"), ASKED]),
    ([], [ASKED, CALLED, RESULT]),
    ([], [ASKED, CALLED, RESULT, say("assistant", "21"), say("user", "\nOK")]),
]

REPLIES = [
    "Hello!",
    "Thought: I should look.\nAction: find\nAction Input: {\"a\": 1}\nObservation: made up",
    "Thought: 我应该\n查一下。 \nAction: image_gen \nAction Input:\n{\"prompt\": \"猫\"} \n",
    "Thought: \nAction: find\nAction Input: \nObservation:",
    "Thought: a\nAction: find\nAction Input: ```py\nprint('x')\n```\nObservation:",
    "Thought: I now know the final answer.\nFinal Answer: 42\nand so on",
    "I will look.\nAction: find\nAction Input: {}",
    "It says\nObservation: this",
    "Thought: a\nAction Input: {}\nAction: find\nFinal Answer: no",
    "Just text\nAction: none needed",
]


def read_reply(text):
    text = text.split("Observation:")[0]
    name_at, input_at = text.find("\nAction:"), text.find("\nAction Input:")
    if 0 <= name_at < input_at:
        name = text[name_at:input_at].removeprefix("\nAction:").strip()
        passed = text[input_at:].removeprefix("\nAction Input:").strip()
        return {"said": text[:name_at].split("Thought: ", 1)[-1].strip(), "call": [name, passed]}
    return {"said": text.split("\nFinal Answer: ")[-1], "call": None}


if __name__ == "__main__":
    prompts = [{"tools": t, "messages": m, "prompt": prompt(t, m)} for t, m in CASES]
    replies = [{"text": text, **read_reply(text)} for text in REPLIES]
    golden = {"prompts": prompts, "replies": replies}
    print(json.dumps(golden, ensure_ascii=False, indent=1))
