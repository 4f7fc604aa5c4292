#!/usr/bin/env python3
"""Train for an hour under faults and check that nothing grows, leaks or gets lost.

    scripts/soak.py [--minutes 60] [--bin target/release] [--work FOLDER]

Renders scenes, damages one image in twenty inside their shards, serves the shards over HTTP from this process, and
trains the tiny preset on them with validation and checkpoints. Once a minute a fault is injected: the server answers
503 or 429, cuts bodies short, stalls, refuses connections, or the trainer is frozen with SIGSTOP. Then SIGINT ends the
run. Fails unless

* the trainer ends with exit code 0 and a checkpoint, and every loss is finite,
* its resident memory, threads and open files are flat after the warm-up (memory within 2 %),
* every damaged sample is named exactly once, and no other,
* samples read = samples trained on + samples skipped + samples left over at the end of epochs.

Prints what it measured, and writes it to FOLDER/soak.json. Needs Linux (/proc) and Python's standard library.
"""

import argparse
import http.server
import json
import math
import pathlib
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import threading
import time

WARM_UP = 0.25  # of the time: allocators and page caches fill
MEMORY_TOLERANCE = 0.02
DAMAGED_EVERY = 20
FAULT_EVERY_S = 60.0
FAULT_FOR_S = 8.0
SAMPLE_EVERY_S = 2.0


