#!/usr/bin/env python3
"""Runs sppo's CUDA build on a machine without a card and counts what it asks of one.

    tests/cuda/run.py SPPO [--update] [--only CASE] [--top N] [--no-compile]
    tests/cuda/run.py SPPO --8b train|train8|decode64|decode256… [--layers N[,M]] [--matmul cublaslt]
    tests/cuda/run.py SPPO --memory [all|quick|CASE…] [--layers N[,M]]
    tests/cuda/run.py SPPO --rehearse [--layers N]
    tests/cuda/run.py SPPO --fill FOLDER [--layers N]

SPPO is the binary, built with --features cuda. The driver is null_cuda.c, before NVRTC stands
trace_nvrtc.c, and cublaslt.c is cuBLASLt (their headers say how they work); what they need is built and fetched into the folder
null-cuda of the target directory.

Each case runs twice, the first time to fill the caches of autotune and of kernels, with few units
(steps, new tokens, batches) and with more; what the two traces differ in is what a unit does. Launches, copies
to the card, waits and bytes touched are held against counts.json: 5 % more fails and says which kernels
grew; --update writes the file anew. What is missing on a machine must be said in one sentence, and a
second run must compile nothing. Then every kernel that was launched is compiled by the real NVRTC
for sm_90a, once for each source, and register spills are listed.

--8b counts steps of the shape of Llama-3-8B, which are held against no table: training on one pair of
2 x 1024 tokens that share 512, or eight (train8), and decoding in 64 and 256 slots. At --layers 2,4 (default) the
difference gives what 32 layers come to; --layers 32 takes up to 19 GiB of memory.

--memory holds what `sppo plan` reckons against the most that the driver had given at one time: training of
the shapes of Llama-3-8B and 3.2-1B, adapters, decoding, and PairRM; more than 10 % apart fails. The models
have few layers, which plan knows; what it reckons for all of them is printed beside.

--rehearse walks through scripts/gpu.sh on the driver without a card, with models of --layers layers
(default 2) and stubbed compilation. --fill does the same with the real NVRTC and leaves the compiled
kernels in FOLDER, for gpu.sh on a card: with its SPPO_KERNEL_CACHE there, the same binary, NVRTC of the
same version and compute capability 9.0, nothing that was compiled here is compiled again. All layers of
a model are alike, so that one is enough.
"""
import argparse
import concurrent.futures
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(1, os.path.join(ROOT, "scripts"))

import bench
import bench_pairrm
import checkpoint
import trace

GOLDEN = os.path.join(ROOT, "tests/fixtures/golden")
WORK = os.path.join(os.environ.get("CARGO_TARGET_DIR") or os.path.join(ROOT, "target"), "null-cuda")
WHEELS = ["nvidia-cuda-nvrtc==13.0.88", "nvidia-cuda-runtime==13.0.96", "nvidia-cuda-crt==13.0.88", "nvidia-cuda-cccl==13.0.85"]
CUDA = os.path.join(WORK, "wheels/nvidia/cu13")
KERNELS = os.path.join(WORK, "kernels")
TABLE = os.path.join(HERE, "counts.json")
MOST = 1.05


def place(*names):
    path = os.path.join(WORK, *names)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return path


def prepare():
    """NVRTC with its headers, the driver and what stands before NVRTC."""
    stamp = place("wheels", "complete")
    if not os.path.exists(stamp) or open(stamp).read() != str(WHEELS):
        shutil.rmtree(os.path.dirname(stamp), ignore_errors=True)
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--root-user-action=ignore",
                        "--no-deps", "--target", os.path.dirname(stamp), *WHEELS], check=True)
        open(stamp, "w").write(str(WHEELS))
    for source, library in (("null_cuda.c", "lib/libcuda.so.1"), ("trace_nvrtc.c", "lib/libnvrtc.so"), ("cublaslt.c", "cublaslt/libcublasLt.so.13")):
        subprocess.run(["cc", "-O2", "-std=gnu11", "-fPIC", "-shared", "-o", place(library), os.path.join(HERE, source), "-ldl", "-lpthread"], check=True)


