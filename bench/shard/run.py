#!/usr/bin/env python3
"""Photographs a CPU-second of `qfdata shard` and of other programs that build shards: `make bench-shard`.

    run.py --qfdata target/release/qfdata --pairs FOLDER [--cache FOLDER] [--rounds 3] [--workers 2]

FOLDER holds photographs with captions beside them (a.jpg, a.txt); they are repeated under other names, as links,
until there are --count. Every program makes tar shards of 500 with the shorter side 256, JPEG quality 95; all run
in turn for a number of rounds, and the table holds medians. The last lines compare copying without re-encoding with
`cp`. CPU time is user and system of a program's whole tree of processes, as wait4(2) reports it.
"""
import argparse
import glob
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import time

HERE = pathlib.Path(__file__).parent
PACKAGES = ["img2dataset==1.47.0", "webdataset", "opencv-python-headless", "simplejpeg", "pandas", "pyarrow"]
SIZE, QUALITY = 256, 95


def environment(cache):
    """The Python of a virtual environment with the other programs, made on first use."""
    home = cache / "shard-peers"
    python = home / "bin" / "python"
    if not (home / "complete").exists():
        print(f"bench: installing {', '.join(PACKAGES)}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run(pip + PACKAGES, check=True)
        (home / "complete").touch()
    return python


def make_source(pairs, folder, count):
    """COUNT photographs with captions, links to those of a folder."""
    photos = sorted(path for path in pairs.glob("*.jpg") if path.with_suffix(".txt").exists())
    if not photos:
        sys.exit(f"bench: error: {pairs} has no a.jpg with a.txt beside it")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number in range(count):
        photo = photos[number % len(photos)]
        for path in (photo, photo.with_suffix(".txt")):
            os.link(path, folder / f"{number:06}{path.suffix}") if same_device(path, folder) else shutil.copy(
                path, folder / f"{number:06}{path.suffix}")


def same_device(path, folder):
    return path.stat().st_dev == folder.stat().st_dev


def measure(command, out):
    """Wall and CPU seconds of a command that writes to the folder `out`."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if result.returncode not in (0, 3):
        sys.exit(f"bench: error: {command[0]} failed: {result.stderr[-2000:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def images(out):
    count = 0
    for shard in glob.glob(f"{out}/*.tar"):
        with tarfile.open(shard) as archive:
            count += sum(name.endswith((".jpg", ".jpeg")) for name in archive.getnames())
    return count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qfdata", type=pathlib.Path, required=True)
    parser.add_argument("--pairs", type=pathlib.Path, required=True)
    parser.add_argument("--cache", type=pathlib.Path, default=pathlib.Path.home() / ".cache/qformer")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    python = environment(args.cache)
    work = args.cache / "bench-shard"
    source = work / "source"
    make_source(args.pairs.resolve(), source, args.count)
    shard = [args.qfdata.resolve(), "shard", source, "--max-count", 500, "--threads", args.workers, "--out"]
    settings = [SIZE, QUALITY, args.workers]
    programs = {
        "qfdata shard": lambda out: shard + [out / "photos", "--resize", "keep_ratio", "--image-size", SIZE,
                                             "--image-format", "jpeg", "--quality", QUALITY],
        "img2dataset": lambda out: [python, HERE / "img2dataset_writer.py", source, out, *settings],
        "webdataset + OpenCV": lambda out: [python, HERE / "opencv_writer.py", source, out, *settings],
        "qfdata shard, copying": lambda out: shard + [out / "photos"],
        "cp": lambda out: ["cp", "-r", source, out],
    }
    times = {name: [] for name in programs}
    for _ in range(args.rounds):
        for name, command in programs.items():
            out = work / "out"
            wall, cpu = measure(command(out), out)
            found = args.count if name == "cp" else images(out)
            if found != args.count:
                sys.exit(f"bench: error: {name} wrote {found} of {args.count} images")
            times[name].append((args.count / cpu, args.count / wall))
    print(f"{'':24} {'per CPU-second':>15} {'per second':>12}")
    for name, rates in times.items():
        per_cpu, per_second = (statistics.median(column) for column in zip(*rates))
        print(f"{name:24} {per_cpu:15.0f} {per_second:12.0f}")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
