#!/usr/bin/env python3
"""`qfdata shard` without re-encoding beside `cp`, and `qfdata index` with and without checksums.

    copying.py --qfdata target/release/qfdata --pairs FOLDER [--count 2000] [--rounds 7] [--shards 5000]

FOLDER holds photographs with captions beside them (a.jpg, a.txt); they are copied under other names until there are
--count. Each program copies them to the same file system, in turns. Warm: they were read just before. Cold: their pages
were given back to the system before (posix_fadvise); the disk may have a cache of its own. `cp, synced` is `cp -r` and
then `sync` of every file it wrote, since `qfdata shard` returns once its shards are on the disk. The table holds medians,
with the least and the most. CPU time is user and system.
"""
import argparse
import glob
import os
import pathlib
import shutil
import statistics
import sys
import tempfile

from run import make_source, measure


def forget(paths):
    """Gives the pages of files back."""
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def remember(paths):
    for path in paths:
        path.read_bytes()


def copies(qfdata, source, work, rounds, threads):
    files = sorted(source.iterdir())
    size = sum(path.stat().st_size for path in files) / 1e6
    out = work / "out"
    programs = {
        "cp -r": ["cp", "-r", source, out],
        "cp -r, synced": ["sh", "-c", f"cp -r '{source}' '{out}' && find '{out}' -type f -exec sync {{}} +"],
        "qfdata shard": [qfdata, "shard", source, "--out", out / "photos", "--max-count", 500, "--threads", threads],
    }
    print(f"{len(files)} files, {size:.0f} MB, {rounds} rounds")
    print(f"{'':22} {'MB/s':>8} {'least':>8} {'most':>8} {'CPU s':>8}")
    for state, prepare in (("warm", remember), ("cold", forget)):
        times = {name: [] for name in programs}
        for _ in range(rounds):
            for name, command in programs.items():
                prepare(files)
                times[name].append(measure(command, out))
        for name, found in times.items():
            rates = [size / wall for wall, _ in found]
            cpu = statistics.median(cpu for _, cpu in found)
            print(f"{name + ', ' + state:22} {statistics.median(rates):8.0f} {min(rates):8.0f} {max(rates):8.0f} {cpu:8.2f}")
    shutil.rmtree(out)


def indices(qfdata, source, work, count, rounds):
    make = [qfdata, "shard", source, "--out", work / "one/s", "--max-count", 20, "--no-index", "--quiet"]
    measure(make, work / "one")
    shards = sorted((work / "one").glob("s-*.tar"))
    many = work / "many"
    many.mkdir()
    for number in range(count):
        os.link(shards[number % len(shards)], many / f"{number:06}.tar")
    size = sum(path.stat().st_size for path in many.glob("*.tar"))
    print(f"{count} shards, {size / 1e9:.1f} GB, warm")
    times = {"index": [], "index --no-checksum": []}
    for _ in range(rounds):
        for name, found in times.items():
            for old in glob.glob(f"{many}/*.qfidx"):
                os.remove(old)
            command = [qfdata, *name.split(), f"{many}/*.tar", "--json"]
            found.append(measure(command, work / "unused"))
    for name, found in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*found))
        print(f"{name:22} {wall:8.1f} s {cpu:8.1f} CPU s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qfdata", type=pathlib.Path, required=True)
    parser.add_argument("--pairs", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, help="folder for temporary files [default: the system's]")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shards", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    qfdata = args.qfdata.resolve()
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        work = pathlib.Path(work)
        make_source(args.pairs.resolve(), None, work / "source", args.count)
        copies(qfdata, work / "source", work, args.rounds, args.threads)
        sys.stdout.flush()
        indices(qfdata, work / "source", work, args.shards, max(1, args.rounds // 3))


if __name__ == "__main__":
    main()
