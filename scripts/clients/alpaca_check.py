"""alpaca_eval against a server: as the judge, with log-probabilities, and as a model. Runs in a venv of
its own (setuptools < 81). Arguments: URL KEY MODEL FOLDER."""

import importlib.metadata
import json
import os
import sys

url, key, model, folder = sys.argv[1:]
os.environ.update(OPENAI_API_BASE=url, OPENAI_API_KEY=key, IS_ALPACA_EVAL_2="True")

import openai  # noqa: E402

openai.base_url = url
from alpaca_eval import main as alpaca  # noqa: E402
from alpaca_eval.decoders import openai as decoder  # noqa: E402

os.makedirs(folder, exist_ok=True)
template = os.path.join(folder, "judge.txt")
with open(template, "w") as file:
    file.write("<|im_start|>system\nWhich is better?\n<|im_end|>\n<|im_start|>user\n{instruction}\n"
               "m: {output_1}\nM: {output_2}\n<|im_end|>")
# A model of random weights does not answer m or M: its two likeliest answers stand for them.
first = openai.OpenAI(base_url=url).chat.completions.create(
    model=model, max_tokens=1, logprobs=True, top_logprobs=5,
    messages=[{"role": "system", "content": "Which is better?"},
              {"role": "user", "content": "rate 0\nm: b 0\nM: a 0"}])
tokens = [token.token for token in first.choices[0].logprobs.content[0].top_logprobs[:2]]
config = os.path.join(folder, "configs.yaml")
with open(config, "w") as file:
    json.dump({"judge": {
        "prompt_template": template, "fn_completions": "openai_completions",
        "completions_kwargs": {"model_name": model, "max_tokens": 1, "temperature": 1, "logprobs": True,
                               "top_logprobs": 5, "requires_chatml": True, "num_procs": 1},
        "fn_completion_parser": "logprob_parser",
        "completion_parser_kwargs": {"numerator_token": tokens[0], "denominator_tokens": tokens,
                                     "is_binarize": False},
        "completion_key": "completions_all", "batch_size": 1}}, file)
rows = lambda name: [{"dataset": "x", "instruction": f"rate {i}", "output": f"{name} {i}", "generator": name}
                     for i in range(4)]
alpaca.evaluate(model_outputs=rows("a"), reference_outputs=rows("b"), annotators_config=config,
                output_path=folder, is_overwrite_leaderboard=True, is_return_instead_of_print=True,
                caching_path=None, fn_metric="get_winrate", sort_by="win_rate")

# A model name with "instruct" in it goes to /v1/completions, lists of prompts and all.
for kwargs in ({"model_name": model, "requires_chatml": True}, {"model_name": f"{model}-instruct"}):
    answers = decoder.openai_completions(
        ["<|im_start|>user\nrate\n<|im_end|>", "<|im_start|>user\nthe model\n<|im_end|>"],
        max_tokens=8, num_procs=1, batch_size=1 if "requires_chatml" in kwargs else 2, **kwargs)
    assert len(answers["completions"]) == 2, answers
version = importlib.metadata.version("alpaca_eval")
print(f"alpaca_eval {version}: judge with log-probabilities, chat and completions", flush=True)
