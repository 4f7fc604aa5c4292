#!/usr/bin/env python3
"""Times our training step beside the reference's, in turns, and prints a table.

Both take the same shapes on the CPU: the full Q-Former in 32 bits, image features given, dropout on,
captions of the same lengths. The reference is bench/step/reference.py in PyTorch eager, which this
script installs into the cache the first time.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
# Token counts of the first 16 captions of COCO's 2017 validation set.
LENGTHS = "13,10,14,10,16,13,15,12,16,11,11,11,11,14,10,18"
PACKAGES = ["torch==2.11.0", "numpy"]
PARTS = ["forward_s", "backward_s", "optimiser_s", "step_s"]


def python_with_torch(cache):
    """The interpreter of a venv with PyTorch, made the first time."""
    venv = cache / "venv"
    python = venv / "bin" / "python"
    if not (venv / "complete").exists():
        print(f"fetching PyTorch into {venv} (some 2 GB)", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        (venv / "complete").touch()
    return python


def steps(command, environment):
    """The JSON lines that a command prints."""
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--qftrain", required=True, type=pathlib.Path)
    parser.add_argument("--cache", required=True, type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="timed steps a round")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    python = python_with_torch(args.cache)
    shared = ["--steps", str(args.steps), "--warmup", "1", "--threads", str(args.threads)]
    shared += ["--lengths", LENGTHS]
    commands = {
        "reference": [python, HERE / "reference.py", *shared],
        "qformer": [args.qftrain, "bench", "--features", "--device", "cpu", "--json", *shared],
    }
    # Threads that wait for each other sleep in both: on a shared machine spinning costs many times over.
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(args.threads)}
    times = {name: [] for name in commands}
    for number in range(args.rounds):
        for name, command in commands.items():
            times[name] += steps(command, environment)
            latest = [f"{record['step_s']:.1f}" for record in times[name][-args.steps :]]
            print(f"round {number + 1} of {args.rounds}: {name} {' '.join(latest)} s", file=sys.stderr)
    medians = {
        name: {part: statistics.median(record[part] for record in records) for part in PARTS}
        for name, records in times.items()
    }
    count = args.rounds * args.steps
    print(f"Seconds a step, medians of {count} each in turns, {args.threads} threads:\n")
    print("| part | reference, PyTorch eager | qformer | ratio |")
    print("|---|---|---|---|")
    for part in PARTS:
        theirs, ours = medians["reference"][part], medians["qformer"][part]
        print(f"| {part[:-2]} | {theirs:.2f} | {ours:.2f} | {ours / theirs:.2f} |")
    best = {name: min(record["step_s"] for record in records) for name, records in times.items()}
    ratio = best["qformer"] / best["reference"]
    print(f"| best step | {best['reference']:.2f} | {best['qformer']:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
