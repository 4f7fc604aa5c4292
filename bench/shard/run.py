#!/usr/bin/env python3
"""Photographs a CPU-second of `qfdata shard` and of other programs that build shards: `make bench-shard`.

    run.py --qfdata target/release/qfdata --pairs FOLDER [--large FOLDER] [--rounds 3] [--workers 2]

FOLDER holds photographs with captions beside them (a.jpg, a.txt); they are repeated under other names until there
are --count. With --large every twentieth is one of that folder instead. Every program makes tar shards of 500 with
the shorter side 256, JPEG quality 95; all run in turn for a number of rounds, and the table holds medians. CPU time is
user and system of a program's whole tree of processes, as wait4(2) reports it; that of img2dataset includes its
start, about a twentieth. Then come copying without re-encoding beside `cp`, both with warm files and to the same file
system; an index of --shards small shards; and downloads of small images from a server on this machine (`server.py`).
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


def make_source(pairs, large, folder, count):
    """COUNT photographs with captions, links to those of a folder; every twentieth is one of `large`."""
    photos = sorted(path for path in pairs.glob("*.jpg") if path.with_suffix(".txt").exists())
    others = sorted(large.rglob("*.jpg")) if large else []
    if not photos:
        sys.exit(f"bench: error: {pairs} has no a.jpg with a.txt beside it")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number in range(count):
        caption = photos[number % len(photos)].with_suffix(".txt")
        photo = caption.with_suffix(".jpg")
        if others and number % 20 == 19:
            photo = others[number // 20 % len(others)]
        for path in (photo, caption):
            target = folder / f"{number:06}{path.suffix}"
            try:
                os.link(path, target)
            except OSError:
                shutil.copy(path, target)


def measure(command, out):
    """Wall and CPU seconds of a command that writes to the folder `out`."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if result.returncode:
        sys.exit(f"bench: error: {command[0]} failed: {result.stderr[-2000:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def images(out):
    count = 0
    for shard in glob.glob(f"{out}/*.tar"):
        with tarfile.open(shard) as archive:
            count += sum(name.endswith((".jpg", ".jpeg")) for name in archive.getnames())
    return count


def index_of_many(qfdata, work, count):
    """Seconds for the indices of so many small shards, and their bytes."""
    folder = work / "many"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    make = [qfdata, "shard", work / "source", "--out", work / "one/s", "--max-count", 20, "--no-index", "--quiet"]
    measure(make, work / "one")
    shards = sorted((work / "one").glob("s-*.tar"))
    for number in range(count):
        os.link(shards[number % len(shards)], folder / f"{number:06}.tar")
    started = time.monotonic()
    subprocess.run([str(qfdata), "index", f"{folder}/*.tar"], check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    size = sum(path.stat().st_size for path in folder.glob("*.tar"))
    shutil.rmtree(folder)
    return seconds, size


def downloads(qfdata, work, count):
    """Images a second from a server on this machine, and the most memory that was held, in MB."""
    images = work / "small"
    resize = ["--resize", "keep_ratio", "--image-size", 64, "--quiet"]
    measure([qfdata, "shard", work / "source", "--out", work / "one/s", *resize], work / "one")
    measure([qfdata, "extract", *sorted((work / "one").glob("s-*.tar")), "--out", images / "files"], images)
    server = subprocess.Popen([sys.executable, HERE / "server.py", images / "files"], stdout=subprocess.PIPE, text=True)
    try:
        port = server.stdout.readline().strip()
        names = sorted(path.name for path in (images / "files").glob("*.jpg"))
        table = work / "urls.csv"
        with open(table, "w") as file:
            file.write("url,caption\n")
            for number in range(count):
                file.write(f"http://127.0.0.1:{port}/{names[number % len(names)]}?{number},photograph {number}\n")
        command = [qfdata, "shard", table, "--out", work / "one/d", "--allow-private-addresses", "--per-host", 256]
        shutil.rmtree(work / "one")
        started = time.monotonic()
        program = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(program.pid, 0)
        if status:
            sys.exit(f"bench: error: downloads failed: {status}")
        return count / (time.monotonic() - started), usage.ru_maxrss / 1024
    finally:
        server.kill()
        server.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qfdata", type=pathlib.Path, required=True)
    parser.add_argument("--pairs", type=pathlib.Path, required=True)
    parser.add_argument("--large", type=pathlib.Path)
    parser.add_argument("--shards", type=int, default=5000)
    parser.add_argument("--downloads", type=int, default=20_000)
    parser.add_argument("--cache", type=pathlib.Path, default=pathlib.Path.home() / ".cache/qformer")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    python = environment(args.cache)
    work = args.cache / "bench-shard"
    source = work / "source"
    make_source(args.pairs.resolve(), args.large and args.large.resolve(), source, args.count)
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
    qfdata = args.qfdata.resolve()
    seconds, size = index_of_many(qfdata, work, args.shards)
    print(f"index of {args.shards} shards ({size / 1e9:.1f} GB): {seconds:.1f} s")
    for count in (args.downloads, 4 * args.downloads):
        rate, memory = downloads(qfdata, work, count)
        print(f"downloads of {count} small images: {rate:.0f} a second, at most {memory:.0f} MB")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
