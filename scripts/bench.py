#!/usr/bin/env python3
"""`sppo bench` against PyTorch + transformers on the same random model, rows and machine, by turns.

    python scripts/bench.py --sppo target/release/sppo                       # 4 layers, 256 wide, CPU
    python scripts/bench.py --sppo sppo --shape 8b --device cuda --dtype bf16 --recompute layer

Training: SPPO on pairs, reference log-probabilities known, RMSProp; the PyTorch side pads chosen and
rejected into one batch, as TRL does, with SDPA (and gradient checkpointing where --recompute layer).
Generation: sampling at temperature 1; the PyTorch side is `generate`, static batches. With
--shortest N the new tokens of a sequence vary from N to --new, and four batches pass through.
Tokens per second count real tokens of prompts and responses (training), new tokens (generation).
TFLOP/s are model FLOPs: forward and backward pass, shared prompts once, nothing recomputed.
--compile trains with torch.compile, too, --trl with TRL, --vllm samples with vLLM,
--llama-cpp LLAMA_BATCHED_BENCH computes as many tokens with llama.cpp (needs gguf of PyPI).
--sppo-only measures nothing else, on a model of zeros: for rehearsals.
Needs torch and transformers but for that. Prints a Markdown table of medians, and JSON with --json.

    python scripts/bench.py --sppo sppo --table docs/results.md --compile --trl --vllm [--real FOLDER]

measures every cell of CELLS on a CPU and writes the table between the file's marks of that name;
--real adds generation by a model of a folder.
"""

import argparse
import hashlib
import json
import os
import random
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHAPES = {
    "tiny": dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                 intermediate_size=192, vocab_size=512),
    "small": dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4,
                  intermediate_size=704, vocab_size=4096),
    "4x512": dict(hidden_size=512, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4,
                  intermediate_size=1408, vocab_size=4096),
    "4x1024": dict(hidden_size=1024, num_hidden_layers=4, num_attention_heads=16, num_key_value_heads=8,
                   intermediate_size=2816, vocab_size=4096),
    "8x512": dict(hidden_size=512, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4,
                  intermediate_size=1408, vocab_size=32000),
    "1b": dict(hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
               intermediate_size=8192, vocab_size=128256),
    "8b": dict(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
               intermediate_size=14336, vocab_size=128256),
}

# Of --table: what, shape, lengths, prompt, response or new tokens, pairs or sequences, steps.
CELLS = [("train", name, "equal", 48, length - 48, batch, steps)
         for name in ["small", "4x512", "4x1024"]
         for length, batch, steps in [(128, 8, 4), (512, 4, 2), (2048, 2, 1)]]
CELLS += [("train", "8x512", "ultrafeedback", 0, 0, 4, 1), ("generate", "8x512", "uniform", 48, 64, 32, 0)]


def shape(args):
    return SHAPES[args.shape] | ({"num_hidden_layers": args.layers} if args.layers else {})


def make_model(folder, args):
    """A random model of the shape, in the dtype, written once."""
    if (folder / "config.json").exists():
        return
    if args.sppo_only:
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/cuda"))
        import checkpoint

        return checkpoint.llama(folder, shape(args), {"f32": "F32", "bf16": "BF16"}[args.dtype])
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**shape(args), max_position_embeddings=8192, rope_theta=500000.0,
                         tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, initializer_range=0.02)
    torch.set_default_dtype(getattr(torch, {"f32": "float32", "bf16": "bfloat16"}[args.dtype]))
    with torch.device(args.device):
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)


