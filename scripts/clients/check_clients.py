"""Checks `sppo serve` with the clients that people use, unmodified from PyPI; see check_clients.sh.

Starts the server on a small Llama, puts a recording proxy before it, runs the checks, and writes what
was sent and answered to --record DIR, one file a client. CI replays those (tests/serve/clients.rs)."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request

import harness_check
import lm_eval_check
import openai_check
from record import Recorder, save


def start(sppo, model, *more):
    """The server on a free port; its process and (host, port)."""
    server = subprocess.Popen([sppo, "serve", "--model", model, "--port", "0", "--served-name", "golden",
                               "--json", *more], stdout=subprocess.PIPE, text=True)
    address = json.loads(server.stdout.readline())["address"]
    host, _, port = address.removeprefix("http://").rpartition(":")
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://{host}:{port}/health")
            return server, (host, int(port))
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the server does not get healthy")


def metrics(place, key):
    request = urllib.request.Request(f"http://{place[0]}:{place[1]}/metrics",
                                     headers={"Authorization": f"Bearer {key}"})
    text = urllib.request.urlopen(request).read().decode()
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sppo", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--record", help="folder for what was sent and answered")
    parser.add_argument("--alpaca-python", help="python of a venv with alpaca_eval 0.6.6")
    parser.add_argument("--arena-hard", help="clone of lmarena/arena-hard-auto")
    parser.add_argument("--only", default="openai,harness,alpaca,lm_eval")
    args = parser.parse_args()
    only = args.only.split(",")
    with tempfile.TemporaryDirectory() as work:
        key_file = os.path.join(work, "key")
        key = "sk-check"
        with open(key_file, "w") as file:
            file.write(key)
        os.environ["OPENAI_API_KEY"] = key
        server, place = start(args.sppo, args.model, "--api-key-file", key_file)
        recorder = Recorder(place)
        url = f"http://127.0.0.1:{recorder.port}/v1"
        try:
            kept = {}
            if "openai" in only:
                openai_check.check(url, key)
                kept["openai"] = recorder.take()
            if "harness" in only:
                harness_check.check(url, key, "golden", args.arena_hard)
                kept["harness"] = recorder.take()
            if "alpaca" in only and args.alpaca_python:
                script = os.path.join(os.path.dirname(__file__), "alpaca_check.py")
                subprocess.run([args.alpaca_python, script, url, key, "golden", os.path.join(work, "alpaca")],
                               check=True, env=dict(os.environ, OPENAI_API_BASE=url))
                kept["alpaca_eval"] = recorder.take()
            if "lm_eval" in only:
                lm_eval_check.check_shared_context(args.model, url.removesuffix("/v1"), work,
                                                   lambda: metrics(place, key))
                recorder.take()
                kept["lm_eval"] = lm_eval_check.check(args.model, url.removesuffix("/v1"), work, recorder)
            if args.record:
                os.makedirs(args.record, exist_ok=True)
                for name, records in kept.items():
                    save(os.path.join(args.record, f"{name}.jsonl"), records)
        finally:
            server.terminate()
            code = server.wait(60)
    if code != 0:
        raise SystemExit(f"the server ended with {code}")
    print("all clients agree")


if __name__ == "__main__":
    sys.exit(main())
