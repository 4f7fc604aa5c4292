#!/usr/bin/env bash
# Training BLIP-2's ViT-g/14 stage 1 on a GPU, from shards to updates: `make bench-gpu`.
#
#   bench/gpu.sh QFDATA QFTRAIN [SHARDS...]
#
# Prints, for each batch size, images/s, the share of a measured matrix product, the time without work on
# the GPU and that spent waiting for data. Without shards it renders some. The tower has random weights,
# which cost as much. Settings: DEVICE=cuda PRESET=blip2-vit-g BATCHES='16 100' STEPS=80
set -euo pipefail

[ $# -ge 2 ] || { echo "usage: bench/gpu.sh QFDATA QFTRAIN [SHARDS...]" >&2; exit 2; }
qfdata=$(realpath "$1") qftrain=$(realpath "$2")
shift 2
readonly DEVICE=${DEVICE:-cuda} PRESET=${PRESET:-blip2-vit-g} BATCHES=${BATCHES:-16 100} STEPS=${STEPS:-80}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

if [ $# -eq 0 ]; then
    "$qfdata" synth --count 2000 --size 512 --out "$folder/scenes" >/dev/null
    "$qfdata" shard "$folder/scenes" --out "$folder/scenes" --max-count 200 >/dev/null
    set -- "$folder/scenes-*.tar"
fi
for batch in $BATCHES; do
    "$qftrain" --device "$DEVICE" --preset "$PRESET" --shards "$@" --batch-size "$batch" --steps "$STEPS" \
        --profile --profile-steps $((STEPS / 4)) --set checkpoint_every_steps=1000000 \
        --run-dir "$folder/run-$batch" >"$folder/out-$batch" 2>&1 ||
        { tail -n 5 "$folder/out-$batch" >&2; exit 1; }
    rm -rf "$folder/run-$batch/checkpoints"
done
python3 - "$PRESET" "$folder" $BATCHES <<'PYTHON'
import json, sys

preset, folder, batches = sys.argv[1], sys.argv[2], sys.argv[3:]
# Of an image as the reference computes it: tower forward, Q-Former forward and backward (`qftrain bench`).
REFERENCE_FLOP = {"blip2-vit-g": 701e9}
titles = ["batch", "images/s", "MFU", "FLOP/s, share of matmul", "matmul TFLOP/s", "GPU idle", "waiting for data",
          "upload, GB/s while it lasts", "memory, GB"]
print("| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|")
percent = lambda share: "-" if share is None else f"{100 * share:.1f} %"
for batch in batches:
    profile = json.load(open(f"{folder}/run-{batch}/profile.json"))
    steps = [json.loads(line) for line in open(f"{folder}/run-{batch}/metrics.jsonl")]
    roofline, trace = profile["roofline"], profile["trace"]
    # Over the last 50 steps: the first ones allocate, and are traced.
    rate = [step["images_per_s"] for step in steps if "images_per_s" in step][-1]
    flop = REFERENCE_FLOP.get(preset)
    mfu = flop and rate * flop / roofline["matmul_flop_per_s"]
    memory = profile["device_memory_peak_bytes"]
    print("| " + " | ".join([
        batch, f"{rate:.1f}", percent(mfu), percent(roofline["share"]), f"{roofline['matmul_flop_per_s'] / 1e12:.2f}",
        percent(trace["gpu_idle_share"]), percent(profile["data_wait_share"]),
        f"{roofline['upload_peak_bytes_per_s'] / 1e9:.1f}", "-" if memory is None else f"{memory / 1e9:.1f}",
    ]) + " |")
PYTHON