def make_pairs(path, args):
    """Random rows: responses of half to all of --response tokens or of just so many, or lengths like UltraFeedback's."""
    generator = random.Random(0)
    vocab = SHAPES[args.shape]["vocab_size"]
    ids = lambda n: [generator.randrange(vocab) for _ in range(n)]
    if args.lengths == "ultrafeedback":
        tail = lambda median, most: min(most, max(8, int(median * generator.lognormvariate(0, 0.7))))
        prompt, response = (lambda: tail(150, 512)), (lambda: tail(300, 512))
    else:
        least = args.response if args.lengths == "equal" else -(-args.response // 2)
        prompt, response = (lambda: args.prompt), (lambda: generator.randint(least, args.response))
    with open(path, "w") as file:
        for number in range(args.batch * (args.steps + 1)):
            row = dict(prompt_id=str(number), prompt_ids=ids(prompt()), chosen_ids=ids(response()),
                       rejected_ids=ids(response()), chosen_probs=0.8, chosen_probs_win=0.7, chosen_probs_lose=0.3)
            file.write(json.dumps(row) + "\n")


def torch_training(model, args, pairs):
    import torch
    import torch.nn.functional as F

    rows = [json.loads(line) for line in open(pairs)]
    if args.compile:
        model.forward = torch.compile(model.forward, dynamic=True)
    if args.recompute == "layer":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=False))
    model.train()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=5e-7)

    def step(part):
        sequences = [(r["prompt_ids"], r[side]) for side in ("chosen_ids", "rejected_ids") for r in part]
        longest = max(len(p) + len(r) for p, r in sequences)
        ids = torch.zeros(len(sequences), longest, dtype=torch.long)
        real, response = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for i, (p, r) in enumerate(sequences):
            ids[i, :len(p) + len(r)] = torch.tensor(p + r)
            real[i, :len(p) + len(r)] = 1
            response[i, len(p):len(p) + len(r)] = True
        ids, real, response = ids.to(args.device), real.to(args.device), response.to(args.device)
        logits = model(ids, attention_mask=real, use_cache=False).logits[:, :-1].float()
        logps = F.log_softmax(logits, -1).gather(2, ids[:, 1:, None])[..., 0]
        chosen, rejected = (logps * response[:, 1:]).sum(1).split(len(part))
        eta = 1000.0
        loss = ((chosen + 1 - eta * 0.2) ** 2 + (rejected + 1 + eta * 0.2) ** 2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return int(real.sum())

    step(rows[:args.batch])
    synchronize(args)
    begun, tokens = time.perf_counter(), 0
    for at in range(args.batch, len(rows), args.batch):
        tokens += step(rows[at:at + args.batch])
    synchronize(args)
    seconds = time.perf_counter() - begun
    return dict(train_tokens_per_s=tokens / seconds, train_step_s=seconds / args.steps)


def torch_generation(model, args):
    import torch

    model.eval()
    generator = torch.Generator().manual_seed(0)
    lengths = random.Random(1)

    def batch(new):
        ids = torch.randint(3, model.config.vocab_size, (args.generate, args.prompt), generator=generator)
        ids = ids.to(args.device)
        longest = max(new)
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0,
                             top_p=1.0, min_new_tokens=longest, max_new_tokens=longest, pad_token_id=0)
        assert out.shape[1] == args.prompt + longest
        return sum(new)

    waves = 1 if args.shortest is None else 4
    least = args.new if args.shortest is None else args.shortest
    with torch.no_grad():
        batch([2] * args.generate)
        synchronize(args)
        begun, tokens = time.perf_counter(), 0
        for _ in range(waves):
            tokens += batch([lengths.randint(least, args.new) for _ in range(args.generate)])
        synchronize(args)
    return tokens / (time.perf_counter() - begun)


def synchronize(args):
    import torch

    if args.device != "cpu":
        torch.cuda.synchronize()


