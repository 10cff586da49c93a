"""openai's client: sync, async, streams, helpers, n, log-probabilities, stop, errors as its types."""

import asyncio

import openai


def chat(text):
    return [{"role": "system", "content": "Be short."}, {"role": "user", "content": text}]


def check_completions(client, model):
    greedy = client.completions.create(model=model, prompt="the loss of", max_tokens=12, temperature=0)
    assert greedy.usage.total_tokens == greedy.usage.prompt_tokens + greedy.usage.completion_tokens
    assert greedy.choices[0].finish_reason in ("stop", "length") and greedy.model == model
    parts = client.completions.create(model=model, prompt="the loss of", max_tokens=12, temperature=0,
                                      stream=True, stream_options={"include_usage": True})
    parts = list(parts)
    assert "".join(p.choices[0].text for p in parts if p.choices) == greedy.choices[0].text
    assert parts[-1].usage.total_tokens == greedy.usage.total_tokens and parts[-1].choices == []
    many = client.completions.create(model=model, prompt=["a", "the model"], n=3, max_tokens=5, seed=3,
                                     temperature=1.0, logprobs=2)
    assert [c.index for c in many.choices] == list(range(6))
    again = client.completions.create(model=model, prompt=["a", "the model"], n=3, max_tokens=5, seed=3,
                                      temperature=1.0, logprobs=2)
    assert [c.text for c in many.choices] == [c.text for c in again.choices]
    for choice in many.choices:
        logprobs = choice.logprobs
        assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset)
        assert all(value <= 0 for value in logprobs.token_logprobs)
    echo = client.completions.create(model=model, prompt=[5, 6, 7, 8], max_tokens=0, echo=True, logprobs=1)
    assert len(echo.choices[0].logprobs.token_logprobs) == 4
    assert echo.choices[0].logprobs.token_logprobs[0] is None and echo.usage.completion_tokens == 0


def check_chat(client, model):
    whole = client.chat.completions.create(model=model, messages=chat("rate"), max_tokens=12, temperature=0,
                                           logprobs=True, top_logprobs=5)
    choice = whole.choices[0]
    assert choice.message.role == "assistant" and whole.usage.prompt_tokens_details is not None
    for token in choice.logprobs.content:
        assert len(token.top_logprobs) == 5 and token.logprob <= token.top_logprobs[0].logprob
        assert token.logprob == token.top_logprobs[0].logprob, "greedy tokens are the likeliest"
    stream = client.chat.completions.create(model=model, messages=chat("rate"), max_tokens=12,
                                            temperature=0, stream=True)
    parts = list(stream)
    assert parts[0].choices[0].delta.role == "assistant"
    text = "".join(p.choices[0].delta.content or "" for p in parts if p.choices)
    assert text == choice.message.content and parts[-1].choices[0].finish_reason == choice.finish_reason
    n = client.chat.completions.create(model=model, messages=chat("rate"), max_tokens=4, n=3, seed=1,
                                       temperature=1.0)
    assert sorted(c.index for c in n.choices) == [0, 1, 2]
    parts = [{"type": "text", "text": "ra"}, {"type": "text", "text": "te"}]
    client.chat.completions.create(model=model, messages=[{"role": "user", "content": parts}], max_tokens=2)
    stop = text[2:4]
    stopped = client.chat.completions.create(model=model, messages=chat("rate"), max_tokens=12,
                                             temperature=0, stop=[stop, "never"])
    assert stopped.choices[0].message.content == text[: text.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"
    # The helper raises where an answer ends by its length.
    with client.chat.completions.stream(model=model, messages=chat("rate"), max_tokens=12,
                                        temperature=0, stop=[stop]) as stream:
        events = [event.type for event in stream]
        assert "content.delta" in events and "content.done" in events
        assert stream.get_final_completion().choices[0].message.content == stopped.choices[0].message.content


def check_errors(client, model, url):
    def raises(kind, call, **has):
        try:
            call()
        except kind as error:
            for name, value in has.items():
                assert getattr(error, name) == value, (name, getattr(error, name), value)
            return str(error)
        raise AssertionError(f"no {kind.__name__}")

    long = "the " * 2000
    text = raises(openai.BadRequestError,
                  lambda: client.completions.create(model=model, prompt=long, max_tokens=1),
                  code="context_length_exceeded")
    assert "Please reduce" in text
    raises(openai.BadRequestError,
           lambda: client.chat.completions.create(model=model, messages=chat("a"), temperature=-1),
           param="temperature")
    raises(openai.BadRequestError,
           lambda: client.chat.completions.create(model=model, messages=chat("a"),
                                                  response_format={"type": "json_object"}),
           param="response_format")
    raises(openai.NotFoundError, lambda: client.embeddings.create(model=model, input="a"))
    raises(openai.APIConnectionError,
           lambda: openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key="x", max_retries=0).models.list())


async def check_async(url, key, model):
    client = openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0)
    asked = [client.chat.completions.create(model=model, messages=chat(str(i)), max_tokens=6, seed=i)
             for i in range(16)]
    assert len(await asyncio.gather(*asked)) == 16
    stream = await client.completions.create(model=model, prompt="a", max_tokens=200, stream=True,
                                             extra_body={"ignore_eos": True})
    async for _ in stream:
        break
    await stream.close()


def check(url, key):
    client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)
    model = client.models.list().data[0].id
    assert client.models.retrieve(model).id == model
    check_completions(client, model)
    check_chat(client, model)
    check_errors(client, model, url)
    asyncio.run(check_async(url, key, model))
    print(f"openai {openai.__version__}: sync, async, streams, .stream(), n, logprobs, stop, errors", flush=True)
