"""lm-evaluation-harness: the same tasks through `sppo serve` and through its own `hf`."""

import glob
import json
import os
import random
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
TASKS = ["sppo_choice", "sppo_rolling", "sppo_generate"]
TOLERANCE = 1e-4


def make_data(folder):
    """The rows of the three tasks: made of a seed, so that they are the same everywhere."""
    os.makedirs(folder, exist_ok=True)
    generator = random.Random(5)
    words = "the of one loss step model prompt answer judge pair win rate short prefer token é 🙂".split()
    some = lambda low, high: " ".join(generator.choice(words) for _ in range(generator.randint(low, high)))
    with open(os.path.join(folder, "questions.jsonl"), "w") as file:
        for _ in range(16):
            row = {"question": some(3, 9), "choices": [some(1, 3) for _ in range(4)],
                   "label": generator.randrange(4)}
            file.write(json.dumps(row) + "\n")
    with open(os.path.join(folder, "texts.jsonl"), "w") as file:
        for _ in range(6):
            file.write(json.dumps({"text": some(5, 260)}) + "\n")
    context = some(120, 120)
    with open(os.path.join(folder, "contexts.jsonl"), "w") as file:
        for _ in range(50):
            row = {"context": context, "choices": [some(1, 2) for _ in range(4)], "label": 0}
            file.write(json.dumps(row) + "\n")
    for name in os.listdir(os.path.join(HERE, "tasks")):
        with open(os.path.join(HERE, "tasks", name)) as file:
            text = file.read()
        for data in ("questions.jsonl", "texts.jsonl", "contexts.jsonl"):
            text = text.replace(f" {data}", f" {os.path.join(folder, data)}")
        with open(os.path.join(folder, name), "w") as file:
            file.write(text)


def run(model, model_args, out, data, extra=(), tasks=TASKS):
    """One run of the harness; samples by task."""
    command = [sys.executable, "-m", "lm_eval", "run", "--model", model, "--model_args", model_args,
               "--tasks", ",".join(tasks), "--include_path", data, "--output_path", out,
               "--log_samples", *(["--device", "cpu"] if model == "hf" else []), *extra]
    environment = dict(os.environ, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false",
                       HF_HOME=os.path.join(data, "hf"))
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}")
    samples, results = {}, {}
    for path in sorted(glob.glob(os.path.join(out, "**", "*.json*"), recursive=True)):
        name = os.path.basename(path)
        if name.startswith("results_"):
            results = json.load(open(path))
        elif name.startswith("samples_"):
            task = name[len("samples_"):].rsplit("_", 1)[0]
            samples[task] = sorted((json.loads(line) for line in open(path)), key=lambda row: row["doc_id"])
    return samples, results["results"], float(results["total_evaluation_time_seconds"])


def compare(found, expected):
    """The largest gap of log-likelihoods of choices; anything else that differs ends the check."""
    gap = 0.0
    for task, rows in expected[0].items():
        others = found[0][task]
        assert len(rows) == len(others) > 0, task
        for row, other in zip(rows, others):
            assert row["doc"] == other["doc"], task
            for ours, theirs in zip(other["resps"], row["resps"], strict=True):
                ours, theirs = ours[0], theirs[0]
                if task == "sppo_generate":
                    assert ours == theirs, (task, row["doc_id"], ours, theirs)
                    continue
                if task == "sppo_rolling":
                    ours, theirs = [ours], [theirs]
                apart = abs(float(ours[0]) - float(theirs[0]))
                # hf sums in f32: the sum over a long text, some -2000, has no more digits.
                assert apart <= max(TOLERANCE, 2 ** -22 * abs(float(theirs[0]))), (task, row["doc_id"], apart)
                if task != "sppo_rolling":
                    gap = max(gap, apart)
                assert str(ours[1:]) == str(theirs[1:]), (task, row["doc_id"], ours, theirs)
    for task, numbers in expected[1].items():
        for name, number in numbers.items():
            if name.split(",")[0] in ("acc", "acc_norm", "exact_match"):
                assert found[1][task][name] == number, (task, name, found[1][task][name], number)
    return gap


def check(folder, url, work, recorder):
    """All combinations; the records of one."""
    data = os.path.join(work, "tasks")
    make_data(data)
    kept = []
    for template in (False, True):
        chat = ["--apply_chat_template", "--fewshot_as_multiturn", "true"] if template else []
        # The tokenizer writes a BOS before plain texts; a template writes its own.
        bos = "add_bos_token=False" if template else "add_bos_token=True"
        name = "chat" if template else "plain"
        # Its API models keep two tokens of the context free (models/api_models.py), so that texts that
        # are longer are cut elsewhere than by hf.
        args = f"pretrained={folder},dtype=float32,max_length=510,{bos}"
        expected = run("hf", args, os.path.join(work, f"hf-{name}"), data, ["--batch_size", "8", *chat])
        for concurrent in (1, 8):
            for batch in (1, 4):
                recorder.take()
                args = (f"model=golden,base_url={url}/v1/completions,tokenizer_backend=huggingface,"
                        f"tokenizer={folder},num_concurrent={concurrent},max_retries=1,max_length=512,{bos}")
                out = os.path.join(work, f"{name}-{concurrent}-{batch}")
                found = run("local-completions", args, out, data, ["--batch_size", str(batch), *chat])
                gap = compare(found, expected)
                print(f"lm-eval {name}, num_concurrent {concurrent}, batch_size {batch}: largest gap of "
                      f"log-likelihoods {gap:.1e}; accuracies, is_greedy and texts equal", flush=True)
                if (concurrent, batch) in ((1, 1), (1, 4)):
                    kept += recorder.take()
    return kept


def check_shared_context(folder, url, work, metrics):
    """200 short answers to one context: what was computed, by /metrics, and the time beside hf's."""
    from transformers import AutoTokenizer

    data = os.path.join(work, "tasks")
    make_data(data)
    before = metrics()
    args = (f"model=golden,base_url={url}/v1/completions,tokenizer_backend=huggingface,tokenizer={folder},"
            "num_concurrent=8,max_retries=1,max_length=512,add_bos_token=True")
    found = run("local-completions", args, os.path.join(work, "shared"), data, tasks=["sppo_context"])
    after = metrics()
    args = f"pretrained={folder},dtype=float32,add_bos_token=True"
    expected = run("hf", args, os.path.join(work, "shared-hf"), data, ["--batch_size", "8"],
                   tasks=["sppo_context"])
    gap = compare(found, expected)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = {tuple(tokenizer.encode(arg["arg_0"] + arg["arg_1"]))
               for row in found[0]["sppo_context"] for arg in row["arguments"].values()}
    prefixes = {prompt[:end] for prompt in prompts for end in range(1, len(prompt) + 1)}
    computed = after["sppo:prompt_tokens_computed_total"] - before["sppo:prompt_tokens_computed_total"]
    assert computed <= 1.3 * len(prefixes), (computed, len(prefixes))
    print(f"lm-eval, 200 answers to a context of {min(map(len, prompts))} tokens: {computed:.0f} tokens computed for "
          f"{len(prefixes)} distinct prefixes ({sum(map(len, prompts))} tokens of {len(prompts)} prompts); "
          f"{found[2]:.1f} s, hf at batch 8 {expected[2]:.1f} s; largest gap {gap:.1e}", flush=True)