def environment(**more):
    """Of a program that shall find the driver and NVRTC, and no file of its user's."""
    out = {name: value for name, value in os.environ.items() if not name.startswith(("NULLCUDA_", "TRACENVRTC_", "CUBECL_", "SPPO_"))}
    out |= {"LD_LIBRARY_PATH": f"{WORK}/lib:{WORK}/cublaslt:{CUDA}/lib", "CUDA_PATH": CUDA, "HOME": place("home", ""), "XDG_CACHE_HOME": place("home", ".cache"),
            "TRACENVRTC_DIR": KERNELS, "TRACENVRTC_STUB": "1", "NULLCUDA_SMALL": "1", "NULLCUDA_MEMORY": "140G",
            "SPPO_KERNEL_CACHE": place("cache"), "SPPO_SKIP_PROBE_PRODUCT": "1", "FAKE_CUBLASLT_CHECKS": "1"} | {name: str(value) for name, value in more.items()}
    return {name: value for name, value in out.items() if value}


def sppo(arguments, **more):
    """Runs the binary; its output, where it fails."""
    done = subprocess.run([SPPO, *map(str, arguments)], env=environment(**more), cwd=place("run", ""), text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"{SPPO} {' '.join(map(str, arguments))}: exit code {done.returncode}\n{done.stdout[-4000:]}")


