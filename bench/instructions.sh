#!/usr/bin/env bash
# Instructions per image of each stage of the image path, counted by valgrind: the same on a busy
# machine as on a quiet one, so a change of one per cent is a change. Compared with
# bench/instructions.txt; `--save` writes that file. A stage that takes 3 % more fails.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v valgrind >/dev/null || { echo "bench: error: no valgrind; install it (apt-get install valgrind)" >&2; exit 1; }
export TIMES_FEW=2 TIMES_MANY=10

cargo build --locked --release -p qf-pipeline --bench instructions
program=$(cargo bench --locked -p qf-pipeline --bench instructions --no-run 2>&1 | sed -n 's/.*Executable.*(\(.*\)).*/\1/p')
[ -x "$program" ] || { echo "bench: error: cargo did not say where the benchmark is" >&2; exit 1; }

count() { # STAGE TIMES: instructions of a whole run
    valgrind --tool=callgrind --callgrind-out-file=/dev/null "$program" "$1" "$2" 2>&1 |
        sed -n 's/.*Collected : //p'
}

baseline=bench/instructions.txt found=$(mktemp) status=0
trap 'rm -f "$found"' EXIT
echo "# Thousands of instructions an image; $(rustc --version), $(uname -m)" > "$found"
for stage in $("$program"); do
    # Start-up, and making the picture, cancel out.
    each=$((($(count "$stage" $TIMES_MANY) - $(count "$stage" $TIMES_FEW)) / (TIMES_MANY - TIMES_FEW) / 1000))
    before=$(awk -v stage="$stage" '$1 == stage { print $2 }' "$baseline" 2>/dev/null || true)
    note=
    if [ -n "$before" ]; then
        note=$(awk -v a="$each" -v b="$before" 'BEGIN { printf "%+.1f %%", 100 * (a / b - 1) }')
        if awk -v a="$each" -v b="$before" 'BEGIN { exit !(a > 1.03 * b) }'; then status=1; note+="  <- more"; fi
    fi
    printf '%-18s %8d   %s\n' "$stage" "$each" "$note"
    printf '%s %d\n' "$stage" "$each" >> "$found"
done
if [ "${1:-}" = --save ]; then cp "$found" "$baseline"; exit 0; fi
exit $status
