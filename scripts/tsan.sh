#!/usr/bin/env bash
# Runs tests of the pipeline under ThreadSanitizer, which reports accesses to the same memory that no lock or atomic
# orders. The standard library is compiled with it, too, which needs its sources (rustup component add rust-src); C
# libraries (decoders, zstd) are not. Needs set-up (scripts/setup.sh).
#
#   scripts/tsan.sh [FILTER...]   unit tests of qf-pipeline whose names hold a filter (default: all that start threads)
set -euo pipefail
cd "$(dirname "$0")/.."

[ -e "$(rustc --print sysroot)/lib/rustlib/src/rust/library" ] \
    || { echo "tsan: error: no sources of the standard library; install them with: rustup component add rust-src" >&2; exit 1; }
filters=("$@")
if [ ${#filters[@]} = 0 ]; then filters=(loader:: batch:: decode::memory remote:: trace:: write:: stop:: warnings::); fi
# The sanitizers' flags are unstable; the compiler need not be.
export RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=thread CARGO_TARGET_DIR=target/tsan
export TSAN_OPTIONS="halt_on_error=0 history_size=4 ${TSAN_OPTIONS-}"
for filter in "${filters[@]}"; do
    # A report makes the test program end with 66.
    cargo test --locked -Zbuild-std --target x86_64-unknown-linux-gnu --package qf-pipeline --lib "$filter"
done
