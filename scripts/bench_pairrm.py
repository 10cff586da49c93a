#!/usr/bin/env python3
"""PairRM of the published size (random weights): comparisons per second of `sppo judge` against
PyTorch + transformers: as LLM-Blender does it at batch size 1 ("official": one comparison at a time,
both candidates padded to the prompt's longest), without that padding, and batched by length.

    python scripts/bench_pairrm.py --sppo target/release/sppo [--prompts 3] [--responses 4]

Needs torch and transformers; writes its model (1.7 GB) and rows under --work. Both sides see the
same token ids, alternate, and their logits are compared. Prints a table, and JSON with --json.
On --device cuda PyTorch computes there, too, in the same --precision. --sppo-only measures nothing
else, on a model of zeros: for rehearsals without torch.
"""

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

GOLDEN = Path(__file__).resolve().parent.parent / "tests/fixtures/golden/pairrm"
SIZES = {
    "large": dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, vocab_size=128100),
    "small": dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024, vocab_size=4096),
}


def config(size):
    golden = json.loads((GOLDEN / "config.json").read_text())
    published = dict(position_buckets=256, max_position_embeddings=512, max_relative_positions=-1,
                     source_maxlength=1224, candidate_maxlength=412, initializer_range=0.02)
    return golden | SIZES[size] | published


def build(folder, size):
    """The reference model, its weights written under PairRM's names."""
    import torch
    from safetensors.torch import save_file
    from transformers import DebertaV2Config, DebertaV2Model

    torch.manual_seed(0)
    settings = config(size)
    encoder = DebertaV2Model(DebertaV2Config(**{k: v for k, v in settings.items() if k != "architectures"})).eval()
    hidden = settings["hidden_size"]
    head = torch.nn.Sequential(torch.nn.Dropout(0.0), torch.nn.Linear(2 * hidden, hidden), torch.nn.Tanh(),
                               torch.nn.Dropout(0.0), torch.nn.Linear(hidden, 1)).eval()
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"pretrained_model.{k}": v for k, v in encoder.state_dict().items() if "position_ids" not in k}
    tensors |= {f"head_layer.{k}": v for k, v in head.state_dict().items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(settings, indent=1))
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(GOLDEN / name, folder / name)
    return encoder, head, settings


def build_zeros(folder, settings):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/cuda"))
    import checkpoint

    checkpoint.pairrm(folder, settings, GOLDEN)


def rows(args):
    """Prompts and responses of about the asked lengths, in tokens of the golden tokenizer."""
    random.seed(1)
    vocab = [token for token, _ in json.loads((GOLDEN / "tokenizer.json").read_text())["model"]["vocab"]]
    words = [t for t in vocab if t.startswith("▁") and len(t) > 2]
    text = lambda n: " ".join(random.choice(words)[1:] for _ in range(n))
    spread = lambda n: max(4, int(n * random.uniform(0.5, 1.5)))
    out = []
    for i in range(args.prompts):
        responses = [text(spread(args.response_tokens)) for _ in range(args.responses)]
        out.append(dict(prompt_id=str(i), prompt=text(spread(args.prompt_tokens)), responses=responses))
    return out


def pack(tokenizer, settings, row):
    """LLM-Blender's packing of all ordered pairs: ids and the places of the prefixes."""
    source = tokenizer.encode("<|source|>" + row["prompt"], truncation=True, max_length=settings["source_maxlength"])
    limit = settings["candidate_maxlength"] + (settings["source_maxlength"] - len(source)) // 2
    candidates = [tokenizer.encode("<|candidate|>" + r, truncation=True, max_length=limit) for r in row["responses"]]
    side = lambda ids, key: [settings[key] if i == settings["cand_prefix_id"] else i for i in ids]
    for i, a in enumerate(candidates):
        for j, b in enumerate(candidates):
            if i != j:
                left, right = side(a, "cand1_prefix_id"), side(b, "cand2_prefix_id")
                yield (i, j), source + left + right, (1, len(source) + 1, len(source) + len(left) + 1)


def torch_logits(encoder, head, batch, longest=0):
    import torch

    longest = max([longest] + [len(ids) for _, ids, _ in batch])
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros(len(batch), longest, dtype=torch.long)
    for n, (_, tokens, _) in enumerate(batch):
        ids[n, : len(tokens)] = torch.tensor(tokens)
        mask[n, : len(tokens)] = 1
    device = next(encoder.parameters()).device
    with torch.inference_mode():
        states = encoder(input_ids=ids.to(device), attention_mask=mask.to(device)).last_hidden_state
        places = torch.tensor([p for _, _, p in batch])
        s, a, b = (states[torch.arange(len(batch)), places[:, k]] for k in range(3))
        return (head(torch.cat([s, a], -1)) - head(torch.cat([s, b], -1)))[:, 0].tolist()


