#!/usr/bin/env python3
"""Compares a training's event file with its metrics.jsonl, as TensorBoard's own reader sees it.

    pip install tensorboard
    python3 scripts/check_tensorboard.py runs/default/iteration-1 …

Every number of metrics.jsonl must be there once under its step and tag, equal but for the rounding
to f32, and nothing else. Of a run's folder (no metrics.jsonl) all that is there is printed.
"""

import json
import math
import struct
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

KEEP_ALL = {"scalars": 0, "histograms": 0, "tensors": 0}


def numbers(line):
    """Tags and values of a line."""
    for key, value in line.items():
        if key == "eval":
            yield from ((f"eval/{name}", number) for name, number in value.items() if number is not None)
        elif key != "step" and not isinstance(value, bool) and isinstance(value, (int, float)):
            yield f"train/{key}", value


def f32(value):
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)


def check(folder):
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance=KEEP_ALL)
    events.Reload()
    tags = events.Tags()
    metrics = folder / "metrics.jsonl"
    if not metrics.exists():
        for tag in tags["scalars"]:
            print(tag, [(event.step, event.value) for event in events.Scalars(tag)])
        for tag in tags["histograms"]:
            last = events.Histograms(tag)[-1].histogram_value
            print(tag, f"{len(events.Histograms(tag))} steps; last: {last.num:.0f} in {last.min}..{last.max}")
        for tag in tags["tensors"]:
            last = events.Tensors(tag)[-1].tensor_proto.string_val
            print(tag, len(events.Tensors(tag)), last[0].decode()[:200] if last else "")
        return
    expected = {}
    for line in map(json.loads, metrics.read_text().splitlines()):
        for tag, value in numbers(line):
            expected.setdefault(tag, []).append((line["step"], f32(value)))
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags["scalars"]}
    for tag in sorted(expected.keys() | found.keys()):
        if expected.get(tag) != found.get(tag):
            sys.exit(f"{folder}: {tag}: metrics.jsonl has {expected.get(tag)}, TensorBoard {found.get(tag)}")
    count = sum(map(len, found.values()))
    print(f"{folder}: {len(found)} tags, {count} values are those of metrics.jsonl")


for name in sys.argv[1:]:
    check(Path(name))
