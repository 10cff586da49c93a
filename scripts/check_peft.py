#!/usr/bin/env python3
"""Loads adapters that sppo trained in PEFT and compares them with `sppo merge` and `sppo score`.

    check_peft.py BASE ADAPTER MERGED PAIRS SCORES [--tolerance 1e-4]

BASE     folder of the base model
ADAPTER  what `sppo train` with [train.lora] wrote
MERGED   what `sppo merge --model BASE --adapter ADAPTER --out MERGED --precision f32` wrote
PAIRS    .jsonl of pairs, as for check_transformers.py
SCORES   what `sppo score --model MERGED --data PAIRS --out SCORES` wrote, .jsonl

Everything is computed in f32 on the CPU. Exit code 0: PEFT finds all of the adapter's tensors,
its merge_and_unload gives MERGED's weights within 1e-6, and every summed log-probability of the
base with the adapter beside it differs from SCORES by at most tolerance × response tokens.
"""

import argparse
import sys

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from check_transformers import SIDES, encode_row, read_lines, response_logp


def check_tensors(model, folder):
    """PEFT itself only warns of tensors that it does not find or does not know."""
    saved = load_file(f"{folder}/adapter_model.safetensors")
    loaded = {
        name.replace(".default.", "."): value for name, value in model.state_dict().items() if "lora_" in name
    }
    if saved.keys() != loaded.keys():
        sys.exit(f"names differ: {sorted(saved.keys() ^ loaded.keys())[:4]}")
    if any(not torch.equal(saved[name], loaded[name]) for name in saved):
        sys.exit("values differ from the file's")
    print(f"loaded: {len(saved)} tensors, {sum(x.numel() for x in saved.values())} parameters")


def main():
    parser = argparse.ArgumentParser()
    for name in ("base", "adapter", "merged", "pairs", "scores"):
        parser.add_argument(name)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, args.adapter).eval()
    check_tensors(model, args.adapter)
    tokenizer = AutoTokenizer.from_pretrained(args.base)
    largest = per_token = count = 0
    for row, score in zip(read_lines(args.pairs), read_lines(args.scores), strict=True):
        prompt, responses = encode_row(row, tokenizer)
        for side, response in zip(SIDES, responses):
            gap = abs(response_logp(model, prompt, response) - score[f"{side}_logps"])
            largest, per_token = max(largest, gap), max(per_token, gap / len(response))
            count += 1
    print(f"{count} log-probabilities; largest difference {largest:.2e}, per token {per_token:.2e}")
    merged = AutoModelForCausalLM.from_pretrained(args.merged, dtype=torch.float32).state_dict()
    own = model.merge_and_unload().state_dict()
    apart = max((own[name] - merged[name]).abs().max().item() for name in own)
    print(f"merged weights differ by at most {apart:.2e}")
    sys.exit(0 if per_token <= args.tolerance and apart <= 1e-6 and own.keys() == merged.keys() else 1)


if __name__ == "__main__":
    main()