def run_sppo(args, folder, work, tokens):
    out = work / "judged.jsonl"
    out.unlink(missing_ok=True)
    command = [args.sppo, "judge", "--responses", work / "rows.jsonl", "--judge", "pairrm", "--model", folder,
               "--out", out, "--set", f"judge.batch_tokens={tokens}", "--set", f"judge.precision={args.precision}", "--device", args.device]
    began = time.perf_counter()
    ran = subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peak = 0
    while ran.poll() is None:
        # The kernel counts what a child inherits from this process before it starts, so ask it itself.
        try:
            status = Path(f"/proc/{ran.pid}/status").read_text()
            peak = max([peak] + [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")])
        except OSError:
            pass
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    if ran.returncode:
        sys.exit(ran.stderr.read())
    return [json.loads(line) for line in out.read_text().splitlines()], seconds, peak / 1024


def sppo_only(args, folder):
    build_zeros(folder, config(args.size))
    (args.work / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows(args)))
    _, seconds, peak = run_sppo(args, folder, args.work, args.batch_tokens)
    print(f"sppo, batched: {args.prompts * args.responses * (args.responses - 1) / seconds:.3f} comparisons/s with start and load; peak memory {peak:.0f} MiB")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sppo", default="target/release/sppo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", choices=SIZES, default="large")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--responses", type=int, default=3)
    parser.add_argument("--prompt-tokens", type=int, default=150)
    parser.add_argument("--response-tokens", type=int, default=300)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--layers", type=int, help="instead of the size's, for rehearsals")
    parser.add_argument("--sppo-only", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("/tmp/sppo-bench-pairrm"))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    folder = args.work / f"pairrm-{args.size}"
    if args.layers:
        SIZES[args.size]["num_hidden_layers"] = args.layers
    if args.sppo_only:
        return sppo_only(args, folder)
    import torch
    from transformers import AutoTokenizer

    torch.set_num_threads(args.threads)
    encoder, head, settings = build(folder, args.size)
    if args.device.startswith("cuda"):
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.precision]
        encoder, head = (part.to("cuda", dtype) for part in (encoder, head))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = rows(args)
    (args.work / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in data))
    (args.work / "one.jsonl").write_text(json.dumps(data[0] | {"responses": ["a", "b"]}) + "\n")
    tasks = [(n, *task) for n, row in enumerate(data) for task in pack(tokenizer, settings, row)]
    count, lengths = len(tasks), [len(t[2]) for t in tasks]
    print(f"{count} comparisons of {min(lengths)} to {max(lengths)} tokens, mean {sum(lengths) / count:.0f}", file=sys.stderr)

    def batches(size):
        ordered = sorted(tasks, key=lambda t: len(t[2])) if size > 1 else tasks
        return [[t[1:] for t in ordered[i : i + size]] for i in range(0, count, size)]

    # LLM-Blender pads both candidates to the longest of their prompt.
    longest = {}
    for n, (i, j), ids, places in tasks:
        source, left = places[1] - 1, places[2] - places[1]
        right = len(ids) - source - left
        longest[n] = max(longest.get(n, 0), source + 2 * max(left, right))
    padding = {id(ids): longest[n] for n, _, ids, _ in tasks}
    best, logits, peaks = {}, {}, {}
    keep = lambda name, seconds: best.update({name: min(best.get(name, 1e9), seconds)})
    for _ in range(args.rounds):
        for name, size, padded in [("official", 1, True), ("torch, batch 1", 1, False), ("torch, batched", 6, False)]:
            began = time.perf_counter()
            for batch in batches(size):
                longest = padding[id(batch[0][1])] if padded else 0
                found = torch_logits(encoder, head, batch, longest)
                if size == 1:
                    logits[id(batch[0][1])] = found[0]
            keep(name, time.perf_counter() - began)
        # Starting and loading are measured apart, with one row of two short responses.
        rows_file = args.work / "rows.jsonl"
        whole = rows_file.read_text()
        for name, tokens in [("sppo, batch 1", 1), ("sppo, batched", args.batch_tokens)]:
            rows_file.write_text((args.work / "one.jsonl").read_text())
            _, start, _ = run_sppo(args, folder, args.work, tokens)
            rows_file.write_text(whole)
            judged, seconds, peaks[name] = run_sppo(args, folder, args.work, tokens)
            keep(name, seconds - start)
            keep("sppo, start and load", start)
    gap = max(abs(judged[n]["comparison_logits"][i][j] - logits[id(ids)]) for n, (i, j), ids, _ in tasks)
    official = count / best["official"]
    result = {"comparisons": count, "tokens_mean": sum(lengths) / count, "largest_difference": gap,
              "sppo_peak_mib": max(peaks.values()),
              "torch_peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
              "sppo_start_seconds": best.pop("sppo, start and load"),
              "per_second": {name: count / seconds for name, seconds in best.items()}}
    for name, rate in result["per_second"].items():
        print(f"{name:16} {rate:8.3f} comparisons/s   {rate / official:5.2f} x official")
    print(f"largest difference of a logit {gap:.2e}; peak memory sppo {result['sppo_peak_mib']:.0f} MiB, "
          f"torch {result['torch_peak_mib']:.0f} MiB; start and load {result['sppo_start_seconds']:.1f} s")
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