def rows(name, rows):
    path = place("run", name)
    with open(path, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def pairs(count, prompt, response, vocab=400, apart=0):
    """Pairs of one length. With `apart` above 0 none begins like another, so that they share nothing."""
    ids = lambda begin, n: [3 + (begin + i) % (vocab - 3) for i in range(n)]
    row = lambda i: {"prompt_ids": ids(1 + apart * i, prompt), "chosen_ids": ids(2, response), "rejected_ids": ids(3, response),
                     "chosen_probs": 0.8, "chosen_probs_win": 0.7, "chosen_probs_lose": 0.3}
    return rows(f"pairs-{count}-{prompt}-{response}-{apart}.jsonl", [row(i) | {"prompt_id": str(i)} for i in range(count)])


def train(model, batch, prompt, response, *more, apart=0):
    def command(steps):
        return ["bench", "--model", model, "--only", "train", "--batch", batch, "--steps", steps, "--device", "cuda",
                "--pairs", pairs(batch * (steps + 1), prompt, response, apart=apart), *more]
    return command


def generate(model, slots, prompt, *more):
    return lambda new: ["bench", "--model", model, "--only", "generate", "--generate", slots, "--prompt", prompt, "--new", new,
                        "--temperature", 0.7, "--top-p", 0.9, "--device", "cuda", *more]


def score(model):
    return lambda batches: ["score", "--model", model, "--data", pairs(4 * batches, 12, 16), "--batch", 4, "--overwrite",
                            "--out", place("run", "scores.jsonl"), "--device", "cuda"]


def judge(model):
    def command(count):
        row = {"prompt": [{"role": "user", "content": "aaaa bbbb cccc"}], "responses": ["aa bb cc dd", "bb cc dd ee", "cc dd ee ff"]}
        data = rows(f"responses-{count}.jsonl", [row | {"prompt_id": str(i)} for i in range(count)])
        return ["judge", "--judge", "pairrm", "--model", model, "--chat-template", LLAMA, "--responses", data, "--overwrite",
                "--out", place("run", "judged.jsonl"), "--device", "cuda"]
    return command


LLAMA, PAIRRM = os.path.join(GOLDEN, "llama"), os.path.join(GOLDEN, "pairrm")
# What is run, with how many units: few and more.
CASES = {
    "train, f32": (train(LLAMA, 4, 12, 16), 1, 3),
    "train, bf16, recompute": (train(LLAMA, 4, 12, 16, "--precision", "bf16", "--recompute", "layer"), 1, 3),
    "train, bf16, cublaslt": (train(LLAMA, 4, 12, 16, "--precision", "bf16", "--recompute", "layer", "--matmul", "cublaslt"), 1, 3),
    "train, adapters": (train(LLAMA, 4, 12, 16, "--lora", 4), 1, 3),
    "generate, bf16": (generate(LLAMA, 8, 12, "--precision", "bf16"), 8, 24),
    "generate, bf16, cublaslt": (generate(LLAMA, 8, 12, "--precision", "bf16", "--matmul", "cublaslt"), 8, 24),
    "generate, f32": (generate(LLAMA, 8, 12), 8, 24),
    "score": (score(LLAMA), 2, 6),
    "judge": (judge(PAIRRM), 16, 48),
}


def count(name, command, few, more):
    """What a unit does, with the kernels of the runs."""
    begun, slug = time.time(), re.sub(r"\W+", "-", name)
    traces = {units: place("traces", f"{slug}-{units}.txt") for units in (few, more)}
    for _ in ("caches filled", "counted"):
        for units, path in traces.items():
            sppo(command(units), NULLCUDA_TRACE=path)
    first, second = (trace.read(traces[units], KERNELS) for units in (few, more))
    if second.refused:  # autotune, whose candidates may be refused, was over
        sys.exit(f"{name}: a real driver would refuse {len(second.refused)} calls: {second.refused[0]}; see {traces[more]}")
    print(f"\n== {name}, one of {more} units against {few}, {time.time() - begun:.0f} s; "
          f"python3 {os.path.relpath(HERE)}/trace.py {KERNELS} {traces[more]} {traces[few]} --units {more - few}")
    return (second - first) / (more - few), {digest for _, digest in second.kernels if digest != trace.LIBRARY}


def numbers(count):
    return {"launches": round(count.events["K"], 2), "copies to the device": round(count.events["H"], 2),
            "waits": round(count.events["S"], 2), "bytes touched": round(count.bytes)}


def compare(name, found, kernels, table):
    """Prints what grew; whether anything did."""
    known = table.get(name)
    if known is None:
        print(f"{name} is not in {os.path.relpath(TABLE)}: --update")
        return True
    grew = [f"{what} {found[what]:g}, of {known[what]:g} before" for what in found if found[what] > MOST * known[what]]
    for line in grew:
        print(f"GREW: {line}")
    for kernel in sorted({*kernels, *known["kernels"]}) if grew else ():
        before, now = known["kernels"].get(kernel, 0), kernels.get(kernel, 0)
        if now > before:
            print(f"    {now - before:+9.1f} launches of {kernel}")
    if any(found[what] * MOST < known[what] for what in found):
        print("fewer than before: --update")
    return bool(grew)


def start(device, batch=4, prompt=12, response=16, matmul="auto", **more):
    """Exit code and what is said by a small training."""
    command = [SPPO, *map(str, train(LLAMA, batch, prompt, response, "--matmul", matmul)(1))]
    command[command.index("cuda")] = device
    done = subprocess.run(command, env=environment(**more), cwd=place("run", ""), text=True, timeout=60, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.returncode, done.stdout


def refusals():
    """Whether what is missing is said in one sentence, with exit code 2 (1 where it comes later)."""
    alone = place("driver-alone", "libcuda.so.1")
    shutil.copy(place("lib", "libcuda.so.1"), alone)
    other = place("no-folder")
    open(other, "w").close()
    cases = [
        ("cuda", 2, "this machine has no NVIDIA driver", {"LD_LIBRARY_PATH": ""}),
        ("cuda", 2, "the NVIDIA driver finds no card", {"NULLCUDA_CARDS": 0}),
        ("cuda:1", 2, "there is no cuda:1: the driver shows 1 card, ", {}),
        ("cuda:2", 2, "there is no cuda:2: the driver shows 2 cards, from cuda:0 to cuda:1", {"NULLCUDA_CARDS": 2}),
        ("cuda", 2, "the NVIDIA driver knows CUDA 11.4, but NVRTC is of CUDA 13.0", {"NULLCUDA_VERSION": 11040}),
        ("cuda", 2, "NVRTC, which compiles kernels, cannot be loaded", {"LD_LIBRARY_PATH": os.path.dirname(alone)}),
        ("cuda", 2, "the headers of CUDA are missing: there is no /nowhere/include/cuda_fp16.h", {"CUDA_PATH": "/nowhere"}),
        ("cuda:0", 2, "cuda:0 has 102 MiB of its 143360 MiB free", {"NULLCUDA_TAKEN": "139.9G"}),
        ("cuda", 2, "cuda cannot be used: it computes wrongly: ", {"SPPO_SKIP_PROBE_PRODUCT": ""}),
        ("cuda", 2, 'matmul "cublaslt": libcublasLt.so.13 cannot be loaded: ', {"matmul": "cublaslt", "LD_LIBRARY_PATH": f"{WORK}/lib:{CUDA}/lib"}),
        ("cuda", 2, f'matmul "cublaslt": cuBLASLt 13.1.0 ({WORK}/cublaslt/libcublasLt.so.13) cannot be used: CUBLAS_STATUS_NOT_INITIALIZED (1)',
         {"matmul": "cublaslt", "FAKE_CUBLASLT_FAILS": "create"}),
        ("cuda", 1, 'cuBLASLt failed: CUBLAS_STATUS_EXECUTION_FAILED (13); matmul "cubecl" does without it', {"matmul": "cublaslt", "FAKE_CUBLASLT_FAILS": "later"}),
        ("cuda", 1, "the device ran out of memory: ", {"NULLCUDA_MEMORY": "300M", "batch": 64, "prompt": 100, "response": 300}),
    ]
    failed = 0
    for device, expected, text, more in cases:
        code, said = start(device, **more)
        lines = [line for line in said.splitlines() if " INFO " not in line]
        if code != expected or len(lines) != 1 or not lines[0].startswith("error: " + text):
            failed += 1
            print(f"WRONG: {device} with {more}: exit code {code} and\n{said}\ninstead of exit code {expected} and: error: {text}")
    code, said = start("cuda", SPPO_KERNEL_CACHE=other)
    if code or said.count("compiled kernels are not kept: ") != 1:
        failed += 1
        print(f"WRONG: a cache that cannot be written: exit code {code} and\n{said}")
    print(f"\n== {len(cases) + 1} ways to fail: {failed} are not said as they should be")
    return not failed


def calls():
    """How often NVRTC has been asked to compile."""
    path = place("kernels", "calls")
    return open(path).read().count("\n") if os.path.exists(path) else 0


def cache():
    """Whether a second run compiles nothing, and four at once do not harm each other."""
    folder, counts, failed = place("cache-of-test"), [], 0
    for several, kept in ((1, "off"), (1, folder), (1, folder), (4, folder + "-of-four"), (4, folder + "-of-four")):
        if kept not in ("off", *counts):
            shutil.rmtree(kept, ignore_errors=True)
        before = calls()
        with concurrent.futures.ThreadPoolExecutor(several) as pool:
            for code, said in pool.map(lambda _: start("cuda", SPPO_KERNEL_CACHE=kept), range(several)):
                if code or "ERROR" in said or "WARN" in said:
                    failed += 1
                    print(f"WRONG: exit code {code} and\n{said}")
        counts += [kept, calls() - before]
    off, first, second, four, again = counts[1::2]
    print(f"\n== kernels compiled by a small training: {off} without a cache, {first} with an empty one, {second} with what that left; "
          f"by four at once {four}, by four more {again}")
    return not failed and first > 0 and second == 0 and again == 0


TINY = """
output_dir = "run-of-warm-up"
device = "cuda"
iterations = 1
[model]
path = "{llama}"
[prompts]
train = "prompts.jsonl"
heldout = "prompts.jsonl"
max_length = 64
[generate]
samples = 3
max_new_tokens = 16
batch = 8
precision = "bf16"
[judge]
kind = "pairrm"
model = "{pairrm}"
[pairs]
keep_ties = true
[train]
epochs = 1
batch_size = 4
max_length = 96
max_prompt_length = 64
precision = "bf16"
recompute = "layer"
memory_mib = 16
[eval]
max_new_tokens = 24
"""


def warm_up():
    """Whether a run compiles next to nothing that `sppo warm-up` did not: lengths between those that it tries may still choose another kernel."""
    folder = place("cache-of-warm-up")
    for old in (folder, place("run", "run-of-warm-up")):
        shutil.rmtree(old, ignore_errors=True)
    with open(place("run", "tiny.toml"), "w") as file:
        file.write(TINY.format(llama=LLAMA, pairrm=PAIRRM))
    rows("prompts.jsonl", [{"prompt": "abc " * (2 * i + 1)} for i in range(8)])
    counts = []
    for command in ("warm-up", "run"):
        before = calls()
        sppo([command, "--config", "tiny.toml"], SPPO_KERNEL_CACHE=folder)
        counts.append(calls() - before)
    print(f"\n== kernels compiled by sppo warm-up: {counts[0]}, by the run after it: {counts[1]}")
    return counts[0] > 10 * counts[1]


def profile():
    """Whether SPPO_PROFILE=kernels gives a table with the kernels' names."""
    start("cuda")  # Autotune's trials would fill the table.
    code, said = start("cuda", SPPO_PROFILE="kernels")
    rows = [line.split(" | ") for line in said.splitlines() if line.startswith("| ")]
    names = {row[0].removeprefix("| ") for row in rows}
    wanted = {"kernel", "RmsNormKernel", "UpdateKernel", "SoftmaxKernel", "all"}
    fine = code == 0 and wanted <= names and any(name.startswith("MatmulEntry") for name in names) and all(len(row) == 5 for row in rows)
    print(f"\n== a profile of {len(rows)} lines" if fine else f"WRONG: SPPO_PROFILE=kernels: exit code {code} and\n{said}")
    code, said = start("cuda", SPPO_PROFILE="all")
    refused = code == 2 and said.strip() == 'error: SPPO_PROFILE="all" is unknown; SPPO_PROFILE=kernels times a GPU\'s kernels'
    if not refused:
        print(f"WRONG: SPPO_PROFILE=all: exit code {code} and\n{said}")
    return fine and refused


def walk(layers, folder=None):
    """Whether scripts/gpu.sh ends well without a card; with a folder its kernels are compiled into that."""
    out = place("gpu", "")
    more = {"REHEARSE": "null", "LAYERS": layers, "SPPO": SPPO, "OUT": out, "WORK": place(f"models-of-gpu-{layers}", ""), "PYTHON": sys.executable}
    if folder:
        more |= {"LIMIT": 1000000, "SPPO_KERNEL_CACHE": os.path.abspath(folder), "TRACENVRTC_STUB": "", "TRACENVRTC_DIR": ""}
        os.makedirs(folder, exist_ok=True)
    done = subprocess.run(["bash", os.path.join(ROOT, "scripts/gpu.sh")], env=environment(**more), stdin=subprocess.DEVNULL)
    if folder:
        size = sum(os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(folder) for name in names)
        print(f"\n== {folder}: {size >> 20} MiB")
    return done.returncode == 0


def compile_one(digest):
    """The real NVRTC's report about a kernel's source; kept by the source."""
    source = open(os.path.join(KERNELS, digest + ".cu"), "rb").read()
    kept = place("compiled", WHEELS[0], digest + ".json")
    if os.path.exists(kept):
        return json.load(open(kept))
    ctypes.CDLL(f"{CUDA}/lib/libnvrtc-builtins.so.13.0", ctypes.RTLD_GLOBAL)  # NVRTC asks for it by its name alone
    nvrtc, program, size = ctypes.CDLL(f"{CUDA}/lib/libnvrtc.so.13"), ctypes.c_void_p(), ctypes.c_size_t()
    options = ["--gpu-architecture=sm_90a", f"--include-path={CUDA}/include", f"--include-path={CUDA}/include/cccl", "-lineinfo", "--ptxas-options=-v"]
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, None, 0, None, None)
    begun = time.time()
    code = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*(o.encode() for o in options)))
    seconds = time.time() - begun
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    name = re.search(rb'__global__ void[^\n]*?(\w+) \(', source)
    report = {"kernel": name[1].decode() if name else "?", "ok": code == 0, "seconds": seconds, "log": log.value.decode(errors="replace")}
    if report["ok"]:
        with open(kept + ".new", "w") as file:
            json.dump(report, file)
        os.rename(kept + ".new", kept)
    return report


