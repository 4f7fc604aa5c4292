#!/usr/bin/env bash
# The whole job on one machine: captioned images -> shards -> training -> held-out retrieval.
# Called by `make demo`, after set-up and a release build. Everything it writes is in $DEMO_DIR,
# where each call starts over; the images of PAIRS are only read.
#
#   PAIRS=folder   your own captioned images (a.jpg with a.txt or a.json) instead of rendered scenes
#   DEMO_DIR=dir   where to write (default: demo)
#
# Usage: scripts/demo.sh [--clean]
set -euo pipefail

readonly TRAIN_IMAGES=${TRAIN_IMAGES:-4000}  # rendered scenes to train on
readonly HELD_IMAGES=${HELD_IMAGES:-200}     # and to evaluate on: none of them occurs in training
readonly STEPS=${STEPS:-1200}                # optimiser steps on the rendered scenes
readonly PAIRS_STEPS=${PAIRS_STEPS:-600}     # and on the images of PAIRS
readonly HOLD_OUT_EVERY=${HOLD_OUT_EVERY:-10} # one in so many images of PAIRS is held out
readonly RERANK=${RERANK:-32}                # candidates per query that image-text matching ranks again
readonly SHARD_IMAGES=${SHARD_IMAGES:-500}   # images in a shard
readonly SEED=${SEED:-1}
readonly DEMO_STARTED=${DEMO_STARTED:-$(date +%s)} # when `make demo` began, set-up and build included

root=$(cd "$(dirname "$0")/.." && pwd)
pairs=${PAIRS:+$(realpath -m "$PAIRS")}
demo_dir=${DEMO_DIR:+$(realpath -m "$DEMO_DIR")}
cd "$root" # messages show short paths
demo_dir=${demo_dir:-demo}
readonly marker=.qformer-demo # of a folder that this script may clear
bin=${CARGO_TARGET_DIR:-target}/release

say() { printf '\ndemo: %s\n' "$*"; }
die() { printf 'demo: error: %s\n' "$*" >&2; exit 1; }

# Removes what an earlier demo wrote there, and nothing that it did not write.
clear_demo() { # DIR
    [ -e "$1" ] || return 0
    [ -e "$1/$marker" ] || die "$1 holds no earlier demo, so it is left alone; choose another DEMO_DIR"
    rm -rf "$1"
}

clean=0
case "${1:-}" in
    '') ;;
    --clean) clean=1 ;;
    *) die "unknown option $1; usage: scripts/demo.sh [--clean]" ;;
esac
if [ $clean = 1 ]; then
    clear_demo "$demo_dir/synth"
    clear_demo "$demo_dir/pairs"
    if [ -d "$demo_dir" ]; then rmdir --ignore-fail-on-non-empty "$demo_dir"; fi
    exit
fi

{ [ -x "$bin/qfdata" ] && [ -x "$bin/qftrain" ]; } || die "$bin has no qfdata and qftrain; run \`make demo\`"
if [ -n "$pairs" ]; then
    [ -d "$pairs" ] || die "PAIRS=$pairs is no folder"
    work=$demo_dir/pairs steps=$PAIRS_STEPS
else
    work=$demo_dir/synth steps=$STEPS
fi
clear_demo "$work"
mkdir -p "$work/shards" && touch "$work/$marker"
run=$work/run
started=$SECONDS
# Ctrl-C: the program at work ends in its own way (qftrain saves) before this line is reached.
trap 'say "interrupted; qftrain --run-dir $run --resume continues a run that has begun"; exit 130' INT

if [ -n "$pairs" ]; then
    say "1/5 holding out every ${HOLD_OUT_EVERY}th image of $pairs (by links in $work/images)"
    python3 scripts/hold_out.py "$pairs" "$work/images" "$HOLD_OUT_EVERY"
else
    say "1/5 rendering $TRAIN_IMAGES captioned scenes, and $HELD_IMAGES others for the evaluation"
    "$bin/qfdata" synth --out "$work/images" --count "$TRAIN_IMAGES" --held-out "$HELD_IMAGES" --seed "$SEED"
fi

say "2/5 packing them into shards, $work/shards"
for split in train held; do
    "$bin/qfdata" shard "$work/images/$split" --out "$work/shards/$split" \
        --format tar --max-count "$SHARD_IMAGES" --shuffle-seed "$SEED" ||
        [ $? -eq 3 ] # written, without what it named as bad
done

say "3/5 training the tiny preset for $steps steps, $run"
"$bin/qftrain" --preset tiny --shards "$work/shards/train-*.tar" --steps "$steps" --run-dir "$run" \
    --val-shards "$work/shards/held-*.tar" --val-every $((steps / 4 > 0 ? steps / 4 : 1))

say "4/5 retrieval among held-out images, which training never saw"
"$bin/qftrain" eval --run-dir "$run" --shards "$work/shards/held-*.tar" --rerank "$RERANK" \
    | tee "$work/retrieval.txt"

say "5/5 captions of some of them"
"$bin/qftrain" caption --run-dir "$run" --shards "$work/shards/held-*.tar" --limit 5 \
    | tee "$work/captions.txt"

# A picture of the report, where there is a browser.
picture="(no $run/report.png)"
picture_is='no chromium or google-chrome here to draw it'
for browser in chromium chromium-browser google-chrome google-chrome-stable; do
    command -v "$browser" >/dev/null || continue
    if "$browser" --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1280,2400 \
        --screenshot="$(realpath "$run")/report.png" "file://$(realpath "$run/report.html")" >/dev/null 2>&1; then
        picture=$run/report.png picture_is='a picture of it'
    else
        picture_is="$browser could not draw it"
    fi
    break
done

duration() { printf '%d min %d s' $(($1 / 60)) $(($1 % 60)); }
total=$(($(date +%s) - DEMO_STARTED))
say "done in $(duration $total), of which set-up and build took $(duration $((total - (SECONDS - started)))). Where to look:"
where() { printf '  %-42s %s\n' "$1" "$2"; }
where "$run/report.html" "curves, held-out images, where the time went: open it in a browser"
where "$picture" "$picture_is"
where "$work/images" "images and captions"
where "$work/shards" "shards: tar tf shows what is in them"
where "$run/config.toml" "every setting of the run"
where "$run/metrics.jsonl" "losses, learning rate, images/s, a line a step"
where "$run/profile.json" "what each stage cost, and the bottleneck"
where "$run/checkpoints" "weights and optimiser state (safetensors)"
where "$work/retrieval.txt" "the table above"
where "$work/captions.txt" "and the captions"
