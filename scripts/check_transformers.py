#!/usr/bin/env python3
"""Loads a checkpoint in transformers and compares it with `sppo score`.

    check_transformers.py MODEL PAIRS SCORES [--tolerance 1e-4] [--max-length 1024]
    check_transformers.py MODEL           only loads it and answers a question

MODEL   checkpoint folder
PAIRS   .jsonl of pairs: prompt_ids + chosen_ids + rejected_ids, or prompt + chosen + rejected
        (strings or message lists; rendered with the folder's chat template, as rows = "clean")
SCORES  what `sppo score --model MODEL --data PAIRS --out SCORES` wrote, .jsonl

Everything is computed in f32 on the CPU. Exit code 0: every summed log-probability differs by
at most tolerance × number of response tokens; 1: some does not.
"""

import argparse
import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging


SIDES = ("chosen", "rejected")


def turns(value, role):
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def end_of_turn(tokenizer):
    """The first special token that the template puts behind an assistant's message, else EOS."""
    chat = turns("question", "user") + turns("endofturnprobe", "assistant")
    rendered = tokenizer.apply_chat_template(chat, tokenize=False)
    behind = tokenizer(rendered.rpartition("endofturnprobe")[2], add_special_tokens=False)
    special = [i for i in behind["input_ids"] if i in tokenizer.all_special_ids]
    return special[0] if special else tokenizer.eos_token_id


def encode_row(row, tokenizer):
    """Prompt ids, and the response ids of both sides."""
    if "prompt_ids" in row:
        return row["prompt_ids"], [row["chosen_ids"], row["rejected_ids"]]
    if "prompt" not in row:
        raise ValueError("a row needs `prompt`; whole conversations are not read here")

    def encode(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    start = tokenizer.apply_chat_template(
        turns(row["prompt"], "user"), tokenize=False, add_generation_prompt=True
    )
    # As rows = "clean": the response is encoded by itself and ends its turn once.
    end = end_of_turn(tokenizer)
    responses = [encode(turns(row[side], "assistant")[-1]["content"]) for side in SIDES]
    return encode(start), [ids if ids[-1:] == [end] else ids + [end] for ids in responses]


@torch.no_grad()
def response_logp(model, prompt, response):
    ids = torch.tensor([prompt + response])
    logits = model(ids).logits[0, len(prompt) - 1 : -1].float()
    logps = logits.log_softmax(-1).gather(1, torch.tensor(response).unsqueeze(1))
    return logps.double().sum().item()


def answer(model, tokenizer, question):
    start = tokenizer.apply_chat_template(
        turns(question, "user"), tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(start, add_special_tokens=False, return_tensors="pt")["input_ids"]
    mask = torch.ones_like(ids)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=40, do_sample=False)
    return tokenizer.decode(out[0][ids.shape[1] :])


def read_lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("pairs", nargs="?")
    parser.add_argument("scores", nargs="?")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="per response token")
    parser.add_argument("--max-length", type=int, default=1024, help="longer rows are refused")
    args = parser.parse_args()
    if args.pairs and not args.scores:
        parser.error("PAIRS needs SCORES")

    logging.disable_progress_bar()
    model, report = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.float32, output_loading_info=True
    )
    strays = {key: sorted(names) for key, names in report.items() if names}
    if strays:
        sys.exit(f"{args.model}: transformers reports {strays}")
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"loaded: {parameters} parameters, {len(tokenizer)} tokens")

    if not args.pairs:
        print(answer(model, tokenizer, "What is the opposite of hot?"))
        return

    pairs, scores = read_lines(args.pairs), read_lines(args.scores)
    if len(pairs) != len(scores) or not pairs:
        sys.exit(f"{len(pairs)} pairs, but {len(scores)} scores")
    largest = largest_per_token = 0.0
    failed = compared = 0
    for number, (row, score) in enumerate(zip(pairs, scores), 1):
        prompt, responses = encode_row(row, tokenizer)
        for side, response in zip(SIDES, responses):
            if len(prompt) + len(response) > args.max_length:
                sys.exit(f"row {number}: {side} is longer than --max-length; sppo would cut it")
            expected = response_logp(model, prompt, response)
            found = score[f"{side}_logps"]
            difference = abs(found - expected)
            # Not `difference > …`: NaN must fail.
            if not difference <= args.tolerance * len(response):
                failed += 1
                print(f"row {number} {side}: sppo {found:.6f}, transformers {expected:.6f}")
            largest = max(largest, difference)
            largest_per_token = max(largest_per_token, difference / len(response))
            compared += 1
    print(
        f"{compared} log-probabilities; largest difference {largest:.2e}, "
        f"per token {largest_per_token:.2e}"
    )
    if failed:
        sys.exit(f"{failed} of them differ by more than {args.tolerance:g} per token")


if __name__ == "__main__":
    main()
