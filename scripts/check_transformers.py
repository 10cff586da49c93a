"""Checks a checkpoint folder against transformers: the summed response log-probabilities of
pre-tokenised pairs, and the same from `sppo score`, must agree.

    python -m venv ~/check && ~/check/bin/pip install torch transformers
    sppo score --model DIR --data pairs.jsonl --out scores.jsonl
    ~/check/bin/python scripts/check_transformers.py DIR pairs.jsonl scores.jsonl

pairs.jsonl needs rows with prompt_ids, chosen_ids and rejected_ids. Without the last two
arguments it only loads the folder and answers a question greedily.
"""

import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def logp(model, prompt, response):
    ids = torch.tensor([prompt + response])
    with torch.no_grad():
        logps = model(ids).logits[0].float().log_softmax(-1)
    return sum(logps[len(prompt) + i - 1, token].item() for i, token in enumerate(response))


def main():
    folder, *files = sys.argv[1:]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    print(f"{folder}: {sum(p.numel() for p in model.parameters()):,} parameters")
    if not files:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        chat = [{"role": "user", "content": "What is the opposite of hot?"}]
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        out = model.generate(ids, max_new_tokens=40, do_sample=False)
        print(tokenizer.decode(out[0][ids.shape[1]:]))
        return
    pairs, scores = ([json.loads(line) for line in open(name)] for name in files)
    worst = 0.0
    for pair, score in zip(pairs, scores, strict=True):
        for side in ("chosen", "rejected"):
            response = pair[f"{side}_ids"]
            theirs = logp(model, pair["prompt_ids"], response)
            worst = max(worst, abs(theirs - score[f"{side}_logps"]) / len(response))
    print(f"largest difference: {worst:.2e} nats a token over {len(pairs)} pairs")
    sys.exit(worst > 1e-4)


main()