class Store:
    """Shards over HTTP with ranges, and a fault that can be switched on."""

    FAULTS = ["unavailable", "too many requests", "cut", "stall", "refuse"]

    def __init__(self, folder):
        self.folder = folder
        self.fault = None
        self.requests = 0
        self.failed = 0
        store = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                self.answer(body=False)

            def do_GET(self):
                self.answer(body=True)

            def answer(self, body):
                store.answer(self, body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, request, body):
        self.requests += 1
        fault = self.fault
        if fault is not None:
            self.failed += 1
        if fault == "refuse":
            request.close_connection = True
            return
        if fault in ("unavailable", "too many requests"):
            request.send_response(503 if fault == "unavailable" else 429)
            request.send_header("Retry-After", "1")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        path = self.folder / pathlib.PurePosixPath(request.path).name
        if not path.is_file():
            request.send_error(404)
            return
        size = path.stat().st_size
        first, last, status = 0, size - 1, 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if wanted:
            first, status = int(wanted[1]), 206
            last = min(int(wanted[2]), last) if wanted[2] else last
        length = last - first + 1
        request.send_response(status)
        request.send_header("Content-Length", str(length))
        request.send_header("Accept-Ranges", "bytes")
        request.send_header("ETag", f'"{size:x}-{int(path.stat().st_mtime):x}"')
        if status == 206:
            request.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        request.end_headers()
        if not body:
            return
        with open(path, "rb") as file:
            file.seek(first)
            data = file.read(length)
        try:
            if fault == "cut":
                request.wfile.write(data[: length // 2])
                request.close_connection = True
                return
            if fault == "stall":
                request.wfile.write(data[: length // 2])
                request.wfile.flush()
                time.sleep(FAULT_FOR_S)
                data = data[length // 2 :]
            request.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            request.close_connection = True


def run(*command):
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)


def make_data(bin_dir, work, images):
    """Shards with damaged images, and shards for validation. Returns the keys of the damaged samples."""
    run(bin_dir / "qfdata", "synth", "--out", work / "images", "--count", images, "--held-out", 60, "--seed", 7)
    for split in ("train", "held"):
        (work / split).mkdir()
        run(bin_dir / "qfdata", "shard", work / "images" / split, "--out", work / split / split,
            "--max-count", 150, "--no-index")
    damaged = set()
    count = 0
    for shard in sorted((work / "train").glob("*.tar")):
        with tarfile.open(shard) as archive:
            members = [member for member in archive if member.name.endswith(".jpg")]
        with open(shard, "r+b") as file:
            for member in members:
                count += 1
                if count % DAMAGED_EVERY == 0:
                    # From the middle of the header on: no decoder accepts this.
                    file.seek(member.offset_data + 20)
                    file.write(b"\xa5" * (member.size - 20))
                    damaged.add(member.name.rsplit(".", 1)[0])
    for split in ("train", "held"):
        run(bin_dir / "qfdata", "index", *sorted((work / split).glob("*.tar")))
    return damaged


class Watch:
    """Resident memory in bytes, threads and open files of a process over time."""

    def __init__(self, pid):
        self.pid = pid
        self.samples = []

    def sample(self, at):
        proc = pathlib.Path(f"/proc/{self.pid}")
        try:
            status = (proc / "status").read_text()
            files = len(list((proc / "fd").iterdir()))
        except OSError:
            return
        memory = re.search(r"VmRSS:\s+(\d+) kB", status)
        threads = re.search(r"Threads:\s+(\d+)", status)
        if memory and threads:
            self.samples.append((at, int(memory[1]) * 1024, int(threads[1]), files))

    def growth(self, column, minutes):
        """Medians of the first and the last quarter after the warm-up."""
        begin = WARM_UP * minutes * 60
        values = [sample[column] for sample in self.samples if sample[0] >= begin]
        quarter = max(1, len(values) // 4)
        return statistics.median(values[:quarter]), statistics.median(values[-quarter:])


def train(args, work, store):
    """Trains under faults. Returns the process's exit code, what was watched, and the faults injected."""
    command = [
        args.bin / "qftrain", "--preset", "tiny",
        "--shards", f"{store.url}/train-{{000000..{args.images // 150 - 1:06}}}.tar",
        "--val-shards", work / "held" / "held-*.tar",
        "--run-dir", work / "run", "--steps", 10_000_000,
        "--set", "validation.every_steps=200", "--set", "checkpoint_every_steps=200",
        "--set", "keep_checkpoints=2", "--set", "data.max_bad_share=0.5",
    ]
    command += [word for setting in args.set for word in ("--set", setting)]
    log = open(work / "train.txt", "w")
    process = subprocess.Popen([str(word) for word in command], stdout=log, stderr=subprocess.STDOUT)
    watch, faults = Watch(process.pid), []
    started = time.monotonic()
    next_fault = FAULT_EVERY_S
    kinds = Store.FAULTS + ["freeze"]
    while process.poll() is None:
        at = time.monotonic() - started
        if at > args.minutes * 60:
            break
        if at >= next_fault:
            kind = kinds[len(faults) % len(kinds)]
            faults.append(kind)
            next_fault += FAULT_EVERY_S
            if kind == "freeze":
                process.send_signal(signal.SIGSTOP)
                time.sleep(FAULT_FOR_S)
                process.send_signal(signal.SIGCONT)
            else:
                store.fault = kind
                time.sleep(FAULT_FOR_S)
                store.fault = None
        watch.sample(at)
        time.sleep(SAMPLE_EVERY_S)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    return process.wait(timeout=300), watch, faults


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def check(args, work, code, watch, damaged, batch_size):
    """What was measured, and what is wrong."""
    wrong = []
    run_dir = work / "run"
    if code != 0:
        wrong.append(f"qftrain ended with exit code {code}; its output is {work / 'train.txt'}")
    steps = [line for line in lines(run_dir / "metrics.jsonl") if line["kind"] == "train"]
    if not all(math.isfinite(line["loss"]) for line in steps):
        wrong.append("a loss is not finite")
    if not list((run_dir / "checkpoints").glob("step-*/manifest.json")):
        wrong.append("no checkpoint was written")
    memory, threads, files = (watch.growth(column, args.minutes) for column in (1, 2, 3))
    if memory[1] > memory[0] * (1 + MEMORY_TOLERANCE):
        wrong.append(f"resident memory grew from {memory[0] / 1e6:.0f} to {memory[1] / 1e6:.0f} MB")
    if threads[1] > threads[0]:
        wrong.append(f"threads grew from {threads[0]} to {threads[1]}")
    if files[1] > files[0] + 2:
        wrong.append(f"open files grew from {files[0]} to {files[1]}")
    last = steps[-1]
    named = [line["key"] for line in lines(run_dir / "skipped.jsonl") if "key" in line]
    if last["epoch"] >= 1 and sorted(named) != sorted(damaged):
        wrong.append(f"{len(damaged)} samples are damaged, {len(named)} lines name {len(set(named))} samples")
    summary = re.search(r"samples: (\d+) read = .*", (work / "train.txt").read_text())
    counts = [int(number) for number in re.findall(r"\d+", summary[0])] if summary else []
    if not counts or counts[0] != sum(counts[1:]) or counts[1] != last["step"] * batch_size:
        wrong.append(f"after {last['step']} steps of {batch_size} samples the counters say: {summary and summary[0]}")
    return {
        "minutes": args.minutes, "steps": last["step"], "epochs": last["epoch"],
        "samples_read": last["samples_read"], "samples_skipped": last["samples_skipped"],
        "damaged_samples": len(damaged), "named": len(set(named)),
        "memory_mb": [round(value / 1e6, 1) for value in memory],
        "threads": threads, "open_files": files, "exit_code": code,
    }, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("target/release"))
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("soak"), help="a folder that is missing; kept")
    parser.add_argument("--images", type=int, default=600, help="a multiple of 150")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="passed to qftrain")
    args = parser.parse_args()
    if args.work.exists():
        sys.exit(f"soak: error: {args.work} exists; remove it or choose another --work")
    work = args.work.resolve()
    work.mkdir(parents=True)
    damaged = make_data(args.bin, work, args.images)
    store = Store(work / "train")
    code, watch, faults = train(args, work, store)
    if not (work / "run" / "metrics.jsonl").exists():
        sys.exit(f"soak: error: no step was trained (exit code {code}); see {work / 'train.txt'}")
    config = (work / "run" / "config.toml").read_text()
    batch_size = int(re.search(r"^batch_size = (\d+)", config, re.MULTILINE)[1])
    result, wrong = check(args, work, code, watch, damaged, batch_size)
    result |= {"faults": len(faults), "requests": store.requests, "requests_failed": store.failed}
    (work / "soak.json").write_text(json.dumps(result | {"wrong": wrong}, indent=1) + "\n")
    for name, value in result.items():
        print(f"{name:18} {value}")
    shutil.rmtree(work / "images")
    for line in wrong:
        print(f"soak: error: {line}", file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
