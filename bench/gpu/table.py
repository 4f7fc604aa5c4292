#!/usr/bin/env python3
"""Prints the table of a folder of bench/gpu.sh: table.py PRESET FOLDER BATCH..."""

import json
import pathlib
import sys

# Of an image as the reference computes it: tower forward, Q-Former forward and backward.
REFERENCE_FLOP = {"blip2-vit-g": 701e9}
TITLES = [
    "batch",
    "images/s",
    "step, ms",
    "host, ms",
    "MFU",
    "own FLOP/s, of matmul",
    "matmul TFLOP/s",
    "GPU idle",
    "GPU operations a step",
    "waiting for data",
    "upload, GB/s",
    "memory, GB",
    "PyTorch step, ms",
    "ours / PyTorch",
]
COMPUTING = ["forward", "backward", "optimiser"]


def read(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def shown(value, scale=1.0, digits=1, unit=""):
    return "-" if value is None else f"{value * scale:.{digits}f}{unit}"


def row(preset, folder, batch, reference):
    step = ((reference or {}).get("steps") or {}).get(batch) or {}
    theirs = step.get("step_ms")
    profile = read(folder / f"train-{batch}" / "profile.json")
    if profile is None:
        return [batch] + ["-"] * (len(TITLES) - 3) + [shown(theirs), "-"]
    last, trace, roofline = profile["last_steps"], profile["trace"], profile["roofline"]
    ms = 1e3 * last["secs"] / max(last["steps"], 1)
    host = sum(last["phase_secs"][phase] for phase in COMPUTING) / max(last["steps"], 1)
    peak = roofline["matmul_flop_per_s"]
    flop = REFERENCE_FLOP.get(preset)
    return [
        batch,
        shown(last["images_per_s"]),
        shown(ms),
        shown(host, 1e3),
        shown(flop and last["images_per_s"] * flop / peak, 100, unit=" %"),
        shown(1e3 * profile["flop_per_step"] / ms / peak, 100, unit=" %"),
        shown(peak, 1e-12, 2),
        shown(trace["gpu_idle_share"], 100, unit=" %"),
        shown(trace["gpu_operations_per_step"], digits=0),
        shown(last["data_wait_share"], 100, unit=" %"),
        shown(roofline["upload_peak_bytes_per_s"], 1e-9),
        shown(profile["device_memory_peak_bytes"], 1e-9),
        shown(theirs),
        shown(theirs and ms / theirs, digits=2),
    ]


def main():
    preset, folder, batches = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3:]
    reference = read(folder / "reference.json")
    print("| " + " | ".join(TITLES) + " |\n" + "|---" * len(TITLES) + "|")
    for batch in batches:
        print("| " + " | ".join(row(preset, folder, batch, reference)) + " |")
    print("\nOurs: the last 50 steps of the run, or all of fewer; idle time of ten steps before them. Host: time")
    print("in which the training thread starts work. MFU: 701 GFLOP an image (ViT-g) of the matmul measured.")
    if reference:
        print(f"PyTorch {reference['torch']} on {reference['device']}: {reference['what']}.")


if __name__ == "__main__":
    main()
