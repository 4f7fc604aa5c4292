#!/usr/bin/env bash
# Runs the fuzz targets of fuzz/ under libFuzzer and AddressSanitizer, one after the other. Needs cargo-fuzz
# (cargo install --locked cargo-fuzz) and set-up (scripts/setup.sh).
#
#   scripts/fuzz.sh [SECONDS] [TARGET...]   each for so long (default: 20 s), or these alone
#   scripts/fuzz.sh --list                  names of the targets
#
# Inputs begin with the test data of the repository and of ../shared, and grow in target/fuzz/corpus. An input
# that fails is in target/fuzz/failures/TARGET: run it again with
#   target/fuzz/x86_64-unknown-linux-gnu/release/TARGET FILE
set -euo pipefail
cd "$(dirname "$0")/.."

readonly TARGETS=(tar compressed arrow index state jpeg image captions specs config weights)
readonly HOME_FOLDER=$PWD/target/fuzz
# Larger inputs are slow, and find little that small ones do not.
readonly MAX_INPUT=65536

say() { printf 'fuzz: %s\n' "$*"; }
die() { printf 'fuzz: error: %s\n' "$*" >&2; exit 1; }

# Copies the small files below the folders that are there, under names without folders.
take() { # TARGET PATTERN FOLDER...
    local target=$1 pattern=$2 folder
    shift 2
    for folder in "$@"; do
        [ -d "$folder" ] || continue
        find "$folder" -type f -size "-${MAX_INPUT}c" -regextype posix-extended -iregex "$pattern" -print0 \
            | while IFS= read -r -d '' file; do
                cp -n "$file" "$HOME_FOLDER/corpus/$target/seed-$(cksum <"$file" | tr ' ' '-')"
            done
    done
}

# Compressed kinds of the archives.
compress() {
    local file to=$HOME_FOLDER/corpus/compressed
    for file in "$HOME_FOLDER"/corpus/tar/seed-*; do
        [ -s "$file" ] && [ "$(stat -c %s "$file")" -lt 20000 ] || continue
        gzip -nc "$file" >"$to/${file##*/}-gz"
        if command -v zstd >/dev/null; then zstd -qc "$file" >"$to/${file##*/}-zst"; fi
    done
}

seeds() { # TARGET
    local target=$1 data=(tests/data ../shared/data)
    [ ! -e "$HOME_FOLDER/corpus/$target/seeded" ] || return 0
    mkdir -p "$HOME_FOLDER/corpus/$target"
    case "$target" in
        tar) take tar '.*\.tar' "${data[@]}" ;;
        compressed)
            seeds tar
            take compressed '.*(\.(zst|gz|tgz)|golden-[a-z-]*/.*)' "${data[@]}"
            compress
            ;;
        arrow) take arrow '.*(\.arrow|\.stream|/arrow/.*)' "${data[@]}" ;;
        jpeg) take jpeg '.*\.jpe?g' "${data[@]}" ;;
        image) take image '.*\.(jpe?g|png|gif|bmp|webp|tiff?)' "${data[@]}" ;;
        captions) take captions '.*\.(txt|json)' "${data[@]}" ;;
        config) take config '.*\.toml' configs ;;
        weights) take weights '.*\.(safetensors|bin|pth|pt)' "${data[@]}" ;;
    esac
    take "$target" '.*' "fuzz/seeds/$target"
    touch "$HOME_FOLDER/corpus/$target/seeded"
}

build() { # TARGET
    local features=()
    if [ "$1" = weights ]; then features=(--features weights); fi
    # The sanitizers' flags are unstable; the compiler need not be.
    RUSTC_BOOTSTRAP=1 cargo fuzz build "${features[@]}" --target-dir "$HOME_FOLDER" "$1"
}

run() { # SECONDS TARGET
    local program=$HOME_FOLDER/x86_64-unknown-linux-gnu/release/$2 failures=$HOME_FOLDER/failures/$2 log
    local TIMEFORMAT='%U %S' cpu
    mkdir -p "$failures"
    log=$failures/last.log
    # An input may take 5 s, and a gigabyte with what the sanitizer adds.
    if ! { time ASAN_OPTIONS=detect_leaks=0 "$program" "$HOME_FOLDER/corpus/$2" -max_total_time="$1" -timeout=5 \
        -rss_limit_mb=2048 -malloc_limit_mb=1024 -max_len="$MAX_INPUT" -artifact_prefix="$failures/" \
        -print_final_stats=1 >"$log" 2>&1; } 2>"$failures/last.time"; then
        grep -m1 -A8 -E 'panicked at|ERROR: ' "$log" || tail -n 20 "$log"
        die "$2 failed; its input is in $failures"
    fi
    cpu=$(awk '{ print int($1 + $2) }' "$failures/last.time")
    say "$2: $(awk '/number_of_executed_units/ { print $2 }' "$log") inputs in $cpu CPU-seconds, $(sed -n 's/.*cov: \([0-9]*\).*/\1/p' "$log" | tail -n1) edges"
}

if [ "${1-}" = --list ]; then
    printf '%s\n' "${TARGETS[@]}"
    exit
fi
cargo fuzz --version >/dev/null 2>&1 || die "no cargo-fuzz; install it with: cargo install --locked cargo-fuzz"
seconds=20
if [[ "${1-}" =~ ^[0-9]+$ ]]; then
    seconds=$1
    shift
fi
chosen=("$@")
if [ ${#chosen[@]} = 0 ]; then chosen=("${TARGETS[@]}"); fi
for target in "${chosen[@]}"; do
    [[ " ${TARGETS[*]} " == *" $target "* ]] || die "no target $target; there are: ${TARGETS[*]}"
done
for target in "${chosen[@]}"; do build "$target"; done
for target in "${chosen[@]}"; do
    seeds "$target"
    run "$seconds" "$target"
done
