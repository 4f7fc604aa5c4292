#!/usr/bin/env bash
# The curves and the table of docs/guide/learning.md: the tiny preset on rendered scenes, in three runs that differ
# in one thing each. Five minutes on two cores, after `make build`.
#
#   BIN=dir     qfdata and qftrain (default: target/release)
#   OUT=dir     where to write (default: target/learning); runs that are there already are only drawn
#   STEPS=400   steps of each run
#
# Usage: scripts/learning.sh [SVG]     draws into SVG (default: docs/guide/learning.svg) and prints the table
set -euo pipefail
cd "$(dirname "$0")/.."

readonly IMAGES=4000 HELD=200 SEED=1
bin=${BIN:-${CARGO_TARGET_DIR:-target}/release}
out=${OUT:-target/learning}
steps=${STEPS:-400}
svg=${1:-docs/guide/learning.svg}

say() { printf 'learning: %s\n' "$*"; }

if [ ! -e "$out/mismatched-000000.tar" ]; then
    say "rendering $IMAGES scenes, and $HELD others that training never sees"
    rm -rf "$out/images" "$out/swapped"
    "$bin/qfdata" synth --out "$out/images" --count $IMAGES --held-out $HELD --seed $SEED
    # The same images with the captions of others: what training looks like when pairs are wrong.
    python3 - "$out/images/train" "$out/swapped" <<'PYTHON'
import os, shutil, sys
source, target = sys.argv[1:]
os.makedirs(target)
names = sorted(name[:-4] for name in os.listdir(source) if name.endswith(".jpg"))
for name, other in zip(names, names[1:] + names[:1]):
    shutil.copy(f"{source}/{name}.jpg", f"{target}/{name}.jpg")
    shutil.copy(f"{source}/{other}.txt", f"{target}/{name}.txt")
PYTHON
    for set in train:images/train held:images/held mismatched:swapped; do
        "$bin/qfdata" shard "$out/${set#*:}" --out "$out/${set%%:*}" --format tar --shuffle-seed $SEED
    done
fi

run() { # NAME SHARDS OPTION...
    [ -e "$out/runs/$1/profile.json" ] && return
    say "training $steps steps: $1"
    rm -rf "$out/runs/$1"
    "$bin/qftrain" --preset tiny --shards "$out/$2-*.tar" --val-shards "$out/held-*.tar" --val-every 50 \
        --set validation.max_samples=$HELD --set validation.rerank=0 --set validation.batch_size=16 \
        --set checkpoint_every_steps=1000000 --set schedule.warmup_steps=50 --steps "$steps" --run-dir "$out/runs/$1" "${@:3}" >"$out/$1.log" 2>&1 \
        || { tail -n 5 "$out/$1.log" >&2; exit 1; }
}
run batch-16 train
run batch-4 train --batch-size 4
run wrong-captions mismatched

python3 scripts/learning_plot.py "$svg" "$out"/runs/{batch-16,batch-4,wrong-captions}
say "drew $svg"