def compile_all(digests):
    """Whether all kernels compile."""
    begun, failed, spilling = time.time(), 0, []
    with concurrent.futures.ProcessPoolExecutor() as pool:
        for digest, report in zip(digests, pool.map(compile_one, digests)):
            if not report["ok"]:
                failed += 1
                print(f"DOES NOT COMPILE: {report['kernel']}, {KERNELS}/{digest}.cu\n{report['log']}")
            stores = re.search(r"(\d+) bytes spill stores", report["log"])
            if stores and int(stores[1]):
                registers = re.search(r"Used (\d+) registers", report["log"])
                spilling.append((int(stores[1]), f"{registers[1] if registers else '?'} registers, {digest[:8]} {report['kernel']}"))
    print(f"\n== {len(digests)} kernels by the real NVRTC for sm_90a: {failed} do not compile, {len(spilling)} spill registers, {time.time() - begun:.0f} s")
    for stores, what in sorted(spilling, reverse=True):
        print(f"    {stores} bytes spilled, {what}")
    return not failed


LARGE = ["train", "train8", "decode64", "decode256"]


def large(names, layers, matmul, top):
    """Counts of the shape of Llama-3-8B; the kernels of the runs."""
    launched = set()
    for name in names:
        found = []
        for depth in layers:
            folder = llama("8b", depth)
            if name.startswith("train"):
                batch = int(name.removeprefix("train") or 1)
                case = train(folder, batch, 512, 512, "--precision", "bf16", "--recompute", "layer", "--matmul", matmul, apart=13), 1, 2
            else:
                # Long enough for all prompts, some 6 a step, to be in their slots before the first one ends.
                slots = int(name.removeprefix("decode"))
                case = generate(folder, slots, 150, "--precision", "bf16", "--matmul", matmul), slots // 5 + 8, slots // 5 + 24
            step, digests = count(f"8b, {depth} layers, {name}", *case)
            print("\n".join(step.table(top)), flush=True)
            found.append(numbers(step))
            launched |= digests
        if len(found) > 1:
            times = (32 - layers[0]) / (layers[1] - layers[0])
            print(f"\n== 8b, {name}, reckoned for 32 layers:", {key: round(n + times * (found[1][key] - n)) for key, n in found[0].items()}, flush=True)
    return launched


