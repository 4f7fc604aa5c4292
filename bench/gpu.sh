#!/usr/bin/env bash
# What a GPU makes of BLIP-2's stage 1 (ViT-g/14, from shards to updates): `make bench-gpu`.
#
#   bench/gpu.sh QFDATA QFTRAIN [SHARDS...]
#
# Without SHARDS it renders captioned scenes; photographs give the loader its usual work. QFDATA may be `-`
# where SHARDS and TOKENIZER are given. Every part has a time limit and fails alone; logs, metrics,
# profiles and tables stay in OUT. Exit code 1 if a part failed.
#
# Settings, from the environment:
#   OUT=target/bench-gpu/DATE   folder of the results
#   DEVICE=cuda                 or cpu, for a rehearsal with PRESET=tiny
#   PRESET=blip2-vit-g BATCHES='16 100' STEPS=160
#   SET='KEY=VALUE ...'         further settings of all runs
#   TOKENIZER=vocab.txt         BERT's, for example; else one of as many entries (30,522) is made
#   PARTS='check train bench resume reference'
#   RESUME_PRESET=small RESUME_STEPS=20
#   REFERENCE=python3           an interpreter with PyTorch, for the same step in PyTorch on the same card
#   REFERENCE_ARGS='...'        options of bench/gpu/reference.py
#   TOTAL=480                   seconds for everything
set -uo pipefail

[ $# -ge 2 ] || { echo "usage: bench/gpu.sh QFDATA QFTRAIN [SHARDS...]" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
qfdata=$1
[ "$qfdata" = - ] || qfdata=$(realpath "$qfdata")
qftrain=$(realpath "$2")
shift 2
DEVICE=${DEVICE:-cuda} PRESET=${PRESET:-blip2-vit-g} BATCHES=${BATCHES:-16 100} STEPS=${STEPS:-160}
PARTS=${PARTS:-check train bench resume reference} TOTAL=${TOTAL:-480}
RESUME_PRESET=${RESUME_PRESET:-small} RESUME_STEPS=${RESUME_STEPS:-20} REFERENCE=${REFERENCE:-python3}
read -ra reference_args <<<"${REFERENCE_ARGS:-}"
out=${OUT:-target/bench-gpu/$(date -u +%Y-%m-%dT%H-%M-%S)}
mkdir -p "$out/logs" && out=$(realpath "$out") || exit 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

# part NAME SECONDS COMMAND...: runs a command with its whole output in a log, and says how it went.
part() {
    local name=$1 limit=$2 started=$SECONDS code=0
    shift 2
    local left=$((TOTAL - SECONDS))
    [ "$left" -ge "$limit" ] || limit=$left
    if [ "$limit" -le 0 ]; then
        echo "$name: left out, $TOTAL s are over"
        failed=1
        return 1
    fi
    timeout -k 10 "$limit" "$@" >"$out/logs/$name.log" 2>&1 || code=$?
    case $code in
    0) echo "$name: $((SECONDS - started)) s" ;;
    124 | 137) echo "$name: stopped after $limit s, see logs/$name.log" ;;
    *) echo "$name: failed with code $code: $(grep -a -m1 '^error' "$out/logs/$name.log" || tail -n 1 "$out/logs/$name.log")" ;;
    esac
    [ "$code" = 0 ] || failed=1
    return "$code"
}

wanted() { [[ " $PARTS " == *" $1 "* ]]; }

machine() {
    date -u
    uname -srm
    nproc
    grep -m1 'model name' /proc/cpuinfo
    nvidia-smi
    "$qftrain" --version
}

# As many entries as BERT has: the captions' own words, then entries that no text uses.
vocabulary() {
    "$qfdata" vocab --shards "$@" --size 30522 --out "$work/words.txt" || return
    awk '{ print } END { for (i = NR; i < 30522; i++) print "[unused" i "]" }' "$work/words.txt" >"$work/vocab.txt"
}

