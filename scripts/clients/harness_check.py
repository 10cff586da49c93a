"""What other harnesses send: inspect-ai, evalplus, arena-hard-auto, lighteval."""

import asyncio
import importlib.metadata
import json
import os
import types
import urllib.request


def check_inspect(url, key, model):
    os.environ.update(SPPO_API_KEY=key, SPPO_BASE_URL=url)
    from inspect_ai.model import ChatMessageUser, GenerateConfig, get_model

    async def run():
        chat = get_model(f"openai-api/sppo/{model}", stream=True)
        config = GenerateConfig(temperature=0, max_tokens=8, logprobs=True, top_logprobs=3)
        answer = await chat.generate([ChatMessageUser(content="rate")], config=config)
        assert answer.choices[0].logprobs and answer.usage.total_tokens > 0
        plain = get_model(f"openai-api/sppo/{model}")
        same = await plain.generate([ChatMessageUser(content="rate")], config=config)
        assert same.completion == answer.completion
        long = await plain.generate([ChatMessageUser(content="rate " * 2000)], config=config)
        assert long.stop_reason == "model_length", long.stop_reason
        raw = get_model(f"openai-api-completions/sppo/{model}")
        text = await raw.generate("the loss of", config=GenerateConfig(temperature=0, max_tokens=8))
        assert text.usage.output_tokens > 0

    asyncio.run(run())
    print(f"inspect-ai {importlib.metadata.version('inspect-ai')}: openai-api (stream, logprobs, too long), "
          "openai-api-completions", flush=True)


def check_evalplus(url, key, model):
    import openai
    from evalplus.gen.util.openai_request import make_auto_request

    client = openai.OpenAI(base_url=url, api_key=key)
    for temperature, n in ((0.0, 1), (0.8, 3)):
        answer = make_auto_request(client, message="def loss():", model=model, max_tokens=8,
                                   temperature=temperature, n=n)
        assert len(answer.choices) == n
    print(f"evalplus {importlib.metadata.version('evalplus')}: make_auto_request", flush=True)


def check_arena_hard(folder, url, key, model):
    """`folder`: a clone of lmarena/arena-hard-auto, which is no package."""
    with open(os.path.join(folder, "utils", "completion.py")) as file:
        source = file.read()
    # Its imports name packages of other providers; the function for OpenAI's API is taken as it is.
    begin = source.index("def chat_completion_openai(")
    function = source[begin : source.index("\n@register_api", begin)]
    module = types.ModuleType("arena_hard")
    exec("import time\nAPI_MAX_RETRY, API_RETRY_SLEEP, API_ERROR_OUTPUT = 1, 0, None\n" + function,
         module.__dict__)
    api = {"api_base": url, "api_key": key, "model_name": model}
    # It asks for more than the context has.
    answer = module.chat_completion_openai(model, [{"role": "user", "content": "rate"}], 0.0, 8196, api)
    assert answer and isinstance(answer["answer"], str), answer
    print("arena-hard-auto: chat_completion_openai", flush=True)


def check_lighteval(url, key, model):
    """The body that lighteval 0.13's LiteLLMClient sends (models/endpoints/litellm_model.py)."""
    body = {"model": model, "messages": [{"role": "user", "content": "rate"}],
            "response_format": {"type": "text"}, "max_tokens": 8, "logprobs": None, "stop": [], "n": 1,
            "temperature": 0.0, "top_p": None, "seed": 42, "max_completion_tokens": 8,
            "frequency_penalty": None, "presence_penalty": None, "repetition_penalty": None}
    request = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json", "Authorization": f"Bearer {key}"})
    answer = json.load(urllib.request.urlopen(request))
    assert answer["choices"][0]["message"]["content"] is not None
    print("lighteval 0.13: its body (response_format, both limits of tokens)", flush=True)


def check(url, key, model, arena_hard):
    check_inspect(url, key, model)
    check_evalplus(url, key, model)
    check_lighteval(url, key, model)
    if arena_hard:
        check_arena_hard(arena_hard, url, key, model)
    else:
        print("arena-hard-auto: not checked (give --arena-hard CLONE)", flush=True)