# As they are published: 3.2-1B ties its embeddings.
SHAPES = {"8b": bench.SHAPES["8b"], "1b": bench.SHAPES["1b"] | {"tie_word_embeddings": True}}


def llama(name, layers):
    """A checkpoint of zeros in the shape of a Llama 3."""
    folder = place("models", f"{name}-{layers}-layers")
    if not os.path.exists(folder + "/config.json"):
        checkpoint.llama(folder, SHAPES[name] | {"num_hidden_layers": layers})
    return folder


def of_training(name, batch, lora=None):
    """A model of the shape called `name`, `batch` pairs of 2 x 1024 tokens that share 512: its run and its plan."""
    def case(layers):
        folder, more = llama(name, layers), ["--lora", lora] if lora else []
        command = train(folder, batch, 512, 512, "--precision", "bf16", "--recompute", "layer", *more, apart=13)(2)
        settings = {"model.path": folder, "train.data": pairs(3 * batch, 512, 512, apart=13), "train.batch_size": batch,
                    "train.precision": "bf16", "train.recompute": "layer", "train.max_length": 1024, "train.max_prompt_length": 512,
                    "train.gradient_accumulation": 1, "train.optimizer": "rmsprop"}
        return command, settings | ({"train.lora.rank": lora} if lora else {}), "training"
    return case, SHAPES[name]["num_hidden_layers"]


