#!/usr/bin/env python3
"""Splits a folder of captioned images into OUT/train and OUT/held, which are made of links.

Usage: hold_out.py FOLDER OUT EVERY

Every EVERY-th captioned image, in order of path, is held out. Images that share a stem stay
together, as do their captions. FOLDER is only read.
"""

import os
import sys
from pathlib import Path

IMAGES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
CAPTIONS = {".txt", ".json"}
FEWEST = 20  # captioned images: a batch to train on, and some to hold out


def files_by_stem(folder: Path) -> dict[Path, list[Path]]:
    """Image and caption files, relative to `folder`, that share path and stem; sorted."""
    stems: dict[Path, list[Path]] = {}
    for where, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            path = (Path(where) / name).relative_to(folder)
            if not name.startswith(".") and path.suffix.lower() in IMAGES | CAPTIONS:
                stems.setdefault(path.with_suffix(""), []).append(path)
    return dict(sorted(stems.items()))


def main() -> None:
    folder, out, every = Path(sys.argv[1]).resolve(), Path(sys.argv[2]), int(sys.argv[3])
    if out.resolve().is_relative_to(folder):
        sys.exit(f"error: {out} lies in {folder}, which is only read; choose another DEMO_DIR")
    if every < 2:
        sys.exit(f"error: HOLD_OUT_EVERY={every}: 2 is the least that leaves images to train on")
    counts = {"train": 0, "held": 0}
    for files in files_by_stem(folder).values():
        suffixes = {path.suffix.lower() for path in files}
        captioned = bool(suffixes & IMAGES) and bool(suffixes & CAPTIONS)
        # The rest goes to train, where `qfdata shard` says what is wrong with it.
        held = captioned and sum(counts.values()) % every == every - 1
        split = "held" if held else "train"
        counts[split] += captioned
        for path in files:
            link = out / split / path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(folder / path)
    if sum(counts.values()) < FEWEST:
        sys.exit(
            f"error: {folder} has {sum(counts.values())} images with a .txt or .json of the same "
            f"stem; {FEWEST} are the least to train and evaluate on"
        )
    print(f"{counts['train']} captioned images to train on, {counts['held']} held out")


if __name__ == "__main__":
    main()
