#!/usr/bin/env python3
"""Compares the tensors of two checkpoints bit for bit: compare.py ONE OTHER. Exit code 1 if any differ."""

import json
import pathlib
import sys


def tensors(path):
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    header.pop("__metadata__", None)
    spans = {name: info["data_offsets"] for name, info in header.items()}
    return {name: data[begin + start : begin + end] for name, (start, end) in spans.items()}


def main():
    one, other = map(pathlib.Path, sys.argv[1:])
    differ = 0
    for name in ["model.safetensors", "optimizer.safetensors"]:
        ours, theirs = tensors(one / name), tensors(other / name)
        names = [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]
        differ += len(names)
        example = f", such as {min(names)}" if names else ""
        print(f"{name}: {len(names)} of {len(ours)} tensors differ{example}")
    sys.exit(differ > 0)


if __name__ == "__main__":
    main()