def of_decoding(name, slots, prompt=150, new=6):
    def case(layers):
        folder = llama(name, layers)
        command = generate(folder, slots, prompt, "--precision", "bf16")(new)
        settings = {"model.path": folder, "prompts.train": "none.jsonl", "generate.batch": slots, "generate.precision": "bf16",
                    "generate.max_new_tokens": new, "train.max_prompt_length": prompt}
        return command, settings, "generation"
    return case, SHAPES[name]["num_hidden_layers"]


PAIRRM_CONFIG = bench_pairrm.config("large")


def of_judging():
    def case(layers):
        folder = place("models", f"pairrm-{layers}-layers")
        if not os.path.exists(folder + "/config.json"):
            checkpoint.pairrm(folder, PAIRRM_CONFIG | {"num_hidden_layers": layers}, PAIRRM)
        row = {"prompt": [{"role": "user", "content": "aaaa bbbb cccc " * 60}],
               "responses": [f"{letter} bb cc dd " * 60 for letter in "aefgh"]}
        data = rows("long-responses.jsonl", [row | {"prompt_id": str(i)} for i in range(2)])
        command = ["judge", "--judge", "pairrm", "--model", folder, "--chat-template", LLAMA, "--responses", data, "--overwrite",
                   "--out", place("run", "judged.jsonl"), "--device", "cuda"]
        settings = {"model.path": llama("1b", 2), "prompts.train": "none.jsonl", "judge.kind": "pairrm", "judge.model": folder}
        return command, settings, "judging"
    return case, PAIRRM_CONFIG["num_hidden_layers"]


