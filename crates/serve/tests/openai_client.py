"""What OpenAI's client does with a server: openai_client.py URL EXPECTED FOLDER.. (run by the test `the_client_of_openai`).

EXPECTED are the answers of the base and of the adapters `one` and `two`; the last folder is loaded as `three`, too."""
import asyncio
import json
import sys

import openai

url, expected, *folders = sys.argv[1:]
expected = dict(zip(["base", "one", "two"], json.loads(expected)))
client = openai.OpenAI(base_url=url, api_key="secret", max_retries=0)
asked = dict(messages=[{"role": "user", "content": "What does geom_point draw?"}], temperature=0, max_tokens=12)

assert [model.id for model in client.models.list()] == ["base", "one", "two"]
assert client.models.retrieve("one").id == "one"
for name, answer in expected.items():
    found = client.chat.completions.create(model=name, **asked)
    assert found.choices[0].message.content == answer, (name, found)
    assert found.choices[0].finish_reason in ("stop", "length")
    with client.chat.completions.create(model=name, stream=True, stream_options={"include_usage": True}, **asked) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == answer
    assert chunks[-1].usage == found.usage

found = client.chat.completions.create(model="base", logprobs=True, top_logprobs=2, **asked)
places = found.choices[0].logprobs.content
assert len(places) == found.usage.completion_tokens and all(len(place.top_logprobs) == 2 for place in places)
found = client.completions.create(model="one", prompt=["scale", "geom"], max_tokens=5, temperature=0, logprobs=1, n=2)
assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
assert found.choices[0].text == found.choices[1].text == "".join(found.choices[0].logprobs.tokens)
tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
client.chat.completions.create(model="base", tools=[tool], **asked)


def refused(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


error = refused(openai.NotFoundError, lambda: client.chat.completions.create(model="other", **asked))
assert error.code == "model_not_found", error
error = refused(openai.BadRequestError, lambda: client.chat.completions.create(model="base", **(asked | {"temperature": 3})))
assert error.param == "temperature", error
refused(openai.AuthenticationError, lambda: client.with_options(api_key="other").models.list())
refused(openai.PermissionDeniedError, lambda: client.post("/load_lora_adapter", body={"lora_name": "x", "lora_path": "/etc"}, cast_to=object))
client.post("/load_lora_adapter", body={"lora_name": "three", "lora_path": folders[-1]}, cast_to=str)
found = client.chat.completions.create(model="three", **asked)
assert found.choices[0].message.content == expected["two"]


async def many():
    async with openai.AsyncOpenAI(base_url=url, api_key="secret") as client:
        names = ["base", "one", "two"] * 22
        found = await asyncio.gather(*[client.chat.completions.create(model=name, **asked) for name in names])
        assert [answer.choices[0].message.content for answer in found] == [expected[name] for name in names]


asyncio.run(many())
