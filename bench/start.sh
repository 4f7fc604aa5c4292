#!/usr/bin/env bash
# How long 10,000 shards take to the first batch, and to go on late in an epoch: `make bench-start`.
#
#   bench/start.sh QFDATA
#
# The shards are links to one of 40 rendered scenes, indexed and not. `qfdata order` opens them as training
# does and reads no image; `qfdata profile` decodes, and tells the memory.
set -euo pipefail

qfdata=$(realpath "$1")
readonly SHARDS=10000 SAMPLES=40 BATCH=16
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

"$qfdata" synth --count $SAMPLES --size 128 --out scenes >/dev/null
"$qfdata" shard scenes --out one --max-count $SAMPLES >/dev/null
python3 - "$qfdata" $SHARDS $SAMPLES $BATCH <<'PYTHON'
import json, os, subprocess, sys, time

qfdata, shards, samples, batch = sys.argv[1], *map(int, sys.argv[2:])
rows = shards * samples // batch
for folder, endings in [("indexed", ["", ".qfidx"]), ("plain", [""])]:
    os.mkdir(folder)
    for number in range(shards):
        for ending in endings:
            os.link(f"one-000000.tar{ending}", f"{folder}/s-{number:05}.tar{ending}")


def order(folder, shuffle, *options):
    words = [qfdata, "order", "--shards", f"{folder}/*.tar", "--shuffle", shuffle, *options]
    start = time.monotonic()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


print(f"{shards} shards of {samples} samples, batches of {batch}")
for folder, shuffle in [("indexed", "buffer"), ("indexed", "full"), ("plain", "buffer")]:
    first = min(order(folder, shuffle, "--stop-at", "1", "--save-state", "state.json")
                for _ in range(3))
    state = json.load(open("state.json"))
    del state["sha256"]  # of what is changed here
    state.update(row=rows - 3, batches=rows - 2)
    state["sets"][0]["position"] = (rows - 3) * batch
    json.dump(state, open("late.json", "w"))
    late = min(order(folder, shuffle, "--from-state", "late.json") for _ in range(3))
    words = [qfdata, "profile", "--shards", f"{folder}/*.tar", "--shuffle", shuffle,
             "--seconds", "2", "--json"]
    profile = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    print(f"{folder:8} {shuffle:7} first batch {first:6.2f} s   resume in the last batches {late:6.2f} s   "
          f"peak RSS {profile['peak_rss_mb']:4.0f} MB")
PYTHON