def peak_mib():
    """This process's own peak: ru_maxrss begins with that of the process that started it."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024


def torch_side(folder, args, pairs):
    import torch
    from transformers import LlamaForCausalLM

    if args.device == "cpu":
        torch.set_num_threads(args.threads)
    dtype = getattr(torch, {"f32": "float32", "bf16": "bfloat16"}[args.dtype])
    load = lambda: LlamaForCausalLM.from_pretrained(args.real or folder, dtype=dtype, attn_implementation="sdpa").to(args.device)
    report = {}
    if "generate" in args.what:
        report["generate_tokens_per_s"] = torch_generation(load(), args)
    if "train" in args.what:
        report.update(torch_training(load(), args, pairs))
    if args.device == "cpu":
        report["peak_memory_mib"] = peak_mib()
    else:
        # Reserved, as sppo reports its own allocator's pages.
        report["peak_memory_mib"] = torch.cuda.max_memory_reserved() / 2**20
    print(json.dumps(report))


def trl_side(folder, args, pairs):
    """TRL's DPOTrainer with its sppo loss on the same rows; the reference's log-probabilities are computed before."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    torch.set_num_threads(args.threads)
    words = Tokenizer(models.WordLevel({f"<{n}>": n for n in range(shape(args)["vocab_size"])}, unk_token="<0>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<0>", eos_token="<2>", unk_token="<0>")
    text = lambda ids: "".join(f" <{n}>" for n in ids)
    rows = [json.loads(line) for line in open(pairs)]
    # It adds the end of a sequence where a response has none.
    data = Dataset.from_list([dict(prompt=text(r["prompt_ids"]), chosen=text(r["chosen_ids"][:-1] + [2]),
                                   rejected=text(r["rejected_ids"][:-1] + [2])) for r in rows])
    length = lambda r: 2 * len(r["prompt_ids"]) + len(r["chosen_ids"]) + len(r["rejected_ids"])
    ends = []

    class Ends(TrainerCallback):
        def on_step_end(self, *_, **__):
            ends.append(time.perf_counter())

    class InOrder(DPOTrainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    config = DPOConfig(output_dir=str(args.work / "trl"), loss_type="sppo_hard", beta=0.001, learning_rate=5e-7,
                       optim="rmsprop", per_device_train_batch_size=args.batch, num_train_epochs=1, max_length=None,
                       precompute_ref_log_probs=True, gradient_checkpointing=args.recompute == "layer", use_cpu=True,
                       report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, bf16=False)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    trainer = InOrder(model, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[Ends()])
    ids = lambda row: sum(len(v) for k, v in row.items() if k.endswith("_ids")) + len(row["prompt_ids"])
    assert [ids(row) for row in trainer.train_dataset] == [length(r) for r in rows]
    trainer.train()
    assert len(ends) == args.steps + 1
    tokens, seconds = sum(map(length, rows[args.batch:])), ends[-1] - ends[0]
    print(json.dumps(dict(train_tokens_per_s=tokens / seconds, train_step_s=seconds / args.steps,
                          peak_memory_mib=peak_mib())))


def vllm_side(folder, args):
    """Tokens per second of vLLM: the same prompts and new tokens, its own batching and CUDA graphs."""
    if args.device == "cpu":
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{args.threads - 1}")
    from vllm import LLM, SamplingParams

    most = args.prompt + args.new
    folder = args.real or folder
    vocab = json.loads((folder / "config.json").read_text())["vocab_size"]
    engine = LLM(str(folder), skip_tokenizer_init=True, dtype={"f32": "float32", "bf16": "bfloat16"}[args.dtype],
                 max_num_seqs=args.generate, max_model_len=most + 8, gpu_memory_utilization=0.85,
                 enable_prefix_caching=False)
    generator, lengths = random.Random(0), random.Random(1)

    def batch(new):
        prompts = [{"prompt_token_ids": [generator.randrange(3, vocab) for _ in range(args.prompt)]} for _ in new]
        params = [SamplingParams(temperature=1.0, max_tokens=n, ignore_eos=True, detokenize=False) for n in new]
        begun = time.perf_counter()
        engine.generate(prompts, params, use_tqdm=False)
        return sum(new), time.perf_counter() - begun

    batch([2] * args.generate)
    waves = 1 if args.shortest is None else 4
    least = args.new if args.shortest is None else args.shortest
    tokens, seconds = batch([lengths.randint(least, args.new) for _ in range(waves * args.generate)])
    print(json.dumps(dict(generate_tokens_per_s=tokens / seconds)))


def write_gguf(folder, path):
    """A Llama of a Hugging Face folder as llama.cpp reads it, in f32 and without its tokenizer."""
    import numpy as np
    import torch
    from gguf import GGUFWriter
    from gguf_to_hf import BLOCK, WHOLE
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = model.config
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if rope.get("rope_type", "default") != "default":
        sys.exit(f"{folder}: no GGUF is written of scaled rotations")
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    unfinished = path.with_suffix(".part")
    writer = GGUFWriter(unfinished, "llama")
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(dim)
    writer.add_value_length(dim)
    writer.add_rope_dimension_count(dim)
    writer.add_rope_freq_base(rope.get("rope_theta") or config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    bare = lambda name: name.removesuffix(".weight")
    whole, block = ({bare(theirs): bare(ours) for ours, theirs in names.items()} for names in (WHOLE, BLOCK))
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        value, (name, kind) = value.numpy(), name.rsplit(".", 1)
        if name in whole:
            name = whole[name]
        else:
            _, _, layer, part = name.split(".", 3)
            part = block[part]
            if part in heads:
                # GGUF's rotation is of neighbours, where Hugging Face's is of halves.
                value = value.reshape(heads[part], 2, dim // 2, -1).swapaxes(1, 2).reshape(value.shape)
            name = f"blk.{layer}.{part}"
        writer.add_tensor(f"{name}.{kind}", np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(path)


def llama_cpp_side(folder, args):
    """Tokens per second of llama.cpp's llama-batched-bench: as many sequences and steps, nothing sampled."""
    folder = (args.real or folder).resolve()
    path = args.work / f"{folder.name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}.gguf"
    if not path.exists():
        write = "import sys, pathlib; sys.path.insert(0, sys.argv[1]); import bench; " \
                "bench.write_gguf(*map(pathlib.Path, sys.argv[2:]))"
        subprocess.run([sys.executable, "-c", write, Path(__file__).resolve().parent, folder, path], check=True)
    count, most = args.generate, args.prompt + args.new
    # The first token of each comes from its prompt's logits.
    found = last_json([args.llama_cpp, "-m", path, "-npp", args.prompt, "-ntg", args.new - 1, "-npl", count,
                       "-c", count * most, "-b", 2048, "-ub", 512, "-ctk", "f32", "-ctv", "f32",
                       "-t", args.threads, "-tb", args.threads, "--output-format", "jsonl"])
    return dict(generate_tokens_per_s=count * args.new / (found["t_pp"] + found["t_tg"]))


def sppo_side(folder, args, pairs):
    device = args.sppo_device or {"cpu": "cpu", "cuda": "cuda:0"}[args.device]
    command = [args.sppo, "bench", "--model", args.real or folder, "--device", device, "--precision", args.dtype]
    command += ["--recompute", args.recompute, "--matmul", args.matmul, "--json", "--quiet"]
    # Lengths like UltraFeedback's are those of the pairs.
    without = ["prompt", "response"] if args.lengths == "ultrafeedback" and "generate" not in args.what else []
    if args.what == "generate":
        without += ["response", "steps"]
    for name in ["batch", "prompt", "response", "steps", "generate", "new", "shortest"]:
        if getattr(args, name) is not None and name not in without:
            command += ["--" + name, str(getattr(args, name))]
    if "train" not in args.what:
        command += ["--only", "generate"]
    else:
        command += ["--pairs", pairs]
    if "generate" not in args.what:
        command += ["--only", "train"]
    return last_json(command, args.threads if args.device == "cpu" else None)


def last_json(command, threads=None):
    env = os.environ | ({"RAYON_NUM_THREADS": str(threads)} if threads else {})
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, text=True, env=env)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: exit {done.returncode}")
    # vLLM goes on to log there.
    return json.loads([line for line in done.stdout.splitlines() if line.startswith("{\"")][-1])


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sppo", default="target/release/sppo")
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--sppo-device", help="the sppo side's device where it differs (ndarray, wgpu)")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--recompute", choices=["none", "layer"], default="none")
    parser.add_argument("--matmul", choices=["auto", "cubecl", "cublaslt"], default="auto", help="the sppo side's matrix products")
    parser.add_argument("--what", default="train,generate")
    parser.add_argument("--lengths", choices=["uniform", "equal", "ultrafeedback"], default="uniform")
    for name, value in dict(batch=8, prompt=48, response=80, steps=6, generate=32, new=64, threads=2, rounds=3).items():
        parser.add_argument("--" + name, type=int, default=value)
    parser.add_argument("--shortest", type=int)
    parser.add_argument("--bytes", action="store_true",
                        help="also the time of a decode step against the bytes that it must move")
    parser.add_argument("--layers", type=int, help="instead of the shape's")
    parser.add_argument("--compile", action="store_true", help="training with torch.compile, too")
    parser.add_argument("--table", type=Path, help="measure all CELLS and write their table into this file")
    parser.add_argument("--real", type=Path, help="a model's folder, in place of a random model of the shape")
    parser.add_argument("--vllm", nargs="?", const=sys.executable, metavar="PYTHON",
                        help="generation with vLLM, too; the Python that has it, where it is another one")
    parser.add_argument("--llama-cpp", metavar="LLAMA_BATCHED_BENCH",
                        help="generation with llama.cpp, too: its program llama-batched-bench; needs gguf of PyPI")
    parser.add_argument("--trl", action="store_true", help="training with TRL's DPOTrainer, too, which must be installed")
    parser.add_argument("--sppo-only", action="store_true", help="nobody else, and a model of zeros")
    parser.add_argument("--vllm-side", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--trl-side", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "sppo-bench")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--bandwidth", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--torch-side", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    args = arguments()
    folder = args.work / f"{args.shape}-{args.dtype}"
    pairs = args.work / f"pairs-{args.shape}.jsonl"
    if args.bandwidth:
        print(json.dumps(dict(bytes_per_s=copy_bandwidth(args))))
        return
    if args.torch_side:
        return torch_side(folder, args, pairs)
    if args.vllm_side:
        return vllm_side(folder, args)
    if args.trl_side:
        return trl_side(folder, args, pairs)
    args.work.mkdir(parents=True, exist_ok=True)
    if hides_avx512():
        # PyTorch, oneDNN and MKL look for themselves.
        os.environ.update(ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2", MKL_ENABLE_INSTRUCTIONS="AVX2")
    if args.real and (args.bytes or not args.table and args.what != "generate"):
        sys.exit("--real is for --what generate or --table, without --bytes")
    if args.trl and (args.device, args.dtype) != ("cpu", "f32"):
        sys.exit("--trl is for a CPU and f32")
    if args.llama_cpp and hides_avx512():
        sys.exit("--llama-cpp: AVX-512 is not hidden from it")
    if args.llama_cpp and ((args.device, args.dtype, args.shortest) != ("cpu", "f32", None) or not args.table and args.what != "generate"):
        sys.exit("--llama-cpp is for --what generate or --table, on a CPU in f32, without --shortest")
    if args.table:
        if (args.device, args.sppo_device, args.dtype, args.sppo_only, args.layers, args.shortest, args.recompute) != (
                "cpu", None, "f32", False, None, None, "none"):
            sys.exit("--table is of CPUs, f32, the shapes as they are and recompute none")
        return write_table(args)
    best = measure(args, folder, pairs)
    if args.json:
        print(json.dumps(best))
        return
    print(f"{args.real or args.shape}, {args.device}, {args.dtype}, recompute {args.recompute}, medians of {args.rounds}\n")
    if args.sppo_only:
        print("| | sppo |\n| --- | --- |")
        print("\n".join(f"| {key} | {value:.5g} |" for key, value in best["sppo"].items()))
        return
    print("| | PyTorch | sppo | ratio |\n| --- | --- | --- | --- |")
    keys = ["train_tokens_per_s", "train_step_s", "train_tflops_per_s", "generate_tokens_per_s", "peak_memory_mib"]
    for key in keys:
        if key in best["torch"] and key in best["sppo"]:
            a, b = best["torch"][key], best["sppo"][key]
            print(f"| {key} | {a:.5g} | {b:.5g} | {b / a:.2f} |")
    if "compiled" in best:
        a, b = (best[side]["train_tokens_per_s"] for side in ["compiled", "sppo"])
        print(f"| train_tokens_per_s, torch.compile in PyTorch's place | {a:.5g} | {b:.5g} | {b / a:.2f} |")
    if "trl" in best:
        a, b = (best[side]["train_tokens_per_s"] for side in ["trl", "sppo"])
        print(f"| train_tokens_per_s, TRL in PyTorch's place | {a:.5g} | {b:.5g} | {b / a:.2f} |")
    if "vllm" in best:
        a, b = (best[side]["generate_tokens_per_s"] for side in ["vllm", "sppo"])
        print(f"| generate_tokens_per_s, vLLM in PyTorch's place | {a:.5g} | {b:.5g} | {b / a:.2f} |")
    if "llama_cpp" in best:
        a, b = (best[side]["generate_tokens_per_s"] for side in ["llama_cpp", "sppo"])
        print(f"| generate_tokens_per_s, llama.cpp in PyTorch's place | {a:.5g} | {b:.5g} | {b / a:.2f} |")
    peak = card_flops(args)
    if peak and "train_tflops_per_s" in best["sppo"]:
        a, b = (100e12 * best[side]["train_tflops_per_s"] / peak for side in ["torch", "sppo"])
        print(f"| model FLOPs utilisation, of {peak / 1e12:.0f} TFLOP/s | {a:.1f} % | {b:.1f} % | {b / a:.2f} |")
    if "roofline" in best:
        print_roofline(args, best)


def measure(args, folder, pairs):
    """Medians over --rounds of every side, which take turns."""
    if not args.real and not (folder / "config.json").exists():
        make = "import sys; sys.path.insert(0, sys.argv.pop(1)); import bench; a = bench.arguments(); " \
               "bench.make_model(a.work / f'{a.shape}-{a.dtype}', a)"
        sppo_only = ["--sppo-only"] if args.sppo_only else []
        subprocess.run([sys.executable, "-c", make, Path(__file__).resolve().parent, *side_flags(args), *sppo_only], check=True)
    make_pairs(pairs, args)
    apart = lambda *flags: last_json([sys.executable, *sys.argv[:1], *side_flags(args), *flags])
    sides = {} if args.sppo_only else {"torch": lambda: apart("--torch-side")}
    if args.compile and "train" in args.what and not args.sppo_only:
        sides["compiled"] = lambda: apart("--torch-side", "--compile")
    if args.trl and "train" in args.what and not args.sppo_only:
        sides["trl"] = lambda: apart("--trl-side")
    if args.vllm and "generate" in args.what and not args.sppo_only:
        sides["vllm"] = lambda: last_json([args.vllm, *sys.argv[:1], *side_flags(args), "--vllm-side"])
    if args.llama_cpp and args.what == "generate" and not args.sppo_only:
        sides["llama_cpp"] = lambda: llama_cpp_side(folder, args)
    sides["sppo"] = lambda: sppo_side(folder, args, pairs)
    found = {"torch": {}, "sppo": {}} | {name: {} for name in sides}
    for number in range(args.rounds):
        for side, run in sides.items():
            report = run()
            print(f"round {number + 1} {side}: {report}", file=sys.stderr, flush=True)
            for key, value in report.items():
                if value is not None:
                    found[side].setdefault(key, []).append(value)
    best = {side: {key: statistics.median(values) for key, values in report.items()} for side, report in found.items()}
    share_flops(best)
    if args.bytes and args.shortest is None and not args.sppo_only:
        best["roofline"] = last_json([sys.executable, *sys.argv, "--bandwidth"])
    return best


def side_flags(args):
    """What a side that runs by itself needs to know."""
    names = ["shape", "device", "dtype", "recompute", "what", "lengths", "batch", "prompt", "response", "steps",
             "generate", "new", "threads", "shortest", "layers", "work", "real"]
    given = [(name, getattr(args, name)) for name in names]
    return [part for name, value in given if value is not None for part in ["--" + name, str(value)]]


def hides_avx512():
    """Whether scripts/hide_avx512.c is preloaded."""
    return "hide" in os.environ.get("LD_PRELOAD", "")


def processor():
    with open("/proc/cpuinfo") as file:
        lines = file.read().splitlines()
    value = lambda name: next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")
    hidden = hides_avx512()
    vectors = "AVX-512" if "avx512f" in value("flags") and not hidden else "AVX2" if "avx2" in value("flags") else platform.machine()
    return f"{len(os.sched_getaffinity(0))} cores of {value('model name') or platform.processor()} ({vectors})"


def write_table(args):
    """Rows of tokens a second and MiB, between `<!-- bench: PROCESSOR -->` and `<!-- end -->` of the file."""
    from importlib.metadata import version

    rows = []
    cells = CELLS + ([("generate", None, "uniform", 48, 64, 40, 0)] if args.real else [])
    real = args.real
    for what, name, lengths, prompt, tail, count, steps in cells:
        args.what, args.lengths, args.prompt = what, lengths, prompt
        args.real = None if name else real
        args.shape = name or "small"
        if what == "train":
            args.batch, args.steps, args.response = count, steps, tail
        else:
            args.generate, args.new = count, tail
        best = measure(args, args.work / f"{args.shape}-{args.dtype}", args.work / f"pairs-{args.shape}.jsonl")
        print(f"{what} {args.shape} {lengths} {prompt} {tail}: {best}", file=sys.stderr, flush=True)
        key = f"{what}_tokens_per_s"
        ours, theirs = best["sppo"], best["torch"]
        compiled = best.get("compiled", {}).get(key)
        # Of whole systems.
        system = best.get("trl", best.get("vllm", {})).get(key)
        gguf = best.get("llama_cpp", {}).get(key)
        size = "UltraFeedback-like" if lengths == "ultrafeedback" else f"{prompt} + {tail}"
        rows.append([
            {"train": "training", "generate": "generation"}[what], name or real.name, f"{count} × {size}",
            f"{ours[key]:.0f}", f"{theirs[key]:.0f}", f"{compiled:.0f}" if compiled else "",
            f"{ours[key] / max(theirs[key], compiled or 0):.2f}",
            f"{system:.0f} ({ours[key] / system:.2f})" if system else "",
            f"{gguf:.0f} ({ours[key] / gguf:.2f})" if gguf else "",
            f"{ours['peak_memory_mib']:.0f}", f"{theirs['peak_memory_mib']:.0f}",
            f"{ours['peak_memory_mib'] / theirs['peak_memory_mib']:.2f}",
        ])
    heads = ["what", "shape", "batch", "sppo", "PyTorch", "torch.compile", "ratio", "TRL or vLLM", "llama.cpp", "sppo MiB", "PyTorch MiB", "ratio"]
    table = ["| " + " | ".join(line) + " |" for line in [heads, ["---"] * len(heads), *rows]]
    begin, end = f"<!-- bench: {processor()} -->", "<!-- end -->"
    said = (f"Tokens a second, f32, medians of {args.rounds} by turns, {args.threads} threads on {processor()}, {time.strftime('%Y-%m-%d')}, "
            f"torch {version('torch')}; the first ratio is against the faster of PyTorch's; "
            f"TRL, vLLM and llama.cpp with how many times as fast sppo is.")
    text = args.table.read_text()
    if begin not in text:
        text += f"\n{begin}\n{end}\n"
    before, behind = text.split(begin, 1)
    behind = behind.split(end, 1)[1]
    args.table.write_text("\n".join([before + begin, said, "", *table, end]) + behind)


def share_flops(best):
    """The same operations a token for both sides: those that the model needs, shared prompts once."""
    ours, theirs = best["sppo"], best["torch"]
    if "train_tflops_per_s" in ours and "train_tokens_per_s" in theirs:
        a_token = ours["train_tflops_per_s"] / ours["train_tokens_per_s"]
        theirs["train_tflops_per_s"] = a_token * theirs["train_tokens_per_s"]


def card_flops(args):
    """Dense bf16 operations a second of the card, by its data sheet; None where it is not known."""
    if args.device == "cpu" or args.dtype != "bf16":
        return None
    import torch

    name = torch.cuda.get_device_name()
    known = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}
    return next((flops for part, flops in known.items() if part in name), None)


def copy_bandwidth(args):
    """Bytes a second that a large copy reads and writes."""
    import torch

    size = 2**28 if args.device == "cpu" else 2**32
    a = torch.empty(size, dtype=torch.uint8, device=args.device)
    b = torch.empty_like(a)
    best = 0.0
    for _ in range(8):
        synchronize(args)
        begun = time.perf_counter()
        b.copy_(a)
        synchronize(args)
        best = max(best, 2 * size / (time.perf_counter() - begun))
    return best


def print_roofline(args, best):
    """A decode step must read every weight but the embeddings, and the keys and values in use."""
    of, size = shape(args), {"f32": 4, "bf16": 2}[args.dtype]
    hidden, head = of["hidden_size"], of["hidden_size"] // of["num_attention_heads"]
    kv = of["num_key_value_heads"] * head
    layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * of["intermediate_size"]
    weights = (of["num_hidden_layers"] * layer + of["vocab_size"] * hidden) * size
    tokens = args.generate * (args.prompt + args.new / 2)
    cache = 2 * of["num_hidden_layers"] * kv * size * tokens
    least = (weights + cache) / best["roofline"]["bytes_per_s"]
    print(f"\nA step of {args.generate} sequences moves {(weights + cache) / 1e9:.2f} GB, at "
          f"{best['roofline']['bytes_per_s'] / 1e9:.0f} GB/s (a copy, measured) {1e3 * least:.2f} ms.", end="")
    for side in ["torch", "sppo"]:
        step = args.generate / best[side]["generate_tokens_per_s"]
        print(f" {side}: {1e3 * step:.2f} ms, {step / least:.1f} x that (prefill included).", end="")
    print()


if __name__ == "__main__":
    main()