train() { # FOLDER OPTIONS...
    local folder=$1
    shift
    set -- "$qftrain" --device "$DEVICE" --shards "${shards[@]}" --tokenizer "$tokenizer" --run-dir "$folder" "$@"
    for setting in ${SET:-}; do set -- "$@" --set "$setting"; done
    echo "$*"
    "$@"
}

# A run that stops in the middle and goes on, beside one that does not.
resume() {
    local half=$((RESUME_STEPS / 2)) steps
    train "$work/whole" --preset "$RESUME_PRESET" --steps "$RESUME_STEPS" --set deterministic=true \
        --set checkpoint_every_steps="$half" || return
    steps=$(printf 'step-%08d' "$RESUME_STEPS")
    cp -r "$work/whole" "$work/resumed" && rm -r "$work/resumed/checkpoints/$steps" || return
    "$qftrain" --device "$DEVICE" --run-dir "$work/resumed" --resume || return
    python3 "$here/gpu/compare.py" "$work/whole/checkpoints/$steps" "$work/resumed/checkpoints/$steps"
}
export -f train resume machine vocabulary

machine >"$out/machine.txt" 2>&1
shards=("$@")
if [ $# -eq 0 ]; then
    "$qfdata" synth --count 2000 --size 512 --out "$work/scenes" >"$out/logs/scenes.log" 2>&1 &&
        "$qfdata" shard "$work/scenes" --out "$work/scenes" --max-count 200 >>"$out/logs/scenes.log" 2>&1 ||
        { tail -n 3 "$out/logs/scenes.log" >&2; exit 1; }
    shards=("$work/scenes-*.tar")
fi
tokenizer=${TOKENIZER:-}
if [ -z "$tokenizer" ]; then
    vocabulary "${shards[@]}" >"$out/logs/vocabulary.log" 2>&1 || { tail -n 3 "$out/logs/vocabulary.log" >&2; exit 1; }
    tokenizer=$work/vocab.txt
fi

# Shell functions run in this shell's children, under timeout: they are handed over by a script.
call() { # FUNCTION ARGUMENTS...
    declare -p shards tokenizer work here qftrain DEVICE RESUME_PRESET RESUME_STEPS
    declare -p SET 2>/dev/null
    declare -f train resume
    printf '%q ' "$@"
}

wanted check && part check 90 "$qftrain" selfcheck --device "$DEVICE"
for batch in $BATCHES; do
    folder=$out/train-$batch
    if wanted train; then
        call train "$folder" --preset "$PRESET" --batch-size "$batch" --steps "$STEPS" --profile \
            --profile-steps $((STEPS > 80 ? 60 : STEPS / 2)) --set checkpoint_every_steps=1000000 \
            --set log_every_steps=10 >"$work/call"
        part "train-$batch" 180 bash "$work/call"
        rm -rf "$folder/checkpoints"
        [ -e "$folder/trace.json" ] && gzip -f "$folder/trace.json"
    fi
    if wanted bench; then
        # shellcheck disable=SC2046 # one word each
        part "bench-$batch" 90 "$qftrain" bench --device "$DEVICE" --preset "$PRESET" --batch-size "$batch" \
            --steps 10 --warmup 3 $(for setting in ${SET:-}; do echo --set "$setting"; done)
    fi
done
if wanted resume; then
    call resume >"$work/call"
    part resume 120 bash "$work/call" && tail -n 2 "$out/logs/resume.log"
fi
if wanted reference; then
    if "$REFERENCE" -c 'import torch' 2>/dev/null; then
        part reference 180 "$REFERENCE" "$here/gpu/reference.py" "$out/reference.json" --device "$DEVICE" \
            --batches $BATCHES "${reference_args[@]}"
    else
        echo "reference: left out, REFERENCE=$REFERENCE has no PyTorch"
    fi
fi
python3 "$here/gpu/table.py" "$PRESET" "$out" $BATCHES | tee "$out/table.md"
echo "results in $out, after $SECONDS s"
exit "$failed"