# What is held against plan: a run with so many layers and its settings, the real model's layers.
MEMORY = {
    "8b, 1 pair": of_training("8b", 1),
    "8b, 8 pairs": of_training("8b", 8),
    "8b, 8 pairs, adapters": of_training("8b", 8, 16),
    "1b, 1 pair": of_training("1b", 1),
    "1b, 8 pairs": of_training("1b", 8),
    "8b, decoding in 64 slots": of_decoding("8b", 64),
    "8b, decoding in 256 slots": of_decoding("8b", 256),
    "pairrm": of_judging(),
}
QUICK = ["1b, 1 pair", "1b, 8 pairs"]
APART = 0.1


def planned(settings, of):
    """Bytes that plan reckons for a part of a run."""
    def value(setting):
        return str(setting).lower() if isinstance(setting, bool) else str(setting) if isinstance(setting, int) else json.dumps(setting)
    sets = [word for key, setting in settings.items() for word in ("--set", f"{key}={value(setting)}")]
    config = place("run", "plan.toml")
    with open(config, "w") as file:
        file.write('device = "cuda"\n')
    done = subprocess.run([SPPO, "plan", "--config", config, *sets, "--memory-gib", "140", "--json"], env=environment(), cwd=place("run", ""),
                          text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode:
        sys.exit(f"sppo plan: exit code {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout[done.stdout.index("{"):])[of]["peak"]


def memory(names, layers):
    """Whether plan and the driver are no more than 10 % apart."""
    failed = False
    print(f"\n{'':32} layers   reserved    planned     apart   planned for the real model")
    for name in names:
        case, all_layers = MEMORY[name]
        for depth in [all_layers] if name == "pairrm" else layers:
            command, settings, of = case(depth)
            path = place("traces", re.sub(r"\W+", "-", f"memory-{name}-{depth}") + ".txt")
            sppo(command, NULLCUDA_TRACE=path)
            found, reckoned = trace.read(path, KERNELS).reserved, planned(settings, of)
            apart = reckoned / found - 1
            real = planned(case(all_layers)[1], of)
            wrong = abs(apart) > APART
            failed |= wrong
            print(f"{name:32} {depth:6} {found / 2**30:10.2f} {reckoned / 2**30:10.2f} {100 * apart:8.1f} % {real / 2**30:12.1f} GiB"
                  + ("   WRONG" if wrong else ""), flush=True)
    return not failed


def main():
    global SPPO
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sppo")
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--only", help="cases whose name holds this")
    parser.add_argument("--top", type=int, default=0, help="kernels shown for each case")
    parser.add_argument("--no-compile", action="store_true")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--8b", dest="large", nargs="+", choices=LARGE)
    instead.add_argument("--memory", nargs="*", metavar="CASE", choices=["all", "quick", *MEMORY], help=f"all, quick, or of: {', '.join(MEMORY)}")
    parser.add_argument("--layers", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--matmul", choices=["cubecl", "cublaslt"], default="cubecl", help="with --8b")
    instead.add_argument("--rehearse", action="store_true")
    instead.add_argument("--fill", metavar="FOLDER")
    given = parser.parse_args()
    SPPO = os.path.abspath(given.sppo)
    prepare()
    if given.fill or given.rehearse:
        layers = given.layers or [1 if given.fill else 2]
        sys.exit(not walk(layers[0], given.fill))
    table = json.load(open(TABLE)) if os.path.exists(TABLE) else {}
    failed, launched = False, set()
    if given.memory is not None:
        names = {"all": list(MEMORY), "quick": QUICK}.get("".join(given.memory) or "all", given.memory)
        sys.exit(not memory(names, given.layers or [2, 4]))
    if given.large:
        launched = large(given.large, given.layers or [2, 4], given.matmul, given.top or 40)
    else:
        for name, case in CASES.items():
            if given.only and given.only not in name:
                continue
            found, digests = count(name, *case)
            launched |= digests
            print("\n".join(found.table(given.top)))
            kernels = found.by_name()
            if given.update:
                table[name] = numbers(found) | {"kernels": kernels}
            else:
                failed |= compare(name, numbers(found), kernels, table)
        if not given.only:
            failed |= not refusals()
            failed |= not cache()
            failed |= not warm_up()
            failed |= not profile()
        if given.update:
            with open(TABLE, "w") as file:
                json.dump(table, file, indent=1)
                file.write("\n")
    if not given.no_compile:
        failed |= not compile_all(sorted(launched))
    sys.exit(failed)


if __name__ == "__main__":
    main()
