#!/usr/bin/env bash
# Runs tests of the crates with `unsafe` code under valgrind's memcheck: decoders, inverse transforms, resampling (Rust
# and C) and the rows of batches. Needs valgrind and set-up (scripts/setup.sh). It is some 30 times slower than the tests.
#
#   scripts/valgrind.sh [FILTER...]   tests of qf-codecs whose names hold a filter (default: a list that takes minutes)
set -euo pipefail
cd "$(dirname "$0")/.."

command -v valgrind >/dev/null || { echo "valgrind: error: no valgrind; install it with: apt-get install valgrind" >&2; exit 1; }
filters=("$@")
if [ ${#filters[@]} = 0 ]; then filters=(rgb_is_left huffman inverse webp normalise planes); fi
# Exit status 9 tells a memory error from a test that failed.
runner="valgrind --quiet --error-exitcode=9 --errors-for-leak-kinds=definite --show-leak-kinds=definite --leak-check=full"
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=$runner
for filter in "${filters[@]}"; do
    cargo test --locked --package qf-codecs --lib "$filter" -- --test-threads 1
done
