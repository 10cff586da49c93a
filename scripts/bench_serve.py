#!/usr/bin/env python3
"""Compares tokens per second of concurrent completions over HTTP with `sppo bench --only generate`.

    python3 scripts/bench_serve.py --sppo target/release/sppo --model runs/default/iteration-3/model

Both sample as many sequences of as many tokens, with prompts of random ids of one length; the best
of a few rounds counts. Ends with exit code 1 where HTTP gives less than --least of the bench.
"""

import argparse
import http.client
import json
import random
import subprocess
import sys
import threading
import time


def ask(address, body, tokens):
    connection = http.client.HTTPConnection(address, timeout=600)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = json.load(connection.getresponse())
    tokens.append(answer["usage"]["completion_tokens"])
    connection.close()


def served(args):
    """Tokens per second of each round."""
    command = [args.sppo, "serve", "--model", args.model, "--port", "0", "--json", "--batch", str(args.clients),
               "--precision", args.precision, "--device", args.device, "--prefix-memory-mib", "0", "-q"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = json.loads(server.stdout.readline())["address"]
        while True:
            connection = http.client.HTTPConnection(address)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                break
            time.sleep(0.1)
        return load(args, address)
    finally:
        server.terminate()
        server.wait()


def load(args, address):
    """Tokens per second of each round of concurrent completions that a server answers."""
    rates = []
    for number in range(args.repeat + 1):
        tokens, threads = [], []
        for client in range(args.clients):
            draw = random.Random(number * 1000 + client)
            body = {"prompt": [draw.randrange(5, 200) for _ in range(args.prompt)], "max_tokens": args.new,
                    "ignore_eos": True, "seed": client}
            threads.append(threading.Thread(target=ask, args=(address, body, tokens)))
        begun = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rates.append(sum(tokens) / (time.perf_counter() - begun))
        assert len(tokens) == args.clients and sum(tokens) == args.clients * args.new
    return rates[1:]  # The first one warms up.


def bench(args):
    """Tokens per second of the engine alone."""
    command = [args.sppo, "bench", "--model", args.model, "--only", "generate", "--generate", str(args.clients),
               "--prompt", str(args.prompt), "--new", str(args.new), "--repeat", str(args.repeat),
               "--precision", args.precision, "--device", args.device, "--json", "-q"]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ran.stdout.splitlines()[-1])["generate_tokens_per_s"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sppo", default="target/release/sppo")
    parser.add_argument("--model", required=True)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=48)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--precision", default="f32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--other", metavar="HOST:PORT", help="another OpenAI-compatible server with this model")
    parser.add_argument("--least", type=float, default=0.9)
    args = parser.parse_args()
    alone, over_http = bench(args), max(served(args))
    print(f"{args.clients} x {args.new} tokens: bench {alone:.0f} tokens/s, over HTTP {over_http:.0f} tokens/s, "
          f"{over_http / alone:.3f} of it")
    if args.other:
        print(f"{args.other}: {max(load(args, args.other)):.0f} tokens/s")
    sys.exit(over_http < args.least * alone)


if __name__ == "__main__":
    main()
