#!/usr/bin/env python3
"""Build data sets of unusual sizes and say what qfdata needs for each.

    scripts/load.py [--bin target/release] [--work FOLDER] [--json FILE]

The sets: 10,000 shards; one shard of 1,000,000 tiny samples (2 GB); a photograph of 50 megapixels, as JPEG and PNG; a
caption of 10 MB; a sample of 10,000 members. Each command's wall time, CPU time and peak memory are measured by the
system (wait4). Fails where a command fails or loses a sample. Needs 6 GB of disk in FOLDER (default: a temporary
one), and Python's standard library only.
"""

import argparse
import io
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib


def rendered(program, folder, size):
    """A rendered JPEG of size × size pixels."""
    scenes = folder / f"scenes-{size}"
    quietly(program, "synth", "--count", "1", "--size", size, "--out", scenes, "--seed", "1")
    return next(scenes.glob("*.jpg")).read_bytes()


def jpeg_of(program, folder, image):
    """A picture as qfdata writes it as JPEG."""
    pairs = folder / "pairs"
    pairs.mkdir()
    (pairs / "a.png").write_bytes(image)
    (pairs / "a.txt").write_text("a photograph")
    quietly(program, "shard", pairs, "--image-format", "jpeg", "--out", folder / "again")
    with tarfile.open(folder / "again-000000.tar") as archive:
        return archive.extractfile("a.jpg").read()


def quietly(*arguments):
    subprocess.run([str(a) for a in arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def png(width, height):
    """A PNG of a gradient, RGB of 8 bits."""
    row = b"\0" + bytes(value & 255 for x in range(width) for value in (x, x >> 4, x >> 8))
    pack = zlib.compressobj(1)
    data = b"".join(pack.compress(row) for _ in range(height)) + pack.flush()

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def add(archive, name, body):
    member = tarfile.TarInfo(name)
    member.size = len(body)
    archive.addfile(member, io.BytesIO(body))


def member_bytes(name, body):
    """A tar member as it is stored."""
    member = tarfile.TarInfo(name)
    member.size = len(body)
    return member.tobuf(tarfile.USTAR_FORMAT) + body + b"\0" * (-len(body) % 512)


def many_shards(folder, image):
    for number in range(10_000):
        with tarfile.open(folder / f"s-{number:05}.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
            for sample in range(4):
                add(archive, f"{number:05}-{sample}.jpg", image)
                add(archive, f"{number:05}-{sample}.txt", b"a red circle above a blue square")
    return 40_000


def many_samples(folder, image):
    with open(folder / "s-0.tar", "wb") as shard:
        for number in range(1_000_000):
            shard.write(member_bytes(f"{number:07}.png", image))
            shard.write(member_bytes(f"{number:07}.txt", b"a red circle"))
        shard.write(b"\0" * 10240)
    return 1_000_000


def one(folder, *members):
    with tarfile.open(folder / "s-0.tar", "w") as archive:
        for name, body in members:
            add(archive, name, body)
    return 1


# Runs a command and prints what the system says of it. A process of its own, because the peak of a child includes that
# of the process that started it.
MEASURE = """
import json, os, sys, time
started = time.monotonic()
process = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(process, 0)
seconds = time.monotonic() - started
usage = {"seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss / 1024}
with open(3, "w") as out:
    json.dump({"code": os.waitstatus_to_exitcode(status), **usage}, out)
"""


def run(arguments):
    """Exit code, seconds, CPU seconds, peak MB, what it said and complained of."""
    read, write = os.pipe()
    with os.fdopen(read) as usage:
        command = [sys.executable, "-S", "-c", MEASURE.replace("open(3", f"open({write}")]
        done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, pass_fds=[write])
        os.close(write)
        return json.load(usage) | {"said": done.stdout, "complaint": done.stderr}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("target/release"))
    parser.add_argument("--work", type=pathlib.Path)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    program = (args.bin / "qfdata").resolve()
    work = pathlib.Path(tempfile.mkdtemp(prefix="qf-load-", dir=args.work))
    try:
        results = measure(program, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    failed = [r for r in results if not r["sound"]]
    for result in failed:
        print(f"load: error: {result['set']}: {result['command']}: {result['complaint'][-500:]}", file=sys.stderr)
    sys.exit(1 if failed else 0)


def sets(program, work):
    small = rendered(program, work, 64)
    tiny = png(8, 8)
    yield "10,000 shards of 4", lambda folder: many_shards(folder, small), ["index", "order", "verify", "profile"]
    yield "1,000,000 samples in a shard of 2 GB", lambda folder: many_samples(folder, tiny), ["index", "order", "profile"]
    large = png(8688, 5792)
    caption = b"a photograph"
    yield "a JPEG of 50 megapixels", lambda f: one(f, ("a.jpg", jpeg_of(program, work, large)), ("a.txt", caption)), ["verify", "profile"]
    yield "a PNG of 50 megapixels", lambda f: one(f, ("a.png", large), ("a.txt", caption)), ["verify", "profile"]
    long = b"a dog and a cat on a mat " * 400_000
    yield "a caption of 10 MB", lambda f: one(f, ("a.jpg", small), ("a.txt", long)), ["verify", "profile"]
    parts = [(f"a.part{number}", b"x") for number in range(9_998)]
    yield "a sample of 10,000 members", lambda f: one(f, ("a.jpg", small), ("a.txt", caption), *parts), ["verify", "profile"]


def measure(program, work):
    results = []
    print("| set | command | wall, s | CPU, s | peak, MB |\n|---|---|---|---|---|")
    for name, make, commands in sets(program, work):
        folder = work / "set"
        folder.mkdir()
        samples = make(folder)
        shards = f"{folder}/*.tar"
        ways = {
            "index": ["index", shards],
            "order": ["order", "--batch", "1000", "--shuffle", "full", "--shards", shards],
            "verify": ["verify", "--json", shards],
            "profile": ["profile", "--json", "--seconds", "3", "--batch-size", "1", "--image-size", "224", "--shards", shards],
        }
        for command in commands:
            result = run([program, *ways[command]])
            result |= {"set": name, "command": command, "sound": is_sound(command, result, samples)}
            print(f"| {name} | `{command}` | {result['seconds']:.1f} | {result['cpu_seconds']:.1f} | {result['peak_mb']:.0f} |", flush=True)
            del result["said"]
            results.append(result)
        shutil.rmtree(folder)
    return results


def is_sound(command, result, samples):
    """Whether the command ended in order and saw all samples."""
    if command == "verify":
        # 3: it has something to say of them.
        return result["code"] in (0, 3) and json.loads(result["said"].splitlines()[-1])["samples"] == samples
    if result["code"] != 0:
        return False
    if command == "order":
        return result["said"].count("#") >= samples
    if command == "profile":
        counters = json.loads(result["said"])["counters"]
        return counters["delivered"] > 0 and not counters.get("skipped")
    return True


if __name__ == "__main__":
    main()
